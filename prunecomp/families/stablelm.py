"""StableLM: LayerNorm; attention and MLP in parallel in some sizes."""

from prunecomp.families.base import ATTENTION_INSIDE, MLP_INSIDE, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="stablelm",
    architectures=("StableLmForCausalLM",),
    final_norm=("model.norm.weight", "model.norm.bias"),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        "self_attn.q_layernorm.norms.*",
        "self_attn.k_layernorm.norms.*",
        *MLP_INSIDE,
    ),
    released="StableLM 2, StableLM 3B",
    tiny=({}, {"use_parallel_residual": True}),
)
