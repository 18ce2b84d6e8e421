"""Qwen3 dense; the norms on queries and keys act before the softmax, not on the stream."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    layer_thresholds=("max_window_layers",),
)
