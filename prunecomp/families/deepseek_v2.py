"""DeepSeek-V2: latent attention; dense layers first, then experts."""

from prunecomp.families._rules import ExtraLayers, FirstLayers
from prunecomp.families.base import (
    ATTENTION_AND_MLP,
    EXPERT_WRITERS,
    EXPERTS_INSIDE,
    LAYER_TYPES,
    MLP_INSIDE,
    NORMS,
    ModelFamily,
)

FAMILY = ModelFamily(
    model_type="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    writers=(
        *ATTENTION_AND_MLP,
        *EXPERT_WRITERS,
        "mlp.shared_experts.down_proj.weight",
        "mlp.shared_experts.down_proj.bias",
    ),
    others=(
        *NORMS,
        "self_attn.q_proj",
        "self_attn.q_a_proj",
        "self_attn.q_a_layernorm",
        "self_attn.q_b_proj",
        "self_attn.kv_a_proj_with_mqa",
        "self_attn.kv_a_layernorm",
        "self_attn.kv_b_proj",
        *MLP_INSIDE,
        *EXPERTS_INSIDE,
        "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj",
    ),
    # head_dim repeats qk_rope_head_dim; 64 is the only size that vLLM's CPU kernels have
    tiny=({"head_dim": 64, "qk_rope_head_dim": 64, "num_key_value_heads": 4},),
    released="DeepSeek-V2, V2-Lite, Coder-V2",
    rules=(
        LAYER_TYPES,
        FirstLayers("first_k_dense_replace"),
        ExtraLayers(),
    ),
)
