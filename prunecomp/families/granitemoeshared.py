"""Granite MoE with a shared expert."""

from prunecomp.families.base import ATTENTION_INSIDE, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="granitemoeshared",
    architectures=("GraniteMoeSharedForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "block_sparse_moe.output_linear.weight",
        "block_sparse_moe.experts.down_proj",
        "shared_mlp.output_linear.weight",
    ),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        "block_sparse_moe.input_linear",
        "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.router",
        "block_sparse_moe.router.layer",
        "shared_mlp.input_linear",
    ),
    released="Granite MoE with shared experts",
    tiny=({"shared_intermediate_size": 48},),
)
