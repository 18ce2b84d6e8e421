"""GPT-BigCode: as GPT-2, with one key and value head."""

from dataclasses import replace

from prunecomp.families import gpt2
from prunecomp.families.base import LAYER_TYPES

FAMILY = replace(
    gpt2.FAMILY,
    model_type="gpt_bigcode",
    architectures=("GPTBigCodeForCausalLM",),
    released="StarCoder, SantaCoder",
    rules=(LAYER_TYPES,),
)
