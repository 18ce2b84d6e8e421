"""Granite MoE with a shared expert."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="granitemoeshared",
    architectures=("GraniteMoeSharedForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "block_sparse_moe.output_linear.weight",
        "shared_mlp.output_linear.weight",
    ),
    released="Granite MoE with shared experts",
    tiny=({"shared_intermediate_size": 48},),
)
