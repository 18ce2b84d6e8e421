"""Which tokenizer a directory holds, and whether it is still the one that a plan was made with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from prunecomp.checkpoint.digests import read_sha256

#: Files that decide which tokens a text becomes. Chat templates do not.
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "*.tiktoken", "*.model",
)  # fmt: skip


def tokenizer_sha256(directory: Path) -> dict[str, str]:
    """SHA-256 of the tokenizer's files, by name; empty where there is none that can be read."""
    found = {}
    for path in sorted({path for pattern in _FILES for path in directory.glob(pattern)}):
        with contextlib.suppress(OSError):
            if path.is_file():
                found[path.name] = read_sha256(path)
    return found


def tokenizer_notes(directory: Path, expected: Mapping[str, str]) -> list[str]:
    """What to tell of a tokenizer that is not a plan's own; nothing where it is.

    Args:
        expected: digests that the plan has of its tokenizer; older plans have none.
    """
    found = tokenizer_sha256(directory)
    files = sorted(expected.keys() | found.keys())
    changed = [name for name in files if expected.get(name) != found.get(name)]
    if not expected or not changed:
        return []
    return [
        f"{directory / changed[0]}: is not the tokenizer's file that the plan was made with; the "
        "weights do not depend on it, but layers and factors were chosen on its tokens"
    ]
