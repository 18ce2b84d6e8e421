"""OLMo: norms without weights."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="olmo",
    architectures=("OlmoForCausalLM",),
    final_norm=(),
    released="OLMo 1B and 7B",
    tiny=({}, {"tie_word_embeddings": True}),
)
