"""Tiny random models of the real classes, in which layers differ clearly.

Everything that could be neglected by mistake is there: biases on the writers, norm weights that
are not one, a rectangular output projection, grouped heads, windows shorter than the samples.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 97
SAMPLES, TOKENS = 6, 16

#: Writers of layer i are scaled by these, so that layers matter differently.
STRENGTHS = (1.0, 0.7, 0.8, 0.6, 0.9, 0.75, 1.1, 0.85)
DEPTH = len(STRENGTHS)

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-12, "initializer_range": 0.2,
    "attn_implementation": "eager", "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip

_MIXED = ["full_attention", "sliding_attention"]
QWEN2_LAYER_TYPES = [_MIXED[i in {1, 2, 5, 7}] for i in range(DEPTH)]

_SPECS = {
    "llama-bias": (
        LlamaForCausalLM, LlamaConfig, 3,
        {"head_dim": 12, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, 6, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, 2, {"head_dim": 8, "sliding_window": 6}),
    "qwen2": (
        Qwen2ForCausalLM, Qwen2Config, 2,
        {
            "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3,
            "layer_types": QWEN2_LAYER_TYPES,
        },
    ),
    "qwen3-tied": (
        Qwen3ForCausalLM, Qwen3Config, 1,
        {
            "head_dim": 12, "tie_word_embeddings": True, "use_sliding_window": True,
            "sliding_window": 7, "max_window_layers": 5,
        },
    ),
}  # fmt: skip
NAMES = tuple(_SPECS)
TIED = tuple(name for name in NAMES if "tied" in name)
UNTIED = tuple(name for name in NAMES if "tied" not in name)


def build(name: str, *, seed: int | None = None, embedding_std: float = 0.5, **overrides):
    """The model called `name`, fp32, in eval mode; `overrides` are of its config."""
    model_class, config_class, own_seed, options = _SPECS[name]
    torch.manual_seed(own_seed if seed is None else seed)
    model = model_class(config_class(**{**_COMMON, **options, **overrides})).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.6, 1.4)
            elif parameter_name.endswith("bias"):
                parameter.normal_(0.0, 1.5 * model.config.initializer_range)
        model.model.embed_tokens.weight.normal_(0.0, embedding_std)
        if model.config.tie_word_embeddings:
            model.model.norm.weight.mul_(0.3)  # else the head's unit rows give huge logits
        for strength, layer in zip(STRENGTHS, model.model.layers, strict=False):
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.mul_(strength)
                if writer.bias is not None:
                    writer.bias.mul_(strength)
    return model.requires_grad_(False)


def write(model, directory: Path, **options) -> Path:
    """Saves as stock transformers does; returns the directory."""
    model.save_pretrained(directory, **options)
    return directory


def tokens(samples: int = SAMPLES, length: int = TOKENS, *, seed: int = 7) -> torch.Tensor:
    """Random token ids [samples, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (samples, length), generator=generator)


def byte_tokenizer():
    """A tokenizer of one token per UTF-8 byte, id 256 for the end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
