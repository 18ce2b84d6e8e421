"""Qwen2 and Qwen2.5 dense.

The query, key and value biases do not write to the residual stream. ``max_window_layers`` is
where transformers starts the sliding window when ``layer_types`` is absent; it is kept in step
with the layers that stay, because vLLM compares it with the depth.
"""

from prunecomp.families._rules import FirstLayers
from prunecomp.families.base import LAYER_TYPES, ModelFamily

FAMILY = ModelFamily(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    released="Qwen2, Qwen2.5, QwQ",
    tiny=(
        {},
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 3,
        },
    ),
    rules=(
        LAYER_TYPES,
        FirstLayers("max_window_layers"),
    ),
)
