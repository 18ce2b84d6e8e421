"""Qwen1.5-MoE and Qwen2-MoE: a shared expert beside the routed ones, dense layers between."""

from prunecomp.families._rules import FirstLayers, SparseStep
from prunecomp.families.base import LAYER_TYPES, ModelFamily

FAMILY = ModelFamily(
    model_type="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.down_proj.weight",
        "mlp.experts.*.down_proj.weight",
        "mlp.shared_expert.down_proj.weight",
    ),
    released="Qwen1.5-MoE, Qwen2-57B-A14B",
    tiny=(
        {},
        {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    rules=(
        LAYER_TYPES,
        SparseStep(),
        FirstLayers("max_window_layers"),
    ),
)
