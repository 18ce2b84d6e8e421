"""Mixtral; the files hold one matrix per expert."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "block_sparse_moe.experts.*.w2.weight",
    ),
    released="Mixtral 8x7B and 8x22B",
    tiny=({"num_local_experts": 4},),
)
