"""Ministral 3, text part."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="ministral3",
    architectures=("Ministral3ForCausalLM",),
    released="Ministral 3 (text)",
)
