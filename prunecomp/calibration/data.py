"""Calibration and evaluation tokens: where they come from, and proof of which they were.

A source is named by one string:

* a built-in name: ``python-stdlib``, ``prose`` (offline), ``wikitext-2``, ``c4`` (from the hub);
* a ``.txt`` file; a ``.jsonl`` file with one object per line, which holds a text or the messages of
  a conversation (`TextSource.field` and `TextSource.chat_field` name them);
* a ``.safetensors`` file that holds ``input_ids`` [samples, tokens], to repeat a run exactly;
* the id of a data set on the hub, with `config`, `split`, `field` and `chat_field`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prunecomp.calibration import token_file
from prunecomp.calibration.local_text import Reading
from prunecomp.calibration.sources import BUILT_IN, Chat, TextSource, open_source
from prunecomp.calibration.tokenizer import BOS_MODES, load_tokenizer, prefix_of
from prunecomp.calibration.windows import Shape, chat_windows, token_windows
from prunecomp.errors import UsageError

__all__ = [
    "BUILT_IN", "DEFAULT_SAMPLES", "DEFAULT_SEQ_LEN", "CalibrationSet", "TextSource",
    "load_tokens", "save_tokens",
]  # fmt: skip

DEFAULT_SAMPLES = 128
DEFAULT_SEQ_LEN = 2048


@dataclass(frozen=True)
class CalibrationSet:
    """Tokens, and everything that decided which.

    Attributes:
        input_ids: [samples, tokens] int64.
        source: what was named.
        seed: of the choice of samples.
        bos: one of `BOS_MODES`.
        prefix: the tokens that every sample begins with, in front of the text; they count nowhere.
        mask: [samples, tokens] bool, which tokens enter means and losses; None where all do but
            the prefix.
        chat: the field that the conversations were in; None for other text.
        notes: what is worth telling about it.
        reading: bytes that reading and tokenising it took at once, about.
    """

    input_ids: torch.Tensor
    source: TextSource
    seed: int
    bos: str = "none"
    prefix: tuple[int, ...] = ()
    mask: torch.Tensor | None = None
    chat: str | None = None
    notes: tuple[str, ...] = ()
    reading: int = 0

    @property
    def counted(self) -> torch.Tensor:
        """Which tokens enter means and losses: [samples, tokens] bool."""
        if self.mask is not None:
            return self.mask
        counted = torch.ones(self.input_ids.shape, dtype=torch.bool)
        counted[:, : len(self.prefix)] = False
        return counted

    @property
    def sha256(self) -> str:
        """Digest of shape and tokens (little-endian int64), and of which count if not all do."""
        digest = hashlib.sha256(str(tuple(self.input_ids.shape)).encode())
        digest.update(self.input_ids.contiguous().numpy().astype("<i8").tobytes())
        counted = self.counted
        if not counted.all():
            digest.update(counted.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def first(self, samples: int) -> CalibrationSet:
        """The first so many samples."""
        mask = None if self.mask is None else self.mask[:samples]
        return replace(self, input_ids=self.input_ids[:samples], mask=mask)


def save_tokens(tokens: CalibrationSet, path: Path) -> None:
    """Writes `tokens`, and which of them count, for use as a ``.safetensors`` source."""
    stored = token_file.Stored(
        tokens.input_ids, tokens.mask, tokens.prefix, tokens.bos, tokens.chat
    )
    token_file.write(path, stored)


def load_tokens(
    source: TextSource,
    *,
    tokenizer_dir: Path,
    vocab_size: int,
    max_seq_len: int | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    bos: str = "auto",
    held_out: bool = False,
) -> CalibrationSet:
    """Draws `samples` windows of `seq_len` tokens; windows do not overlap.

    Every window begins with what the tokenizer puts in front of a text, see `bos`. Behind it is
    text, tokenised without special tokens and cut into windows, of which a seeded choice is taken;
    or conversations in whole turns, see `prunecomp.calibration.chat`. A source with fewer windows
    gives those that it has.

    Args:
        max_seq_len: the model's context; a longer default is cut to it, a longer request is
            refused.
        bos: one of `BOS_MODES`; a file of tokens is taken as it is.
        held_out: take the evaluation split of a built-in source that has one.

    Raises:
        UsageError: the source is missing, malformed, empty, or shorter than one sample.
        MissingDependencyError: a hub data set without the ``datasets`` package.
    """
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: give a number from 0 to 2^63 - 1")
    if bos not in BOS_MODES:
        raise UsageError(f"--bos {bos}: choose from {', '.join(BOS_MODES)}")
    if source.suffix == ".safetensors":
        found = _of_file(source, samples, seq_len, seed, bos)
    else:
        samples = DEFAULT_SAMPLES if samples is None else samples
        if seq_len is None:
            seq_len = min(DEFAULT_SEQ_LEN, max_seq_len or DEFAULT_SEQ_LEN)
        _check_context(seq_len, source.name, max_seq_len)
        found = _of_text(
            source, samples, seq_len, seed, bos, tokenizer_dir, vocab_size, held_out=held_out
        )
    _check_ids(found.input_ids, source.name, vocab_size, max_seq_len)
    return found


def _of_text(
    source: TextSource, samples: int, seq_len: int, seed: int, bos: str, tokenizer_dir: Path,
    vocab_size: int, *, held_out: bool,
) -> CalibrationSet:  # fmt: skip
    if samples < 1 or seq_len < 2:
        raise UsageError(
            f"{samples} samples of {seq_len} tokens: at least one sample of two tokens is needed; "
            "give larger --samples or --seq-len"
        )
    wanted = Reading.of(samples, seq_len, torch.Generator().manual_seed(seed))
    content = open_source(source, wanted, held_out=held_out)
    tokenizer = load_tokenizer(tokenizer_dir)
    prefix = prefix_of(tokenizer, bos, where=str(tokenizer_dir))
    shape = Shape(samples, seq_len, prefix)
    if shape.room < 1:
        raise UsageError(
            f"--seq-len {seq_len}: the {len(prefix)} tokens that the tokenizer puts in front leave "
            "no room; give a larger --seq-len"
        )
    where = {"name": source.name, "directory": tokenizer_dir}
    if isinstance(content, Chat):
        ids, counted, notes = chat_windows(
            content, tokenizer, shape, wanted, vocab_size=vocab_size, **where
        )
        return CalibrationSet(
            ids, source, seed, bos, prefix, counted, content.field, tuple(notes), wanted.nbytes
        )
    ids = token_windows(content, tokenizer, shape, wanted, **where)
    return CalibrationSet(ids, source, seed, bos, prefix, reading=wanted.nbytes)


def _of_file(
    source: TextSource, samples: int | None, seq_len: int | None, seed: int, bos: str
) -> CalibrationSet:
    if bos == "each":
        raise UsageError(
            f"--bos each: {source.name} holds tokens, which are taken as they are; leave --bos away"
        )
    stored = token_file.read(Path(source.name), samples, seq_len)
    return CalibrationSet(
        stored.input_ids, source, seed, stored.bos, stored.prefix, stored.mask, stored.chat
    )


def _check_ids(input_ids: torch.Tensor, name: str, vocab_size: int, context: int | None) -> None:
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise UsageError(
            f"{name}: token {low if low < 0 else high} is outside the model's vocabulary of "
            f"{vocab_size}; the tokens were made for another model"
        )
    _check_context(input_ids.shape[1], name, context)


def _check_context(seq_len: int, name: str, context: int | None) -> None:
    if context is not None and seq_len > context:
        raise UsageError(
            f"{name}: samples of {seq_len} tokens exceed the model's context of {context}; "
            "use a smaller --seq-len"
        )
