"""SHA-256 of weight files, remembered from one command to the next.

Who computes a digest looks at every value on the way, so a file whose digest is remembered holds
no NaN and no infinity.

A digest belongs to a file as it was: device, inode, size, and the times of its last modification
and change. The system sets the last of these itself, so a file that was touched in any way since is
read again. What is remembered is in the user's cache directory and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from prunecomp.json_files import parse_json, read_bytes

#: Smaller files are read as fast as looked up.
SMALLEST_BYTES = 16 << 20
_MOST = 2000
#: Begins the keys of files whose values were looked at; earlier versions did not.
_FINITE = "finite:"
#: Times have a resolution: what changed so lately could change again without showing it.
_SETTLED_NS = 2 * 10**9


def cache_directory() -> Path:
    """The user's cache of this program; anything in it may be deleted at any time.

    Raises:
        RuntimeError: there is no home.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "prunecomp"


def _place() -> Path:
    return cache_directory() / "sha256.json"


def read_sha256(path: Path) -> str:
    """The digest, by reading all of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: Path) -> str:
    """The digest, by reading the file if it is not remembered, and remembered from then on."""
    read_as = stamp(path)
    digest = recall(path) or read_sha256(path)
    remember(path, digest, read_as=read_as)
    return digest


def _known() -> dict[str, str]:
    try:
        found = parse_json(read_bytes(_place()))
    except (OSError, ValueError, RuntimeError):  # the last: there is no home
        return {}
    return found if isinstance(found, dict) else {}


def stamp(path: Path) -> str:
    """What the file is now, without reading it."""
    s = path.stat()
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"


def recall(path: Path) -> str | None:
    """The digest, if the file has not changed since `remember`."""
    if path.stat().st_size < SMALLEST_BYTES:
        return None
    digest = _known().get(_FINITE + stamp(path))
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def remember(path: Path, digest: str, *, read_as: str) -> None:
    """Keeps a digest; a cache that cannot be written is no error.

    Args:
        read_as: `stamp` from before the file was read.
    """
    s = path.stat()
    settled = time.time_ns() - s.st_ctime_ns > _SETTLED_NS
    if s.st_size < SMALLEST_BYTES or not settled or stamp(path) != read_as:
        return
    with contextlib.suppress(OSError, RuntimeError):
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        key = _FINITE + read_as
        known = {k: v for k, v in _known().items() if k != key}
        entries = dict([*known.items(), (key, digest)][-_MOST:])
        partial = place.with_name(f"{place.name}.{os.getpid()}")
        partial.write_text(json.dumps(entries, indent=0) + "\n", encoding="utf-8")
        partial.replace(place)
