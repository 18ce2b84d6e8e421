"""BLOOM: a norm on the embedding starts the stream, so a tied head is never touched."""

from prunecomp.families._rules import Requires
from prunecomp.families.base import NORMS, ModelFamily

FAMILY = ModelFamily(
    model_type="bloom",
    architectures=("BloomForCausalLM",),
    layers="transformer.h",
    base_prefix="transformer.",
    embeddings=(
        "transformer.word_embeddings_layernorm.weight",
        "transformer.word_embeddings_layernorm.bias",
    ),
    embedding="transformer.word_embeddings.weight",
    writers=(
        "self_attention.dense.weight",
        "self_attention.dense.bias",
        "mlp.dense_4h_to_h.weight",
        "mlp.dense_4h_to_h.bias",
    ),
    others=(*NORMS, "self_attention.query_key_value", "mlp.dense_h_to_4h"),
    final_norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
    depth_key="n_layer",
    tied_by_default=True,
    released="BLOOM, BLOOMZ",
    rules=(
        Requires(
            "apply_residual_connection_post_layernorm",
            False,
            "the stream itself passes a norm; no factor can be folded behind it",
        ),
    ),
)
