"""Qwen3-MoE."""

from prunecomp.families._rules import SparseStep
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
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.down_proj.weight",
        *EXPERT_WRITERS,
    ),
    others=(*NORMS, *ATTENTION_INSIDE, *MLP_INSIDE, *EXPERTS_INSIDE),
    released="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    tiny=({}, {"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    rules=(
        LAYER_TYPES,
        SparseStep(),
    ),
)
