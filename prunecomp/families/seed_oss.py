"""Seed-OSS."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="seed_oss",
    architectures=("SeedOssForCausalLM",),
    released="Seed-OSS 36B",
    tiny=({"attention_out_bias": True},),
)
