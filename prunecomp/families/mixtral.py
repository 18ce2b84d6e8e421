"""Mixtral; the published files hold one matrix per expert."""

from prunecomp.families.base import ATTENTION_INSIDE, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "block_sparse_moe.experts.*.w2.weight",
        "mlp.experts.down_proj",
    ),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        "block_sparse_moe.gate",
        "block_sparse_moe.experts.*.w1",
        "block_sparse_moe.experts.*.w3",
        "mlp.gate",
        "mlp.experts.gate_up_proj",
    ),
    released="Mixtral 8x7B and 8x22B",
    tiny=({"num_local_experts": 4},),
)
