"""Granite 3 MoE; all experts of a layer are one tensor."""

from prunecomp.families.base import ATTENTION_INSIDE, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "block_sparse_moe.output_linear.weight",
        "block_sparse_moe.experts.down_proj",
    ),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        "block_sparse_moe.input_linear",
        "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.router",
        "block_sparse_moe.router.layer",
    ),
    released="Granite 3 1B-A400M, 3B-A800M",
    tiny=({"residual_multiplier": 0.6, "embedding_multiplier": 3.0}, {"tie_word_embeddings": True}),
)
