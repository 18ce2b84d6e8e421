"""OLMoE."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="olmoe",
    architectures=("OlmoeForCausalLM",),
    writers=("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.experts.*.down_proj.weight"),
    released="OLMoE 1B-7B",
)
