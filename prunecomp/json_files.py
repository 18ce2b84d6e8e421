"""JSON files that anyone may have written: read within bounds, or refused in one line.

Python's own parser takes more than JSON (NaN, keys that stand twice, halves of surrogate pairs,
numbers of thousands of digits), and what it takes fails later, far from the file.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from prunecomp.errors import PruneCompError, brief
from prunecomp.limits import MAX_INTEGER, MAX_JSON_BYTES, MAX_JSON_DEPTH

#: An escape that may be half of a surrogate pair; UTF-8 itself cannot hold one.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: What "as long as one likes" is in tokenizers' settings, which some tools copy to config.json.
_UNBOUNDED_KEYS = {"model_max_length"}


class JsonError(ValueError):
    """Why a text is refused, in a few words."""


def parse_json(data: bytes, *, foreign: bool = False) -> Any:
    """The value that `data`, UTF-8, stands for.

    Args:
        foreign: what other programs write and read as well, with Python's parser: it may hold
            infinities (``time_step_limit`` of Mamba does), and of keys that stand twice the last
            one counts.

    Raises:
        JsonError: it is not JSON, or beyond the bounds of `prunecomp.limits`.
    """
    hooks = {} if foreign else {"parse_constant": _no_constant, "object_pairs_hook": _unique}
    try:
        value = json.loads(data.decode("utf-8"), **hooks)
    except JsonError:
        raise
    except RecursionError as error:
        raise JsonError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise JsonError(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg}, line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise JsonError("it holds a number of thousands of digits") from error
    _check(value, text=_SURROGATE.search(data) is not None, infinite=foreign)
    return value


def read_bytes(path: Path) -> bytes:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        JsonError: it is larger than any sound one.
    """
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise JsonError(f"it has more than {MAX_JSON_BYTES:,} bytes")
    return data


def read_json(
    path: Path, error: type[PruneCompError], remedy: str, *, foreign: bool = False
) -> Any:
    """The parsed JSON of `path`.

    Args:
        error: what is raised where that cannot be.
        remedy: the end of its message.
        foreign: see `parse_json`.
    """
    try:
        return parse_json(read_bytes(path), foreign=foreign)
    except OSError as failure:
        raise error(f"{path}: cannot read it ({failure.strerror}); {remedy}") from failure
    except JsonError as failure:
        raise error(f"{path}: cannot read it as JSON ({failure}); {remedy}") from failure


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file that need not be there; empty where it is not, or is none.

    For what other programs leave beside a model, of which only a hint is wanted.
    """
    try:
        found = parse_json(read_bytes(path), foreign=True)
    except (OSError, JsonError):
        return {}
    return found if isinstance(found, dict) else {}


def _no_constant(name: str) -> Any:
    raise JsonError(f"it holds {name}, which is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise JsonError(f"the key {brief(next(k for k in keys if keys.count(k) > 1))} stands twice")
    return found


def _check(value: Any, *, text: bool, infinite: bool) -> None:
    """Refuses what is too deep or too large.

    Args:
        text: there may be text that UTF-8 cannot hold, which is refused.
        infinite: numbers may be infinite.
    """
    level, depth, place = [("", value)], 0, ""
    while level:
        depth += 1
        below: list[tuple[str, Any]] = []
        for place, item in level:
            if isinstance(item, dict):
                below += item.items()
                if text:
                    below += ((key, key) for key in item)
            elif isinstance(item, list):
                below += ((place, inner) for inner in item)
            elif wrong := _wrong(place, item, text=text, infinite=infinite):
                raise JsonError(f"{brief(place)} holds {wrong}")
        if below and depth > MAX_JSON_DEPTH:
            raise JsonError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
        level = below


def _wrong(key: str, value: Any, *, text: bool, infinite: bool) -> str:
    """What is wrong with a value that holds no others; empty where nothing is."""
    if isinstance(value, int) and abs(value) >= MAX_INTEGER and key not in _UNBOUNDED_KEYS:
        return f"a number of about {abs(value).bit_length() * 3 // 10} digits"
    if isinstance(value, float) and not infinite and not math.isfinite(value):
        return f"{value}, which is no number"
    if isinstance(value, str) and text and not _encodable(value):
        return "half of a surrogate pair"
    return ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
