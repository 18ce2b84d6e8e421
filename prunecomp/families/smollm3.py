"""SmolLM3: some layers have no rotary embedding, told by ``no_rope_layers``."""

from prunecomp.families._rules import PerLayer
from prunecomp.families.base import LAYER_TYPES, ModelFamily

FAMILY = ModelFamily(
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    tied_by_default=True,
    released="SmolLM3",
    tiny=(
        {"pad_token_id": 0},
        {"pad_token_id": 0, "use_sliding_window": True, "sliding_window": 6},
    ),
    rules=(
        LAYER_TYPES,
        PerLayer("no_rope_layers"),
    ),
)
