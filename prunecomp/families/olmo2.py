"""OLMo 2: sub-blocks read the stream as it is, and end in a norm."""

from prunecomp.families.base import UNNORMED_READERS, ModelFamily

FAMILY = ModelFamily(
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM",),
    writers=(
        "post_attention_layernorm.weight",
        "post_feedforward_layernorm.weight",
    ),
    readers=UNNORMED_READERS,
    others=(
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
        "self_attn.q_norm",
        "self_attn.k_norm",
        "self_attn.o_proj",
        "mlp.down_proj",
    ),
    released="OLMo 2",
    tiny=({},),
)
