"""GPT-J: attention and MLP in parallel, a bias on the head."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="gptj",
    architectures=("GPTJForCausalLM",),
    layers="transformer.h",
    base_prefix="transformer.",
    embeddings=("transformer.wte.weight",),
    embedding="transformer.wte.weight",
    writers=("attn.out_proj.weight", "mlp.fc_out.weight", "mlp.fc_out.bias"),
    others=("ln_1", "attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"),
    final_norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
    depth_key="n_layer",
    released="GPT-J 6B",
    tiny=({"rotary_dim": 4},),
)
