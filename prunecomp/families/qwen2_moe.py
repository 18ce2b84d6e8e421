"""Qwen1.5-MoE and Qwen2-MoE: a shared expert beside the routed ones, dense layers between."""

from prunecomp.families._rules import FirstLayers, SparseStep
from prunecomp.families.base import (
    ATTENTION_INSIDE,
    EXPERT_WRITERS,
    EXPERTS_INSIDE,
    LAYER_TYPES,
    MLP_INSIDE,
    NORMS,
    ModelFamily,
)

FAMILY = ModelFamily(
    model_type="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.down_proj.weight",
        *EXPERT_WRITERS,
        "mlp.shared_expert.down_proj.weight",
    ),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        *MLP_INSIDE,
        *EXPERTS_INSIDE,
        "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.up_proj",
        "mlp.shared_expert_gate",
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
