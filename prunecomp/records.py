"""Frozen dataclasses out of plain JSON data, every value checked against its annotation."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import re
import types
import typing
from typing import Any

from prunecomp.errors import brief

_NUMBER = re.compile(r"-?[0-9]{1,9}")


class RecordError(ValueError):
    """Where in a document a value is not what it should be, and what it is instead."""


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value`, plain data, as `kind`: a dataclass, or a type made of dataclasses.

    Args:
        kind: besides dataclasses, tuples of one type, mappings, unions with None, and numbers,
            strings, booleans and Any. A mapping may have whole numbers as keys, which JSON holds
            as strings.
        where: how to call it in an error; empty for a whole document.

    Raises:
        RecordError: a key is missing or unknown, or a value is of another type or not finite.
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
    if origin in (dict, collections.abc.Mapping) and isinstance(value, dict):
        return {
            _key(arguments[0], k, where): parse(arguments[1], v, _inside(where, k))
            for k, v in value.items()
        }
    if kind is Any:
        return value
    accepted = {float: (int, float), int: int, str: str, bool: bool}.get(kind)
    good = accepted and isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
    if not good or (kind is float and not _is_finite(value)):
        raise RecordError(f"{where}: {brief(value)} is not what this version expects there")
    return value


def _key(kind: Any, key: str, where: str) -> Any:
    if kind is not int:
        return key
    if not _NUMBER.fullmatch(key):
        raise RecordError(f"{where}: the key {brief(key)} is not a number")
    return int(key)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _inside(where: str, name: str) -> str:
    return f"{where}.{brief(name)[1:-1]}".removeprefix(".")


_hints = functools.cache(typing.get_type_hints)  # a report has thousands of records


def _record(kind: Any, value: Any, where: str) -> Any:
    place = f"{where}: " if where else ""
    if not isinstance(value, dict):
        raise RecordError(f"{place}must be a JSON object")
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise RecordError(f"{place}unknown key {brief(unknown[0])}")
    for name, item in fields.items():
        optional = (item.default, item.default_factory) != (dataclasses.MISSING,) * 2
        if name not in value and not optional:
            raise RecordError(f"{place}the key {name!r} is missing")
    return kind(**{name: parse(hints[name], v, _inside(where, name)) for name, v in value.items()})
