"""``genai_config.json``, with which onnxruntime-genai finds its way in an exported decoder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from exporters._onnx_rope import switches
from prunecomp.checkpoint.index import read_json
from prunecomp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

FILE = "genai_config.json"
#: The length, in tokens, above which the runtime reads a text anew for its type "phi3".
PHI3_SWITCH = 4096
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: Where configs say how long a text may be; models without a limit get a practical one.
CONTEXT_KEYS, UNLIMITED_TOKENS = ("max_position_embeddings", "n_positions", "seq_length"), 32768


def _caches(outputs: Iterable[Any]) -> list[tuple[int, int]]:
    """Heads, and size of a head, of each key and each value that the graph gives."""
    axes = [value.type.tensor_type.shape.dim for value in outputs if value.name != "logits"]
    return [(shape[1].dim_value, shape[3].dim_value) for shape in axes]


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is none."""
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no JSON object; restore the file")
    return found


def _is_token(value: Any, vocabulary: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary


def _token(directory: Path, name: str, vocabulary: int) -> Any:
    """What the files say of a token: one, for the end also a list; None where neither does.

    ``generation_config.json`` comes first, as in transformers; one that does not name a token, or
    names none, leaves it to ``config.json``.
    """
    for file in ("generation_config.json", "config.json"):
        found = _object(directory / file).get(name)
        if found is None or found == []:
            continue
        if name == "pad_token_id" and found == -1:  # what LLaMA's first configs say for none
            continue
        many = isinstance(found, list) and name == "eos_token_id"
        if not all(_is_token(each, vocabulary) for each in (found if many else [found])):
            raise CheckpointError(
                f"{directory / file}: {name} is {shorten(repr(found), 60, placeholder=' ...')}, "
                f"which is no token of the vocabulary of {vocabulary}; correct it"
            )
        return found
    return None


def ends(directory: Path, model: nn.Module) -> dict[str, Any]:
    """The tokens with which texts begin, end and are padded; the runtime takes 0 for none.

    Raises:
        CheckpointError: a file names what is no token.
    """
    named = {name: _token(directory, name, model.config.vocab_size) for name in TOKENS}
    end = named["eos_token_id"]
    first = (end[0] if isinstance(end, list) else end) or 0
    fallback = {"bos_token_id": first, "eos_token_id": 0, "pad_token_id": first}
    return {name: fallback[name] if found is None else found for name, found in named.items()}


def runtime_type(model: nn.Module) -> str:
    """What the runtime takes the model for: "decoder", which has no peculiarities, where it can.

    As "phi3" it reads a text anew when it grows beyond 4096 tokens, where the frequencies of
    Phi-3's long versions and of Phi-4-mini change.
    """
    long = model.config.model_type == "phi3" and switches(model) == [PHI3_SWITCH]
    return "phi3" if long else "decoder"


def write_genai_config(
    directory: Path, graph: Path, model: nn.Module, tokens: Mapping[str, Any]
) -> bool:
    """Writes the file into `directory`, unless the runtime cannot hold this cache.

    It has one size of heads for all layers, for keys and values alike.

    Args:
        tokens: what `ends` found.

    Source: onnxruntime-genai's own builder, whose fields these are; the names of inputs and
    outputs are those of `exporters.onnx`.
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
            "type": runtime_type(model),
            **tokens,
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
