"""GPT-OSS in bf16; all experts of a layer are one tensor, with a bias per expert.

The published MXFP4 files have power-of-two scales, into which a factor cannot be folded exactly.
"""

from prunecomp.families.base import ATTENTION_INSIDE, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="gpt_oss",
    architectures=("GptOssForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.experts.down_proj",
        "mlp.experts.down_proj_bias",
    ),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        "self_attn.sinks",
        "mlp.router",
        "mlp.experts.gate_up_proj",
        "mlp.experts.gate_up_proj_bias",
    ),
    removal_unit=2,
    removal_reason=(
        "vLLM gives every second layer a sliding window by its number, whatever layer_types says"
    ),
    released="GPT-OSS 20B and 120B (converted to bf16)",
)
