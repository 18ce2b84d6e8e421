"""Nemotron and Minitron: LayerNorm that multiplies by 1 + w, squared ReLU."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="nemotron",
    architectures=("NemotronForCausalLM",),
    final_norm=("model.norm.weight", "model.norm.bias"),
    unit_offset=("model.norm.weight",),
    released="Nemotron-4, Minitron",
)
