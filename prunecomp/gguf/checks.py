"""Whether a sound GGUF file is a model, whole and with a vocabulary."""

from __future__ import annotations

import math
import re
from typing import Any

from prunecomp.errors import CheckpointError, UnsupportedModelError
from prunecomp.gguf.header import GgufHeader

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
#: What files hold that are not a model, by ``general.type`` and by ``general.architecture``.
_OTHERS = {
    "adapter": "a LoRA adapter, which is merged into its model first",
    "mmproj": "the image part of a model; name the file of the text part",
    "clip": "the image part of a model; name the file of the text part",
    "imatrix": "an importance matrix; name the file of the model",
    "controlvector": "a control vector; name the file of the model",
    "vocab": "a vocabulary without weights; name the file of the model",
}
_TOKENS = "tokenizer.ggml.tokens"
_NO_VOCABULARY = {None, "none", "no_vocab"}


def check(header: GgufHeader) -> None:
    """Refuses what is not one whole model with the vocabulary of its tokens.

    Raises:
        UnsupportedModelError: something else than a model, or a part of one.
        CheckpointError: the file contradicts itself.
    """
    _check_kind(header)
    _check_vocabulary(header)
    _check_numbers(header)
    _check_depth(header)


def _check_kind(header: GgufHeader) -> None:
    metadata = header.metadata
    for said in (metadata.get("general.type", "model"), header.architecture):
        if isinstance(said, str) and said in _OTHERS:
            raise UnsupportedModelError(f"{header.path}: is {_OTHERS[said]}")
    parts = metadata.get("split.count", 1)
    if (match := _PART.search(header.path.stem)) and parts == 1:
        parts = int(match[2])
    if parts != 1:
        raise UnsupportedModelError(
            f"{header.path}: is one of {parts} parts of a model; put them together with "
            "`llama-gguf-split --merge`, and name the whole"
        )
    if not header.tensors:
        raise UnsupportedModelError(
            f"{header.path}: holds no weights{' but a vocabulary' * (_TOKENS in metadata)}; name "
            "the file of the model"
        )


def _check_vocabulary(header: GgufHeader) -> None:
    where, metadata = header.path, header.metadata
    tokens = metadata.get(_TOKENS)
    if metadata.get("tokenizer.ggml.model") in _NO_VOCABULARY or not tokens:
        raise CheckpointError(
            f"{where}: has tokens without a vocabulary (tokenizer.ggml.model and {_TOKENS}); take "
            "a file with one"
        )
    for key, kind in (("tokens", str), ("scores", float), ("token_type", int), ("merges", str)):
        name = f"tokenizer.ggml.{key}"
        found = metadata.get(name)
        if found is None:
            continue
        if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
            raise _odd(where, name, "no list of the kind that it should be")
        if key != "merges" and len(found) != len(tokens):
            raise _odd(where, name, f"{len(found)} long for {len(tokens)} tokens")
    _check_special_tokens(header, len(tokens))


def _check_special_tokens(header: GgufHeader, count: int) -> None:
    where, metadata = header.path, header.metadata
    for key, number in metadata.items():
        if re.fullmatch(r"tokenizer\.ggml\.\w+_token_id", key) and not (
            type(number) is int and 0 <= number < count
        ):
            raise _odd(where, key, f"{number!r}, and there are {count} tokens")
    for key in ("add_bos_token", "add_eos_token"):
        if not isinstance(metadata.get(f"tokenizer.ggml.{key}", False), bool):
            raise _odd(where, f"tokenizer.ggml.{key}", "neither true nor false")
    if not isinstance(metadata.get("tokenizer.chat_template", ""), str):
        raise _odd(where, "tokenizer.chat_template", "no text")


def _odd(where: Any, key: str, what: str) -> CheckpointError:
    return CheckpointError(f"{where}: damaged: {key} is {what[:100]}; download it again")


def _check_numbers(header: GgufHeader) -> None:
    for key, value in header.metadata.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _odd(header.path, key, str(value))


def _check_depth(header: GgufHeader) -> None:
    """A depth that is not that of the tensors; of a wrong one, a model could take hours to make."""
    key = f"{header.architecture}.block_count"
    depth = header.metadata.get(key)
    found = {int(m[1]) for t in header.tensors if (m := re.match(r"blk\.(\d{1,6})\.", t.name))}
    if type(depth) is not int or found != set(range(depth if depth < 10**6 else 0)):
        raise _odd(header.path, key, f"{depth!r}, and the tensors are of {len(found)} layers")
