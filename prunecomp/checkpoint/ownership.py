"""Whose a partial output is, and whether its owner still writes it.

The number of a process says nothing in another container or on another machine that shares the
file system. So a directory's name tells the boot of the machine, which containers on it share, and
the namespace of the process's number; and its owner holds a lock (flock) on the directory, which
ends with the process. Only the kernel that gave a lock is asked about it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

_ID = re.compile(r"([0-9a-f]{8})\.(\d+)\.(\d+)")


def _boot() -> str:
    """Eight hexadecimal digits of this boot of the machine; none where it does not say."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    return text[:8]


def _namespace() -> str:
    """Number of the namespace that process ids of ours belong to; none where it is not told."""
    try:
        found = re.search(r"\d+", str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        return ""
    return found[0] if found else ""


def own_id() -> str:
    """What the names of this process's partial outputs end with."""
    return f"{_boot() or 'unknown'}.{_namespace() or 0}.{os.getpid()}"


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Tells other processes that this one uses the directory, where its file system can."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks; NFS has none of these
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


@contextlib.contextmanager
def is_abandoned(directory: Path, owner: str) -> Iterator[bool | None]:
    """Whether nobody uses a directory any more; None where that cannot be told from here.

    It stays so in the block.

    Args:
        owner: `own_id` of who made it.
    """
    match = _ID.fullmatch(owner)
    if match is None or match[1] != _boot():
        yield None
        return
    try:
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    except OSError:
        yield None
        return
    try:
        yield _is_free(opened, namespace=match[2], process=int(match[3]))
    finally:
        os.close(opened)


def _is_free(opened: int, *, namespace: str, process: int) -> bool | None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None if namespace != _namespace() else not _is_running(process)
    return True


def _is_running(process: int) -> bool:
    """Whether another process has this id; ours is then one that an earlier one had."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
