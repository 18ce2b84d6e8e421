"""GLM-4.5 and 4.6: what writes to the stream, and the dense layers first, are as in DeepSeek-V2."""

from dataclasses import replace

from prunecomp.families import deepseek_v2

FAMILY = replace(
    deepseek_v2.FAMILY,
    model_type="glm4_moe",
    architectures=("Glm4MoeForCausalLM",),
    released="GLM-4.5, GLM-4.5-Air, GLM-4.6",
    others=(
        *deepseek_v2.FAMILY.others,
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.q_norm",
        "self_attn.k_norm",
    ),
    tiny=({},),
)
