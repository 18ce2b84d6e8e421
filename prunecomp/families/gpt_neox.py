"""GPT-NeoX and Pythia; parallel or sequential residual, the writers are the same."""

from prunecomp.families.base import NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    layers="gpt_neox.layers",
    base_prefix="gpt_neox.",
    embeddings=("gpt_neox.embed_in.weight",),
    embedding="gpt_neox.embed_in.weight",
    writers=(
        "attention.dense.weight",
        "attention.dense.bias",
        "mlp.dense_4h_to_h.weight",
        "mlp.dense_4h_to_h.bias",
    ),
    others=(*NORMS, "attention.query_key_value", "mlp.dense_h_to_4h"),
    final_norm=("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"),
    head="embed_out.weight",
    released="Pythia, GPT-NeoX 20B, Dolly",
    tiny=({}, {"use_parallel_residual": False}),
)
