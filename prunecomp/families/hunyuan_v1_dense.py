"""Hunyuan dense."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="hunyuan_v1_dense",
    architectures=("HunYuanDenseV1ForCausalLM",),
    released="Hunyuan 0.5B to 7B",
    tiny=({}, {"tie_word_embeddings": True}),
)
