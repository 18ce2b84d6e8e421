"""Arcee Foundation Model; an MLP without a gate."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="arcee",
    architectures=("ArceeForCausalLM",),
    released="AFM-4.5B",
    tiny=({}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
)
