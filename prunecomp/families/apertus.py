"""Apertus; its activation has parameters of its own, which stand before the down projection."""

from prunecomp.families.base import ATTENTION_INSIDE, ModelFamily

FAMILY = ModelFamily(
    model_type="apertus",
    architectures=("ApertusForCausalLM",),
    others=(
        "attention_layernorm",
        "feedforward_layernorm",
        *ATTENTION_INSIDE,
        "mlp.up_proj",
        "mlp.act_fn",
    ),
    released="Apertus 8B and 70B",
    tiny=({}, {"attention_bias": True}),
)
