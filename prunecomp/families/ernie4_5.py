"""ERNIE 4.5 dense."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="ernie4_5",
    architectures=("Ernie4_5ForCausalLM",),
    tied_by_default=True,
    released="ERNIE 4.5 0.3B",
)
