"""Gemma: norms multiply by 1 + w; none of them stands behind a sub-block."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="gemma",
    architectures=("GemmaForCausalLM",),
    unit_offset=("model.norm.weight",),
    tied_by_default=True,
    released="Gemma 2B and 7B, CodeGemma",
)
