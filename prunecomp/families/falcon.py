"""Falcon, both decoder generations; parallel or sequential, rotary or ALiBi."""

from prunecomp.families.base import NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="falcon",
    architectures=("FalconForCausalLM",),
    layers="transformer.h",
    base_prefix="transformer.",
    embeddings=("transformer.word_embeddings.weight",),
    embedding="transformer.word_embeddings.weight",
    writers=(
        "self_attention.dense.weight",
        "self_attention.dense.bias",
        "mlp.dense_4h_to_h.weight",
        "mlp.dense_4h_to_h.bias",
    ),
    others=(
        *NORMS,
        "ln_attn",
        "ln_mlp",
        "self_attention.query_key_value",
        "mlp.dense_h_to_4h",
    ),
    final_norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
    tied_by_default=True,
    released="Falcon 1B to 180B, Falcon 2",
    tiny=(
        {},
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"parallel_attn": False, "alibi": True, "bias": True, "multi_query": False},
    ),
)
