"""Llama and what is published as Llama (TinyLlama, Yi, SmolLM 1/2, ...)."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(model_type="llama", architectures=("LlamaForCausalLM",))
