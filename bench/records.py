"""Dataclasses as plain JSON data, and back with every value checked against its annotation."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

from prunecomp.errors import UsageError


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
    try:
        return file, json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not JSON"
        raise UsageError(f"{file}: {reason}; {hint}") from error


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value`, plain data, as `kind`: a dataclass of this module, or a type made of them.

    Args:
        where: how to call it in an error.

    Raises:
        UsageError: a key is missing or unknown, or a value is of another type.
    """
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return parse(inner, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(parse(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: parse(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is Any:
        return value
    accepted = {float: (int, float), int: int, str: str, bool: bool}.get(kind)
    good = accepted and isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
    if not good or (kind is float and not math.isfinite(value)):
        raise UsageError(f"{where}: {str(value)[:60]!r} is not what this version expects there")
    return value


_hints = functools.cache(typing.get_type_hints)  # a report has thousands of records


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must be a JSON object")
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise UsageError(f"{where}: unknown key {unknown[0]!r}")
    for name, item in fields.items():
        if name not in value and item.default is dataclasses.MISSING:
            raise UsageError(f"{where}: the key {name!r} is missing")
    return kind(**{name: parse(hints[name], v, f"{where}.{name}") for name, v in value.items()})
