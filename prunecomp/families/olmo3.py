"""OLMo 3: as OLMo 2, with three sliding layers to one full."""

from dataclasses import replace

from prunecomp.families import olmo2

FAMILY = replace(
    olmo2.FAMILY,
    model_type="olmo3",
    architectures=("Olmo3ForCausalLM",),
    released="OLMo 3",
    tiny=({"sliding_window": 6},),
)
