"""Llama, and what is published as Llama (TinyLlama, Yi, SmolLM 1 and 2, ...)."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    released="Llama 1 to 3.3, TinyLlama, Yi, SmolLM 1 and 2",
    tiny=({}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
)
