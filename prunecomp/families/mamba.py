"""Mamba: a state-space mixer is all that a layer has, behind one norm."""

from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="mamba",
    architectures=("MambaForCausalLM",),
    layers="backbone.layers",
    base_prefix="backbone.",
    embeddings=("backbone.embeddings.weight",),
    embedding="backbone.embeddings.weight",
    writers=("mixer.out_proj.weight", "mixer.out_proj.bias"),
    others=(
        "norm",
        "mixer.A_log",
        "mixer.D",
        "mixer.conv1d",
        "mixer.dt_proj",
        "mixer.in_proj",
        "mixer.x_proj",
    ),
    final_norm=("backbone.norm_f.weight",),
    tied_by_default=True,
    released="Mamba 130M to 2.8B (converted to transformers)",
    tiny=({}, {"use_bias": True, "tie_word_embeddings": False}),
)
