"""StarCoder2: LayerNorm, biases everywhere."""

from prunecomp.families.base import ATTENTION_INSIDE, NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    writers=(
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.c_proj.weight",
        "mlp.c_proj.bias",
    ),
    others=(*NORMS, *ATTENTION_INSIDE, "mlp.c_fc"),
    final_norm=("model.norm.weight", "model.norm.bias"),
    tied_by_default=True,
    released="StarCoder2",
    tiny=({"sliding_window": 6},),
)
