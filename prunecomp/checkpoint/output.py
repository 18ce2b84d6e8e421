"""Output directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prunecomp.errors import UsageError

_MARK = ".prunecomp-partial-"


def check_output(path: Path, *, overwrite: bool) -> None:
    """Fails early, before any long work, where `path` could not be written in the end.

    Raises:
        UsageError: it exists (and `overwrite` is not given), or its parent cannot be written.
    """
    if path.is_symlink() or path.exists():
        if not overwrite:
            raise UsageError(f"{path}: exists already; choose another --output or add --overwrite")
        if not path.is_dir() or path.is_symlink():
            raise UsageError(f"{path}: exists and is not a directory; choose another --output")
        foreign = [p.name for p in path.iterdir()]
        if foreign and "config.json" not in foreign:
            raise UsageError(
                f"{path}: --overwrite replaces model directories only, and this one has no "
                "config.json; choose another --output"
            )
    _check_writable(path)


def check_output_file(path: Path, *, overwrite: bool) -> None:
    """The same for a file.

    Raises:
        UsageError: it exists (and `overwrite` is not given), or its directory cannot be written.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already; choose another name or add --overwrite")
    if path.is_dir():
        raise UsageError(f"{path}: is a directory; name a file")
    _check_writable(path)


def _check_writable(path: Path) -> None:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(f"{parent}: is not a directory; choose another --output")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UsageError(
            f"{parent}: cannot be written ({error.strerror}); choose another --output"
        ) from error


@contextlib.contextmanager
def output_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new directory beside `path`, which becomes `path` if the block succeeds.

    Whatever ends the block otherwise, an interrupt included, removes the directory again. What
    a killed process left behind is removed by the next run for the same `path`.

    Raises:
        UsageError: see `check_output`.
    """
    check_output(path, overwrite=overwrite)
    path = path.absolute()
    created = [p for p in reversed(path.parents) if not p.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    partial = path.parent / f".{path.name}{_MARK}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        _move_into_place(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in reversed(created):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _move_into_place(partial: Path, path: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = path.parent / f".{path.name}{_MARK}{os.getpid()}.old"
    path.rename(old)
    partial.rename(path)
    shutil.rmtree(old)


def _remove_stale(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}{_MARK}*"):
        owner = left.name.rpartition(_MARK)[2].removesuffix(".old")
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Writes a small file through a sibling that is renamed, so that no reader sees half of it.

    Raises:
        UsageError: see `check_output_file`.
    """
    check_output_file(path, overwrite=overwrite)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_MARK}{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
