"""GLM-4 9B (first release): pre-norms only."""

from prunecomp.families.base import ATTENTION_INSIDE, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="glm",
    architectures=("GlmForCausalLM",),
    others=(*NORMS, *ATTENTION_INSIDE, "mlp.gate_up_proj"),
    released="GLM-4 9B",
    tiny=({"pad_token_id": 0},),
)
