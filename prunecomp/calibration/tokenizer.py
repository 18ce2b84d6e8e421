"""A model's tokenizer: its tokens of a text, and what it puts in front of every text by itself.

Many models expect one special token, the BOS, at the start of whatever they read, and compute
something else without it. Whether that is so is not told by a flag of the configuration, which
some tokenizers ignore; it is seen in what the tokenizer makes of a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from prunecomp.errors import UsageError

#: What every window begins with. ``auto``: what the tokenizer itself puts in front of a text.
#: ``each``: its BOS, also where it does not put it there. ``none``: nothing, as in published code.
BOS_MODES = ("auto", "each", "none")
#: Characters that are tokenised at once, and bytes of memory that a tokenizer takes for each.
PIECE, PER_CHARACTER = 1 << 16, 240
#: How far in front of its end a piece is cut at a better place.
_MARGIN = 1 << 12
#: Texts of which at least one has tokens in any vocabulary.
_PROBES = ("The cat, 12 dogs", "a b", "0", "x")
#: Between two words: there, tokens of the parts are the tokens of the whole.
_BETWEEN_WORDS = re.compile(r"[^\W\d_](?= [^\W\d_])")


def reason(error: Exception) -> str:
    """What another package has to say about it, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model directory, as transformers loads it; remote code is never run.

    Raises:
        UsageError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # a malformed file can raise anything in there
        raise UsageError(
            f"{directory}: cannot load its tokenizer ({reason(error)}); restore its files, or "
            "give the tokens as a .safetensors file"
        ) from error


def encode(tokenizer: Any, text: str | list[str]) -> Any:
    """Token ids without special tokens, and without the warning that a corpus is a long text."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def affixes(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids that the tokenizer puts in front of a text and behind it, as its encoding shows."""
    for probe in _PROBES:
        bare = encode(tokenizer, probe)
        if not bare:
            continue
        whole = list(tokenizer(probe, verbose=False)["input_ids"])
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
        return _special_ends(tokenizer, whole)
    return (), ()


def _special_ends(tokenizer: Any, whole: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens at both ends, where the tokens between them are others than without."""
    special = set(tokenizer.all_special_ids)
    inner = [i for i, token in enumerate(whole) if token not in special]
    if not inner:
        return (), ()
    return tuple(whole[: inner[0]]), tuple(whole[inner[-1] + 1 :])


def prefix_of(tokenizer: Any, bos: str, *, where: str) -> tuple[int, ...]:
    """The tokens that every window begins with.

    Args:
        bos: one of `BOS_MODES`.
        where: how to call the tokenizer in an error.

    Raises:
        UsageError: ``each``, and the tokenizer has no BOS.
    """
    if bos == "none":
        return ()
    if bos == "auto":
        return affixes(tokenizer)[0]
    if tokenizer.bos_token_id is None:
        raise UsageError(
            f"--bos each: the tokenizer of {where} has no BOS token; leave --bos away, and windows "
            "begin as the tokenizer itself begins a text"
        )
    return (int(tokenizer.bos_token_id),)


def _cut(text: str, start: int, stop: int) -> int:
    """The best place to cut at or before `stop`: between two words, before a space, or there."""
    first = max(start + 1, stop - _MARGIN)
    found = None
    for found in _BETWEEN_WORDS.finditer(text, first, stop):  # noqa: B007, the last one
        pass
    if found is not None:
        return found.end()
    space = text.rfind(" ", first, stop)
    return space if space > 0 else stop


def pieces(fragments: Iterable[str]) -> Iterator[str]:
    """The text that the fragments make up, in pieces of about `PIECE` characters."""
    text = ""
    for fragment in fragments:
        text += fragment
        start = 0
        while len(text) - start > PIECE:
            stop = _cut(text, start, start + PIECE)
            yield text[start:stop]
            start = stop
        text = text[start:]
    if text:
        yield text


def token_stream(tokenizer: Any, text: Iterable[str], *, characters: int, tokens: int) -> Any:
    """Tokens of a text, read as far as is needed: [tokens] int64.

    Args:
        text: fragments, one behind the other.
        characters: so many are enough, if they give so many
        tokens: as these.

    Returns None where there is nothing but white space.
    """
    found: list[torch.Tensor] = []
    read = count = 0
    blank = True
    for piece in pieces(text):
        blank = blank and piece.isspace()
        found.append(torch.tensor(encode(tokenizer, piece), dtype=torch.int32))
        read, count = read + len(piece), count + len(found[-1])
        if read >= characters and count >= tokens:
            break
    return None if blank else torch.cat(found).long()
