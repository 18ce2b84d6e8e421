"""Tiny models as GGUF files, as llama.cpp's converter would write them.

Names and layouts are written down here from ``convert_hf_to_gguf.py`` of llama.cpp: rows of the
queries and keys of a Llama are interleaved, and the norms of a Gemma are stored as ``1 + w``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

DEPTH, CONTEXT = 4, 64
_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
_COMMON = {
    "vocab_size": 0, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": DEPTH,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
_SPECS: Mapping[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 16}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 16, "sliding_window": 8}),
    # what transformers does not read from a file has the value that it supposes
    "qwen3moe": (
        Qwen3MoeForCausalLM, Qwen3MoeConfig,
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
         "moe_intermediate_size": 768},
    ),
}  # fmt: skip
ARCHITECTURES = tuple(_SPECS)

_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp",
}  # fmt: skip
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def sentencepiece() -> dict[str, Any]:
    """A vocabulary of letters, some merges and all bytes, with scores, as of Llama 2 and Gemma."""
    special = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<turn>", 0.0, 4)]
    pieces = ["th", "in", "the", "▁t", "▁the", "▁th", "▁a", "er", "on", "▁i"]
    letters = ["▁", *"etaoinshrdlucmfwypvbgkjqxz.,ETAS"]
    tokens = [
        *special,
        *((f"<0x{i:02X}>", 0.0, 6) for i in range(256)),
        *((piece, -float(i), 1) for i, piece in enumerate(pieces)),
        *((letter, -100.0 - i, 1) for i, letter in enumerate(letters)),
    ]
    return {
        "model": "llama", "tokens": [t for t, _, _ in tokens], "scores": [s for _, s, _ in tokens],
        "types": [k for _, _, k in tokens], "bos": 1, "eos": 2, "unk": 0,
    }  # fmt: skip


def byte_level() -> dict[str, Any]:
    """A vocabulary of bytes with merges, as of GPT-2 and SmolLM2."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["t h", "i n", "th e", "Ġ t", "h e", "Ġt he", "o n"]
    tokens = ["<|end|>", "<|start|>", "<|stop|>", *alphabet, *(m.replace(" ", "") for m in merges)]
    return {
        "model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": merges,
        "types": [3] * 3 + [1] * (len(tokens) - 3), "bos": 1, "eos": 2, "unk": 0,
    }  # fmt: skip


def model_of(architecture: str, vocabulary: Mapping[str, Any], **changes: Any):
    """A random model, fp32, whose weights are all exact in bfloat16."""
    model_class, config_class, options = _SPECS[architecture]
    torch.manual_seed(5)
    sizes = {**_COMMON, "vocab_size": len(vocabulary["tokens"])}
    model = model_class(config_class(**{**sizes, **options, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_((torch.randn_like(parameter) * 0.1) + (architecture != "gemma2"))
            else:
                parameter.normal_(0.0, 0.3 if "embed" in name else parameter.shape[-1] ** -0.5)
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return model.requires_grad_(False)


def stored(model: torch.nn.Module, architecture: str) -> dict[str, np.ndarray]:
    """The tensors of the file by name, float32."""
    config, found = model.config, {}
    layer_names = {**_LAYER, **(_GEMMA if architecture == "gemma2" else {})}
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    for name, tensor in state.items():
        value, (module, _, last) = tensor.float().numpy(), name.rpartition(".")
        if module in _OUTSIDE:
            place = _OUTSIDE[module]
        else:
            number, _, inner = module.removeprefix("model.layers.").partition(".")
            if inner == "mlp.experts":
                found |= _experts(f"blk.{number}", last, value)
                continue
            place = f"blk.{number}.{layer_names[inner]}"
            if architecture == "llama" and inner in {"self_attn.q_proj", "self_attn.k_proj"}:
                heads = config.num_attention_heads
                if "k_proj" in inner:
                    heads = config.num_key_value_heads
                value = _interleaved(value, heads)
        if architecture == "gemma2" and "norm" in place:
            value = 1.0 + value
        found[f"{place}.{last}"] = np.ascontiguousarray(value)
    return found


def _experts(block: str, name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    if name == "down_proj":
        return {f"{block}.ffn_down_exps.weight": value}
    gate, up = np.split(value, 2, axis=1)
    return {f"{block}.ffn_gate_exps.weight": gate.copy(), f"{block}.ffn_up_exps.weight": up.copy()}


def _interleaved(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows r and r + half of each head become neighbours."""
    size = value.shape[0] // heads
    order = [
        head * size + half * (size // 2) + row
        for head in range(heads) for row in range(size // 2) for half in range(2)
    ]  # fmt: skip
    return value[order]


def _metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head = getattr(config, "head_dim", None)
    if head:
        writer.add_rope_dimension_count(head)
        writer.add_key_length(head)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "num_experts", None):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def _tokenizer(writer: gguf.GGUFWriter, vocabulary: Mapping[str, Any]) -> None:
    writer.add_tokenizer_model(vocabulary["model"])
    if "pre" in vocabulary:
        writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    if "scores" in vocabulary:
        writer.add_token_scores(vocabulary["scores"])
    if "merges" in vocabulary:
        writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(vocabulary["bos"])
    writer.add_eos_token_id(vocabulary["eos"])
    writer.add_unk_token_id(vocabulary["unk"])
    writer.add_chat_template(_TEMPLATE)


def random_blocks(shape: tuple[int, ...], kind: Q) -> np.ndarray:
    """Bytes [..., row bytes] of a quantisation that nobody here can compute, but read."""
    values, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rows, blocks = int(np.prod(shape[:-1])), shape[-1] // values
    data = np.random.default_rng(7).integers(0, 256, (rows, blocks, nbytes), dtype=np.uint8)
    half = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
    places = {Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,), Q.Q2_K: (80, 82), Q.Q3_K: (108,)}
    for place in places[kind]:
        data[:, :, place : place + 2] = half
    return data.reshape(*shape[:-1], blocks * nbytes)


def write(
    path: Path,
    model: torch.nn.Module,
    architecture: str,
    vocabulary: Mapping[str, Any],
    *,
    kind: Q = Q.F32,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
) -> Path:
    """Writes `model`; matrices are of `kind`, or of Q8_0 where their rows are too short for it.

    Args:
        more: adds metadata, or tensors.
        change: changes the tensors before they are written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    _metadata(writer, model.config)
    _tokenizer(writer, vocabulary)
    more(writer)
    tensors = stored(model, architecture)
    change(tensors)
    for name, value in tensors.items():
        if value.ndim == 1:
            writer.add_tensor(name, value)
            continue
        own = kind if value.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Q.Q8_0
        if kind.name.endswith("_K") and own == kind:
            data = random_blocks(value.shape, own)
        else:
            data = gguf.quantize(value, own)
        writer.add_tensor(name, data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
