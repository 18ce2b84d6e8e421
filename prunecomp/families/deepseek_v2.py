"""DeepSeek-V2: latent attention; dense layers first, then experts."""

from prunecomp.families._rules import ExtraLayers, FirstLayers
from prunecomp.families.base import LAYER_TYPES, ModelFamily

FAMILY = ModelFamily(
    model_type="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.down_proj.weight",
        "mlp.experts.*.down_proj.weight",
        "mlp.shared_experts.down_proj.weight",
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
