"""Ministral 8B (2410): sliding and full attention in turns, told by ``layer_types``."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="ministral",
    architectures=("MinistralForCausalLM",),
    released="Ministral 8B",
    tiny=(
        {
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        },
    ),
)
