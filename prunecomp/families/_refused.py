"""Types of models that are refused for a reason of their own, found in their code in transformers.

What is neither here nor in a family's file has not been looked at, and is refused without a
reason. Groups share a reason; the tests compare them with what transformers says of each type.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

ENCODER_DECODER = (
    "an encoder-decoder: its decoder layers also read what an encoder wrote, which no factor on "
    "the decoder's stream repairs; only decoder-only language models can be compressed"
)
ENCODER = (
    "an encoder, or a decoder built from one, with norms on the stream itself, behind which no "
    "factor can be folded"
)
WRAPPER = (
    "a model for more than text: its language model is one part, with a config nested in another; "
    "compress a text-only checkpoint of the language model"
)
WRAPPER_OF_UNSUPPORTED = (
    "a model for more than text, whose language model is of a type that is not supported by "
    "itself either"
)
SHARED_BLOCK = (
    "one block of attention is shared by several layers, so a layer cannot go or be scaled alone"
)

ENCODER_DECODERS = (
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led",
    "longt5", "m2m_100", "marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x",
    "plbart", "prophetnet", "switch_transformers", "t5", "t5gemma", "umt5", "whisper",
)  # fmt: skip
ENCODERS = (
    "albert", "bert", "camembert", "distilbert", "electra", "ernie", "megatron-bert", "mpnet",
    "roberta", "roformer", "xlm-roberta", "xmod",
)  # fmt: skip
#: By the type of the language model that transformers gives them: supported, and not.
WRAPPERS = (
    "aya_vision", "cohere2_vision", "deepseek_vl", "gemma3", "idefics2", "idefics3", "internvl",
    "janus", "llava", "llava_next", "llava_onevision", "mistral3", "ovis2", "paligemma",
    "qwen2_audio", "smolvlm", "video_llava", "vipllava", "voxtral",
)  # fmt: skip
WRAPPERS_OF_UNSUPPORTED = (
    "aria", "ernie4_5_vl_moe", "gemma3n", "gemma4", "glm4v", "glm4v_moe", "lfm2_vl", "llama4",
    "mllama", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe",
    "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe",
)  # fmt: skip

#: ``model_type`` of config.json -> why it is refused.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(ENCODER_DECODERS, ENCODER_DECODER),
    **dict.fromkeys(ENCODERS, ENCODER),
    **dict.fromkeys(WRAPPERS, WRAPPER),
    **dict.fromkeys(WRAPPERS_OF_UNSUPPORTED, WRAPPER_OF_UNSUPPORTED),
    "diffllama": (
        "each layer's attention holds a constant that transformers computes from the layer's "
        "number, and the number changes"
    ),
    "gemma3n_text": (
        "the stream is kept in several copies, layers use the keys and values of others, and two "
        "tensors outside the layers hold a slice for each of them"
    ),
    "gemma4_text": (
        "layers use the keys and values of others, a tensor outside the layers holds a slice for "
        "each of them, and the last layer must be one with full attention"
    ),
    "jamba": (
        "which layers have attention, and which have experts, follows from their number by fixed "
        "periods, so its config cannot say what is left after a removal"
    ),
    "minimax": "a norm stands on the stream itself; no factor can be folded behind it",
    "openai-gpt": "a norm stands on the stream itself; no factor can be folded behind it",
    "rwkv": (
        "transformers divides weights and stream by powers of two that follow from the layer's "
        "number, and the number changes"
    ),
    "zamba": SHARED_BLOCK,
    "zamba2": SHARED_BLOCK,
}


def refusal(config: Mapping[str, Any], supported: Container[str]) -> str | None:
    """Why a model of this config, of no supported type, is refused; None where nobody knows.

    Args:
        supported: types that are.
    """
    model_type, part = config.get("model_type"), config.get("text_config")
    reason = REFUSED.get(model_type) if isinstance(model_type, str) else None
    if reason is not None and reason not in (WRAPPER, WRAPPER_OF_UNSUPPORTED):
        return reason
    if reason is None and config.get("is_encoder_decoder") is True:
        return ENCODER_DECODER
    if isinstance(part, dict) and isinstance(part.get("model_type"), str):
        return WRAPPER if part["model_type"] in supported else WRAPPER_OF_UNSUPPORTED
    return WRAPPER if reason is None and isinstance(part, dict) else reason
