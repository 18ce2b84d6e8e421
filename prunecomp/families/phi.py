"""Phi-1, 1.5 and 2: attention and MLP in parallel, a bias on the head."""

from prunecomp.families.base import ATTENTION_INSIDE, ModelFamily

FAMILY = ModelFamily(
    model_type="phi",
    architectures=("PhiForCausalLM",),
    writers=("self_attn.dense.weight", "self_attn.dense.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
    others=(
        "input_layernorm",
        *ATTENTION_INSIDE,
        "self_attn.q_layernorm",
        "self_attn.k_layernorm",
        "mlp.fc1",
    ),
    final_norm=("model.final_layernorm.weight", "model.final_layernorm.bias"),
    released="Phi-1, Phi-1.5, Phi-2",
)
