"""Dataclasses as plain JSON data, and documents of them read back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from prunecomp import records
from prunecomp.errors import UsageError
from prunecomp.json_files import read_json


def plain(record: Any) -> Any:
    """A dataclass of this module as JSON has it.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    return json.loads(json.dumps(dataclasses.asdict(record), allow_nan=False))


def read_document(path: Path, name: str, *, hint: str) -> tuple[Path, Any]:
    """A JSON file, or the one called `name` in a directory: where it is, and what it says.

    Args:
        hint: what to give instead, for the error.

    Raises:
        UsageError: it cannot be read, or is not JSON.
    """
    file = path / name if path.is_dir() else path
    return file, read_json(file, UsageError, hint)


def parse(kind: Any, value: Any, where: str, *, hint: str) -> Any:
    """See `prunecomp.records.parse`.

    Raises:
        UsageError: a key is missing or unknown, or a value is of another type.
    """
    try:
        return records.parse(kind, value, where)
    except records.RecordError as error:
        raise UsageError(f"{error}; {hint}") from error
