"""Command-R7B and Command-A: as Cohere; ``layer_types`` also says which layers rotate."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="cohere2",
    architectures=("Cohere2ForCausalLM",),
    tied_by_default=True,
    released="Command-R7B, Command-A",
    tiny=({"sliding_window": 6},),
)
