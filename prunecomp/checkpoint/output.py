"""Output directories and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from prunecomp.checkpoint.foreign import refuse_foreign
from prunecomp.checkpoint.ownership import hold, is_abandoned, own_id
from prunecomp.errors import UsageError

_MARK = ".prunecomp-partial-"
_MAX_NAME = 200  # bytes; file systems allow 255, and the partial's name is longer than the output's

Note = Callable[[str], None]


def _silent(text: str) -> None:
    """For what is written unattended."""


def check_output(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Fails early, before any long work, where `path` could not be written in the end.

    Args:
        source: the model directory or file that is read, which the output must leave alone.

    Raises:
        UsageError: it exists (and `overwrite` is not given, or it holds what prunecomp did not
            write), its parent cannot be written, or it would change `source`.
    """
    with _refusing(path, source) as where:
        if where.is_symlink() or where.exists():
            if where.is_symlink() or not where.is_dir():
                raise UsageError(f"{path}: exists and is not a directory; choose another --output")
            if not overwrite:
                raise UsageError(
                    f"{path}: exists already; choose another --output or add --overwrite"
                )
            if where.is_mount():
                raise UsageError(f"{path}: is a mount point; choose a directory inside it")
            refuse_foreign(path)


def check_output_file(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """The same for a file.

    Raises:
        UsageError: it exists (and `overwrite` is not given), its directory cannot be written, or
            it lies in `source`.
    """
    with _refusing(path, source) as where:
        if where.is_dir():
            raise UsageError(f"{path}: is a directory; name a file")
        if where.is_symlink() or where.exists():
            if not overwrite:
                raise UsageError(f"{path}: exists already; choose another name or add --overwrite")
            if not where.is_file():
                raise UsageError(f"{path}: is not an ordinary file; choose another name")


def _real(path: Path) -> Path:
    """`path` as an absolute one, with links resolved in its parents but not in itself."""
    if path.name in {"", ".."}:
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


@contextlib.contextmanager
def _refusing(path: Path, source: Path | None) -> Iterator[Path]:
    """Yields the real path; makes the checks that directories and files share."""
    try:
        where = _real(path)
        _check_name(path, where)
        if source is not None:
            _check_apart(path, source)
        yield where
        parent = where.parent
        while not (parent.exists() or parent.is_symlink()):
            parent = parent.parent
        if not parent.is_dir():
            raise UsageError(f"{path}: {parent} is not a directory; choose another place")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error


def _check_name(path: Path, where: Path) -> None:
    try:
        name = where.name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: the name is not UTF-8; choose another") from error
    if len(name) > _MAX_NAME:
        raise UsageError(
            f"{where.name[:20]}...: the name is longer than {_MAX_NAME} bytes; choose another"
        )


def _check_apart(path: Path, source: Path) -> None:
    """Refuses an output that is the model, lies in it, or holds files of it."""
    target, model = Path(os.path.realpath(path)), Path(os.path.realpath(source))
    if target == model:
        raise UsageError(f"{path}: is the model itself; choose another --output")
    if model in target.parents:
        raise UsageError(f"{path}: lies inside the model directory; choose another --output")
    named = (source, *(source.iterdir() if source.is_dir() else ()))
    files = (Path(os.path.realpath(p)) for p in named)
    if any(target in file.parents for file in files):
        raise UsageError(f"{path}: holds files of the model; choose another --output")


@contextlib.contextmanager
def output_directory(
    path: Path, *, overwrite: bool = False, source: Path | None = None, note: Note = _silent
) -> Iterator[Path]:
    """Yields a new directory beside `path`, which becomes `path` if the block succeeds.

    Whatever ends the block otherwise, an interrupt included, removes the directory again. What
    a killed process left behind is removed by the next run for the same `path`, where that process
    ran on this machine; else it stays.

    Args:
        note: is told what stays.

    Raises:
        UsageError: see `check_output`.
    """
    check_output(path, overwrite=overwrite, source=source)
    with _beside(path, note) as partial:
        yield partial
        _move_into_place(partial, path, overwrite=overwrite)


@contextlib.contextmanager
def output_file(path: Path, *, overwrite: bool = False, note: Note = _silent) -> Iterator[Path]:
    """The same for a file, which the block creates under the name that it gets.

    Raises:
        UsageError: see `check_output_file`.
    """
    check_output_file(path, overwrite=overwrite)
    with _beside(path, note) as partial:
        yield partial / _real(path).name
        (partial / _real(path).name).replace(_real(path))
        partial.rmdir()


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Writes a small file so that no reader sees half of it.

    Raises:
        UsageError: see `check_output_file`.
    """
    with output_file(path, overwrite=overwrite) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _beside(path: Path, note: Note) -> Iterator[Path]:
    """Yields a new directory next to `path`, making its parents; a failure undoes all of it."""
    where = _real(path)
    missing = [p for p in where.parents if not p.exists()]
    partial = where.with_name(f".{where.name}{_MARK}{own_id()}")
    made = False
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(where, note)
        with _made(partial):
            made = True
            yield partial
    except BaseException:
        if made:  # else it is another thread's
            _remove(partial)
            _undo_swap(where)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _made(partial: Path) -> Iterator[None]:
    """Makes a directory that is held from the moment on at which others may look at it."""
    while True:
        partial.mkdir()
        with hold(partial):
            if partial.exists():  # nobody has taken it for abandoned, just before
                yield
                return


def _old(where: Path) -> Path:
    return where.with_name(f".{where.name}{_MARK}{own_id()}.old")


def _move_into_place(partial: Path, path: Path, *, overwrite: bool) -> None:
    where = _real(path)
    if not where.exists():
        partial.rename(where)
    elif not overwrite:
        raise UsageError(f"{path}: has appeared meanwhile; choose another --output")
    else:
        refuse_foreign(path)  # once more: the work may have taken hours
        with hold(where):
            where.rename(_old(where))
            partial.rename(where)
            _remove(_old(where))
    _remove_stale(where, _silent)


def _undo_swap(where: Path) -> None:
    """Puts back what was to be replaced, or finishes removing it where the new one is in place."""
    if where.exists():
        _remove(_old(where))
    elif _old(where).exists():
        _old(where).rename(where)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_stale(where: Path, note: Note) -> None:
    """Removes what killed processes left; the previous output only once there is one again."""
    for left in where.parent.iterdir():
        if not left.name.startswith(f".{where.name}{_MARK}"):
            continue
        owner = left.name.rpartition(_MARK)[2]
        with is_abandoned(left, owner.removesuffix(".old")) as abandoned:
            if abandoned and (not owner.endswith(".old") or where.exists()):
                _remove(left)
        if abandoned is None:
            note(
                f"note: {left} belongs to a run on another machine, in another container or of an "
                "older version, and may be in use; delete it if that run has ended"
            )
