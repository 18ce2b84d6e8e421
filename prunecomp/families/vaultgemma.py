"""VaultGemma: norms multiply by 1 + w, as in Gemma; none of them stands behind a sub-block."""

from prunecomp.families.base import ATTENTION_INSIDE, MLP_INSIDE, ModelFamily

FAMILY = ModelFamily(
    model_type="vaultgemma",
    architectures=("VaultGemmaForCausalLM",),
    others=("input_layernorm", "pre_feedforward_layernorm", *ATTENTION_INSIDE, *MLP_INSIDE),
    unit_offset=("model.norm.weight",),
    tied_by_default=True,
    released="VaultGemma 1B",
    tiny=({"sliding_window": 6, "query_pre_attn_scalar": 8},),
)
