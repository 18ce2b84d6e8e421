"""StableLM: LayerNorm; attention and MLP in parallel in some sizes."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="stablelm",
    architectures=("StableLmForCausalLM",),
    final_norm=("model.norm.weight", "model.norm.bias"),
    released="StableLM 2, StableLM 3B",
    tiny=({}, {"use_parallel_residual": True}),
)
