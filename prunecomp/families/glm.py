"""GLM-4 9B (first release): pre-norms only."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="glm",
    architectures=("GlmForCausalLM",),
    released="GLM-4 9B",
    tiny=({"pad_token_id": 0},),
)
