"""GLM-4 0414: a norm stands behind each sub-block.

``post_attention_layernorm`` is the norm in front of the MLP; it is not touched.
"""

from prunecomp.families._rules import ExtraLayers
from prunecomp.families.base import ATTENTION_INSIDE, LAYER_TYPES, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="glm4",
    architectures=("Glm4ForCausalLM",),
    writers=("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ),
    released="GLM-4 0414",
    tiny=({"pad_token_id": 0},),
    rules=(
        LAYER_TYPES,
        ExtraLayers(),
    ),
)
