"""EXAONE 4: norms as in OLMo 2; ``layer_types`` also says which layers rotate."""

from prunecomp.families.base import UNNORMED_READERS, ModelFamily

FAMILY = ModelFamily(
    model_type="exaone4",
    architectures=("Exaone4ForCausalLM",),
    writers=(
        "post_attention_layernorm.weight",
        "post_feedforward_layernorm.weight",
    ),
    readers=UNNORMED_READERS,
    others=("self_attn.q_norm", "self_attn.k_norm", "self_attn.o_proj", "mlp.down_proj"),
    released="EXAONE 4",
    tiny=(
        {"sliding_window": 6, "sliding_window_pattern": 3},
        # 1.2B: without any window, all layers rotate
        {
            "tie_word_embeddings": True,
            "sliding_window": None,
            "layer_types": ["full_attention"] * 6,
        },
    ),
)
