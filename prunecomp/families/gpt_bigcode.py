"""GPT-BigCode: as GPT-2, with one key and value head."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="gpt_bigcode",
    architectures=("GPTBigCodeForCausalLM",),
    layers="transformer.h",
    base_prefix="transformer.",
    embeddings=("transformer.wte.weight", "transformer.wpe.weight"),
    embedding="transformer.wte.weight",
    writers=("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
    final_norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
    depth_key="n_layer",
    tied_by_default=True,
    released="StarCoder, SantaCoder",
)
