"""What stands behind the name of a source: a text, documents, or conversations."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecomp.calibration import prose, python_stdlib
from prunecomp.calibration.hub_text import HUB_PRESETS, hub_rows
from prunecomp.calibration.local_text import (
    Reading,
    check_file,
    document_fragments,
    json_records,
    text_fragments,
)
from prunecomp.calibration.records import Conversation, chat_field_of, conversation_of, text_of
from prunecomp.errors import UsageError
from prunecomp.registry import did_you_mean

#: Built-in names of whole documents that are on this machine.
OFFLINE = {"python-stdlib": python_stdlib, "prose": prose}
BUILT_IN = (*OFFLINE, *HUB_PRESETS)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class TextSource:
    """What the user named; all but `name` refines files and hub data sets.

    Attributes:
        name: as in `prunecomp.calibration.data`.
        field: of the text.
        chat_field: of the messages of a conversation; ``auto`` to look for one, ``none`` for not.
    """

    name: str
    field: str = "text"
    config: str | None = None
    split: str | None = None
    chat_field: str = "auto"

    @property
    def suffix(self) -> str:
        """Of the file's name, in lower case."""
        return Path(self.name).suffix.lower()


@dataclass(frozen=True)
class Text:
    """One text, in fragments, read as they are asked for."""

    fragments: Iterator[str]


@dataclass(frozen=True)
class Documents:
    """Texts that are read in a random order, each after an end-of-text token if there is one."""

    texts: list[str]


@dataclass(frozen=True)
class Chat:
    """Conversations, read as they are asked for, and the field that they were in."""

    conversations: Iterator[Conversation]
    field: str


def open_source(source: TextSource, wanted: Reading, *, held_out: bool) -> Text | Documents | Chat:
    """What the source holds; little of it is read before it is asked for.

    Args:
        held_out: take the evaluation split of a built-in source.

    Raises:
        UsageError: it is unknown, missing, or its first record holds neither text nor messages.
        MissingDependencyError: it is on the hub, and the package ``datasets`` is not installed.
    """
    if source.name in OFFLINE:
        found = OFFLINE[source.name].documents("held-out" if held_out else "train")
        return Documents([text for _, text in found])
    if source.suffix == ".txt":
        check_file(Path(source.name))
        return Text(text_fragments(Path(source.name), wanted))
    if source.suffix == ".jsonl":
        first = next(json_records(Path(source.name), wanted.whole()), None)
        return _of_records(source, first, json_records(Path(source.name), wanted), wanted)
    _check_name(source.name)
    rows = hub_rows(source.name, config=source.config, split=source.split, held_out=held_out)
    records = ((source.name, row) for row in rows)
    first = next(records, None)
    return _of_records(source, first, itertools.chain([first] if first else [], records), wanted)


def _of_records(
    source: TextSource,
    first: tuple[Any, Any] | None,
    records: Iterator[tuple[Any, Any]],
    wanted: Reading,
) -> Text | Chat:
    """As the first record says, which the others must be like."""
    record = first[1] if first else None
    chat = chat_field_of(record, field=source.field, chat_field=source.chat_field)
    if chat is not None and first is not None:
        return Chat((conversation_of(x, chat, where=where) for where, x in records), chat)
    if first is not None:
        text_of(record, source.field, where=first[0])  # what is wrong with all, told of the first
    texts = (text_of(x, source.field, where=where) for where, x in records)
    return Text(document_fragments(texts, wanted))


def _check_name(name: str) -> None:
    path = Path(name)
    if path.is_file():
        raise UsageError(f"{path}: a calibration file is a .txt, a .jsonl or a .safetensors")
    local = bool(name) and path.is_dir()  # which the package datasets reads, too
    if name not in BUILT_IN and not (local or _HUB_ID.fullmatch(name)):
        raise UsageError(
            f"unknown calibration source {name!r}{did_you_mean(name, BUILT_IN)} "
            f"(use {', '.join(BUILT_IN)}, a .txt, .jsonl or .safetensors file, or a hub data set "
            "as OWNER/NAME)"
        )
