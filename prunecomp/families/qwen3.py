"""Qwen3 dense; the norms on queries and keys act before the softmax, not on the stream."""

from dataclasses import replace

from prunecomp.families import qwen2

FAMILY = replace(
    qwen2.FAMILY,
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    released="Qwen3 0.6B to 32B",
)
