"""Qwen2 and Qwen2.5 dense.

The query, key and value biases do not write to the residual stream. ``max_window_layers`` is
where transformers starts the sliding window when ``layer_types`` is absent; it is kept in step
with the layers that stay, because vLLM compares it with the depth.
"""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    layer_thresholds=("max_window_layers",),
)
