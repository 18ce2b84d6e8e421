"""OPT with its norms in front (all sizes but 350m).

Learned positions start the stream together with the tokens.
"""

from prunecomp.families._rules import Requires
from prunecomp.families.base import ATTENTION_INSIDE, ModelFamily

FAMILY = ModelFamily(
    model_type="opt",
    architectures=("OPTForCausalLM",),
    layers="model.decoder.layers",
    embeddings=("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"),
    embedding="model.decoder.embed_tokens.weight",
    writers=("self_attn.out_proj.weight", "self_attn.out_proj.bias", "fc2.weight", "fc2.bias"),
    others=("self_attn_layer_norm", "final_layer_norm", *ATTENTION_INSIDE, "fc1"),
    final_norm=("model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"),
    tied_by_default=True,
    released="OPT 125m to 66b (not 350m), Galactica",
    rules=(
        Requires(
            "do_layer_norm_before",
            True,
            "a norm stands on the stream itself (350m); no factor can be folded behind it",
        ),
        Requires(
            "_remove_final_layer_norm", False, "without a final norm the logits depend on scale"
        ),
    ),
)
