"""``genai_config.json``, with which onnxruntime-genai finds its way in an exported decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "genai_config.json"


def write_genai_config(directory: Path, config: Any) -> None:
    """Writes the file beside the graph.

    Source: onnxruntime-genai's own builder, whose fields these are; the names of inputs and
    outputs are those of `exporters.onnx`.
    """
    heads = config.num_attention_heads
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
    }
    end = config.eos_token_id if config.eos_token_id is not None else 0
    first = end[0] if isinstance(end, list) else end
    context = config.max_position_embeddings
    document = {
        "model": {
            "type": config.model_type,
            "bos_token_id": first if config.bos_token_id is None else config.bos_token_id,
            "eos_token_id": end,
            "pad_token_id": first if config.pad_token_id is None else config.pad_token_id,
            "vocab_size": config.vocab_size,
            "context_length": context,
            "decoder": decoder,
        },
        "search": {
            "do_sample": False, "early_stopping": True, "max_length": context, "min_length": 0,
            "num_beams": 1, "num_return_sequences": 1, "past_present_share_buffer": False,
            "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 1, "top_p": 1.0,
            "length_penalty": 1.0, "diversity_penalty": 0.0, "no_repeat_ngram_size": 0,
        },
    }  # fmt: skip
    (directory / FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
