"""Gemma 2: each sub-block ends in a norm, which multiplies by 1 + w and writes to the stream."""

from prunecomp.families.base import ATTENTION_INSIDE, MLP_INSIDE, ModelFamily

FAMILY = ModelFamily(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    writers=(
        "post_attention_layernorm.weight",
        "post_feedforward_layernorm.weight",
    ),
    others=(
        "input_layernorm",
        "pre_feedforward_layernorm",
        *ATTENTION_INSIDE,
        "self_attn.o_proj",
        *MLP_INSIDE,
        "mlp.down_proj",
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
