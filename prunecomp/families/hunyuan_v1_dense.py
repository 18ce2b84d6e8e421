"""Hunyuan dense."""

from prunecomp.families.base import ATTENTION_INSIDE, MLP_INSIDE, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="hunyuan_v1_dense",
    architectures=("HunYuanDenseV1ForCausalLM",),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        "self_attn.query_layernorm",
        "self_attn.key_layernorm",
        *MLP_INSIDE,
    ),
    released="Hunyuan 0.5B to 7B",
    tiny=({}, {"tie_word_embeddings": True}),
)
