"""Granite 3 dense; ``residual_multiplier`` is common to all that writes to the stream."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="granite",
    architectures=("GraniteForCausalLM",),
    released="Granite 3 dense",
    tiny=(
        {
            "residual_multiplier": 0.6,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.3,
        },
        {"tie_word_embeddings": True},
    ),
)
