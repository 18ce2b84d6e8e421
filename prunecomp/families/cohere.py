"""Command-R: attention and MLP in parallel, behind one LayerNorm."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="cohere",
    architectures=("CohereForCausalLM",),
    tied_by_default=True,
    released="Command-R, Aya 23",
    tiny=({},),
)
