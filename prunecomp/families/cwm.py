"""Code World Model; sliding and full attention told by ``layer_types``."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="cwm",
    architectures=("CwmForCausalLM",),
    released="CWM 32B",
    tiny=(
        {
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 2,
        },
    ),
)
