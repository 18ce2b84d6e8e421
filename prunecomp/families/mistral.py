"""Mistral dense; its one ``sliding_window`` is global and does not depend on depth."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    released="Mistral 7B, Nemo, Small (text)",
    tiny=({"sliding_window": 6},),
)
