"""GPT-2: learned positions start the stream together with the tokens.

Its matrices are stored input first; a scalar does not mind.
"""

from prunecomp.families._rules import Requires
from prunecomp.families.base import ModelFamily

FAMILY = ModelFamily(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel",),
    layers="transformer.h",
    base_prefix="transformer.",
    embeddings=("transformer.wte.weight", "transformer.wpe.weight"),
    embedding="transformer.wte.weight",
    writers=("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
    others=("ln_1", "ln_2", "attn.c_attn", "mlp.c_fc"),
    final_norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
    depth_key="n_layer",
    tied_by_default=True,
    released="GPT-2, DistilGPT-2",
    tiny=({},),
    rules=(
        Requires(
            "scale_attn_by_inverse_layer_idx",
            False,
            "a layer's attention depends on its number, which changes; vLLM refuses it, too",
        ),
        Requires("add_cross_attention", False, "layers that read an encoder are not decoder-only"),
    ),
)
