"""``genai_config.json``, with which onnxruntime-genai finds its way in an exported decoder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FILE = "genai_config.json"
#: Where configs say how long a text may be; models without a limit get a practical one.
CONTEXT_KEYS, UNLIMITED_TOKENS = ("max_position_embeddings", "n_positions", "seq_length"), 32768


def _caches(outputs: Iterable[Any]) -> list[tuple[int, int]]:
    """Heads, and size of a head, of each key and each value that the graph gives."""
    axes = [value.type.tensor_type.shape.dim for value in outputs if value.name != "logits"]
    return [(shape[1].dim_value, shape[3].dim_value) for shape in axes]


def _ends(model: nn.Module) -> dict[str, Any]:
    """The tokens with which texts begin, end and are padded; the runtime takes 0 for none."""
    config, generation = model.config, model.generation_config

    def token(name: str) -> Any:
        found = getattr(generation, name, None)
        return getattr(config, name, None) if found is None else found

    end = token("eos_token_id")
    first = (end[0] if isinstance(end, list) else end) or 0
    begin, pad = token("bos_token_id"), token("pad_token_id")
    return {
        "bos_token_id": first if begin is None else begin,
        "eos_token_id": 0 if end is None else end,
        "pad_token_id": first if pad is None else pad,
    }


def write_genai_config(directory: Path, graph: Path, model: nn.Module) -> bool:
    """Writes the file into `directory`, unless the runtime cannot hold this cache.

    It has one size of heads for all layers, for keys and values alike.

    Source: onnxruntime-genai's own builder, whose fields these are; the names of inputs and
    outputs are those of `exporters.onnx`. Its type "decoder" is the one without peculiarities.
    """
    import onnx

    found, config = onnx.load(graph, load_external_data=False).graph, model.config
    caches = _caches(found.output)
    if len(set(caches)) != 1:
        return False
    cached_heads, head_size = caches[0]
    inputs = [value.name for value in found.input]
    context = next(
        (n for key in CONTEXT_KEYS if isinstance(n := getattr(config, key, None), int)),
        UNLIMITED_TOKENS,
    )
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph.name,
        "head_size": head_size,
        "hidden_size": config.hidden_size,
        "inputs": {
            **{name: name for name in inputs if not name.startswith("past_key_values")},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": len(caches) // 2,
        "num_key_value_heads": cached_heads,
    }
    document = {
        "model": {
            "type": "decoder",
            **_ends(model),
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
    return True
