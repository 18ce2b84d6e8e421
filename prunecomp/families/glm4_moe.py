"""GLM-4.5 and 4.6: dense layers first, then experts."""

from prunecomp.families._rules import ExtraLayers, FirstLayers
from prunecomp.families.base import LAYER_TYPES, ModelFamily

FAMILY = ModelFamily(
    model_type="glm4_moe",
    architectures=("Glm4MoeForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.down_proj.weight",
        "mlp.experts.*.down_proj.weight",
        "mlp.shared_experts.down_proj.weight",
    ),
    released="GLM-4.5, GLM-4.5-Air, GLM-4.6",
    rules=(
        LAYER_TYPES,
        FirstLayers("first_k_dense_replace"),
        ExtraLayers(),
    ),
)
