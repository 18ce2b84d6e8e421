"""Samples of one length: drawn from a text, or packed from conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunecomp.calibration.chat import ChatTemplate, Packer
from prunecomp.calibration.local_text import Reading
from prunecomp.calibration.records import Conversation
from prunecomp.calibration.sources import Chat, Documents, Text
from prunecomp.calibration.tokenizer import encode, token_stream
from prunecomp.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """Of the samples: how many, how long, and the tokens that each begins with."""

    samples: int
    seq_len: int
    prefix: tuple[int, ...]

    @property
    def room(self) -> int:
        """Tokens of a sample behind the prefix."""
        return self.seq_len - len(self.prefix)


def token_windows(
    content: Text | Documents, tokenizer: Any, shape: Shape, wanted: Reading, *, name: str,
    directory: Path,
) -> torch.Tensor:  # fmt: skip
    """A seeded choice of the windows of a text: [samples, seq_len] int64.

    Args:
        name: of the source, for errors.
        directory: of the tokenizer, for errors.

    Raises:
        UsageError: the text is empty, or shorter than one sample.
    """
    if isinstance(content, Documents):
        stream = _document_stream(content, tokenizer, wanted, 4 * shape.samples * shape.seq_len)
    else:
        stream = token_stream(
            tokenizer, content.fragments,
            characters=wanted.characters, tokens=shape.samples * shape.room,
        )  # fmt: skip
    if stream is None:
        raise UsageError(f"{name}: the calibration text is empty; name another source")
    if not len(stream):  # what transformers makes of a directory without tokenizer files
        raise UsageError(
            f"{directory}: its tokenizer makes no tokens of the text; restore its files, or "
            "give the tokens as a .safetensors file"
        )
    count = len(stream) // shape.room
    if count == 0:
        behind = f" behind the {len(shape.prefix)} in front" if shape.prefix else ""
        raise UsageError(
            f"{name}: the text has {len(stream)} tokens, which is less than one sample of "
            f"{shape.room}{behind}; give more text or a smaller --seq-len"
        )
    windows = stream[: count * shape.room].view(count, shape.room)
    chosen = windows[torch.randperm(count, generator=wanted.generator)[: shape.samples]]
    front = torch.tensor(shape.prefix, dtype=torch.int64).expand(len(chosen), -1)
    return torch.cat([front, chosen], dim=1)


def _document_stream(
    content: Documents, tokenizer: Any, wanted: Reading, tokens: int
) -> torch.Tensor:
    """Whole documents in random order, each after an end-of-text token where there is one."""
    order = torch.randperm(len(content.texts), generator=wanted.generator).tolist()
    start = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    found, count = [torch.empty(0, dtype=torch.int32)], 0
    for first in range(0, len(order), 16):
        for ids in encode(tokenizer, [content.texts[i] for i in order[first : first + 16]]):
            found.append(torch.tensor(start + ids, dtype=torch.int32))
            count += len(found[-1])
        if count >= tokens:
            break
    return torch.cat(found).long()


def chat_windows(
    content: Chat, tokenizer: Any, shape: Shape, wanted: Reading, *, name: str, directory: Path,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:  # fmt: skip
    """Conversations in whole turns.

    Returns tokens [samples, seq_len] int64, which of them count (bool), and what is worth telling.

    Args:
        name: of the source, for errors.
        directory: of the tokenizer, for errors.

    Raises:
        UsageError: there is no chat template, or nothing that it takes and that fits.
    """
    packer = Packer(
        ChatTemplate(tokenizer, directory=directory, source=name),
        samples=shape.samples, seq_len=shape.seq_len, prefix=shape.prefix,
    )  # fmt: skip
    while not packer.full and (some := list(_so_many(content.conversations, wanted.characters))):
        order = torch.randperm(len(some), generator=wanted.generator).tolist()
        packer.add(some[i] for i in order)
    packer.check(name)
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    ids, counted = packer.windows(next((i for i in special if i is not None and i < vocab_size), 0))
    return ids, counted, packer.notes(counted)


def _so_many(conversations: Iterator[Conversation], characters: int) -> Iterator[Conversation]:
    """Conversations until so many characters have come."""
    seen = 0
    for messages in conversations:
        yield messages
        seen += sum(len(message["content"]) for message in messages)
        if seen >= characters:
            return
