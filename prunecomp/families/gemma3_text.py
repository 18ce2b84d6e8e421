"""Gemma 3, text only; norms as in Gemma 2, five sliding layers to one full."""

from dataclasses import replace

from prunecomp.families import gemma2

FAMILY = replace(
    gemma2.FAMILY,
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    released="Gemma 3 (text)",
)
