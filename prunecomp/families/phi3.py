"""Phi-3, Phi-3.5 and Phi-4: one projection makes queries, keys and values."""

from prunecomp.families.base import NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="phi3",
    architectures=("Phi3ForCausalLM",),
    others=(*NORMS, "self_attn.qkv_proj", "mlp.gate_up_proj"),
    released="Phi-3, Phi-3.5 mini, Phi-4",
    tiny=({"pad_token_id": 0},),
)
