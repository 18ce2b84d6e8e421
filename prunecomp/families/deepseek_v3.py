"""DeepSeek-V3: what writes to the stream, and what its config says of depth, are as in V2."""

from dataclasses import replace

from prunecomp.families import deepseek_v2

FAMILY = replace(
    deepseek_v2.FAMILY,
    model_type="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    released="DeepSeek-V3, R1",
)
