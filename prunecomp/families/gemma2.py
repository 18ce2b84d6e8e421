"""Gemma 2: each sub-block ends in a norm, which multiplies by 1 + w and writes to the stream."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    writers=(
        "post_attention_layernorm.weight",
        "post_feedforward_layernorm.weight",
    ),
    unit_offset=(
        "post_attention_layernorm.weight",
        "post_feedforward_layernorm.weight",
        "model.norm.weight",
    ),
    tied_by_default=True,
    released="Gemma 2",
    tiny=({"sliding_window": 6, "query_pre_attn_scalar": 8},),
)
