"""Apertus; its activation has parameters of its own, which stand before the down projection."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="apertus",
    architectures=("ApertusForCausalLM",),
    released="Apertus 8B and 70B",
    tiny=({}, {"attention_bias": True}),
)
