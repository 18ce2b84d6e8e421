"""Local ``.txt`` and ``.jsonl`` files, of any size, read no further than is needed.

A file that is not much larger than what is asked for is read as a whole, in order. Of a larger one,
blocks are read in a random order that the seed decides, so that the samples come from all of it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from prunecomp.calibration.tokenizer import PER_CHARACTER, PIECE, reason
from prunecomp.errors import UsageError

#: Files up to this size are read as a whole.
SMALL = 1 << 16
#: Of larger files, blocks of these sizes are read; larger ones where samples are longer.
FEWEST, MOST = 1 << 12, 1 << 16
_MARGIN = 1 << 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows tools write it


@dataclass
class Reading:
    """How much of a text is wanted.

    Attributes:
        characters: so many are enough; a source of no more is read as a whole.
        block: characters that are taken from one place of a larger one.
        generator: decides from which places.
        largest: bytes of the largest part so far that was in memory as a whole, such as a line.
    """

    characters: int
    block: int
    generator: torch.Generator
    largest: int = 0

    @classmethod
    def of(cls, samples: int, seq_len: int, generator: torch.Generator) -> Reading:
        """What is needed for so many samples: a few times more, to choose from."""
        characters = max(SMALL, 4 * 8 * samples * seq_len)
        block = max(FEWEST, min(characters // 64, MOST), 8 * seq_len)
        return cls(characters, block, generator)

    def whole(self) -> Reading:
        """The same, but of files of any size all is read, in order."""
        return replace(self, characters=1 << 62)

    @property
    def nbytes(self) -> int:
        """Memory that reading and tokenising take at once, about."""
        part = 4 * self.largest  # as bytes, decoded, parsed, and joined
        return part + PIECE * PER_CHARACTER + 2 * self.characters  # of tokens, 8 for 4 characters

    def starts(self, size: int) -> list[int]:
        """Where blocks begin in something of this size, in the order in which they are read."""
        if size <= self.characters:
            return [0]
        starts = torch.arange(0, size, self.block)
        return starts[torch.randperm(len(starts), generator=self.generator)].tolist()

    def stop(self, start: int, size: int) -> int:
        """Where the block that begins there ends."""
        return size if size <= self.characters else min(start + self.block, size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, with what can go wrong while it is read and decoded as one line."""
    if not path.is_file():
        kind = "is not a file" if path.exists() else "no such file"
        raise UsageError(f"{path}: {kind}; name a text file to calibrate on")
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot read it as UTF-8 text ({reason(error)}); convert or restore it"
        ) from error


def check_file(path: Path) -> None:
    """Raises `UsageError` where it is not there, or may not be read."""
    with _opened(path):
        pass


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _decoded(data: bytes, *, first: bool) -> str:
    text = (data.removeprefix(_BYTE_ORDER_MARK) if first else data).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _clean(file: BinaryIO, offset: int, size: int) -> int:
    """The next good place to cut: behind a line break, before a space, or between characters."""
    if offset in {0, size}:
        return offset
    file.seek(offset)
    data = file.read(_MARGIN)
    if (newline := data.find(b"\n")) >= 0:
        return offset + newline + 1
    if (space := data.find(b" ")) >= 0:
        return offset + space
    return offset + next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), 0)


def text_fragments(path: Path, wanted: Reading) -> Iterator[str]:
    """The text of a file: as a whole, or blocks of it with blank lines between them.

    Raises:
        UsageError: it cannot be read, or what is read of it is not UTF-8.
    """
    with _opened(path) as file:
        size = _size(file)
        for number, start in enumerate(wanted.starts(size)):
            begin = _clean(file, start, size)
            end = _clean(file, wanted.stop(start, size), size)
            file.seek(begin)
            wanted.largest = max(wanted.largest, end - begin)
            text = _decoded(file.read(max(0, end - begin)), first=begin == 0)
            yield text if number == 0 else "\n\n" + text


def document_fragments(documents: Iterator[str], wanted: Reading) -> Iterator[str]:
    """Documents with blank lines between them.

    Of one that is longer than all that is wanted, blocks.
    """
    for number, text in enumerate(documents):
        if number:
            yield "\n\n"
        for place, start in enumerate(wanted.starts(len(text))):
            begin = start and max(start, text.find(" ", start, start + _MARGIN))
            block = text[begin : wanted.stop(start, len(text))]
            yield block if place == 0 else "\n\n" + block


def _lines(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """``(offset, line)`` of all lines that begin between `start` and `stop`."""
    offset = start
    if start:
        file.seek(start - 1)
        newline = file.read(stop - start).find(b"\n")
        if newline < 0:
            return
        offset = start + newline
    file.seek(offset)
    while offset < stop and (line := file.readline()):
        yield offset, line
        offset += len(line)


def _line_number(file: BinaryIO, offset: int) -> int:
    """Counted from 1, as editors do."""
    file.seek(0)
    left, found = offset, 1
    while left and (data := file.read(min(left, 1 << 20))):
        found, left = found + data.count(b"\n"), left - len(data)
    return found


def _parsed(line: bytes, *, first: bool) -> Any:
    text = _decoded(line, first=first)
    return json.loads(text) if text.strip() else None


def json_records(path: Path, wanted: Reading) -> Iterator[tuple[str, Any]]:
    """``(where, value)`` of the lines of a file: of all, or of blocks of it.

    Raises:
        UsageError: it cannot be read, or a line is not JSON.
    """
    with _opened(path) as file:
        size = _size(file)
        for start in wanted.starts(size):
            for offset, line in _lines(file, start, wanted.stop(start, size)):
                place = _Place(path, offset)
                wanted.largest = max(wanted.largest, len(line))
                try:
                    value = _parsed(line, first=offset == 0)
                except UnicodeDecodeError:
                    raise
                except (ValueError, RecursionError) as error:
                    raise UsageError(
                        f"{place}: is not JSON ({reason(error)}); correct the line"
                    ) from error
                if line.strip():
                    yield place, value


@dataclass(frozen=True)
class _Place:
    """A line of a file, whose number is found out when it is asked for."""

    path: Path
    offset: int

    def __str__(self) -> str:
        with _opened(self.path) as file:
            return f"{self.path}, line {_line_number(file, self.offset)}"
