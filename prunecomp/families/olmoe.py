"""OLMoE."""

from prunecomp.families.base import (
    ATTENTION_INSIDE,
    EXPERT_WRITERS,
    EXPERTS_INSIDE,
    NORMS,
    ModelFamily,
)

FAMILY = ModelFamily(
    model_type="olmoe",
    architectures=("OlmoeForCausalLM",),
    writers=("self_attn.o_proj.weight", "self_attn.o_proj.bias", *EXPERT_WRITERS),
    others=(*NORMS, *ATTENTION_INSIDE, *EXPERTS_INSIDE),
    released="OLMoE 1B-7B",
)
