"""The model directory that a GGUF file stands for: converted once, kept in the user's cache."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from prunecomp.errors import (
    CheckpointError,
    MissingDependencyError,
    PruneCompError,
    UsageError,
)
from prunecomp.progress import Progress

if TYPE_CHECKING:
    from prunecomp.gguf.convert import Conversion
    from prunecomp.gguf.header import GgufHeader

_SUFFIX = ".gguf"
#: To be raised when the same file would be converted into something else than before.
_SCHEME = 1
_MAX_NAME = 60  # of the directory
_SPARE_BYTES = 64 << 20  # tokenizer, config, and what others write meanwhile


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` means: itself, or the one in a directory without safetensors.

    Raises:
        UsageError: the directory has several.
    """
    try:
        if path.is_dir():
            return _only_file(path)
        if path.suffix.lower() == _SUFFIX:
            if not path.is_file():
                kind = "is not a file" if path.exists() else "no such file"
                raise CheckpointError(f"{path}: {kind}; name a GGUF file or a model directory")
            return path
        return path if path.is_file() and _begins_as_gguf(path) else None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def _begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _only_file(directory: Path) -> Path | None:
    entries = sorted(directory.iterdir())
    if any(entry.name.endswith((".safetensors", ".safetensors.index.json")) for entry in entries):
        return None
    found = [e for e in entries if e.suffix.lower() == _SUFFIX and e.is_file()]
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found[:3]) + ", ..." * (len(found) > 3)
        raise UsageError(f"{directory}: has {len(found)} GGUF files ({names}); name one of them")
    return found[0] if found else None


def model_directory(path: Path, progress: Progress) -> Path:
    """An ordinary bfloat16 model directory of the GGUF file `path`, made if it is not there yet.

    It belongs to the digest of the file and the version of transformers, and may be deleted at any
    time. It appears whole or not at all.

    Raises:
        MissingDependencyError: the package ``gguf`` is missing.
        UsageError: the file is damaged or not a supported model, or there is no room.
    """
    if find_spec("gguf") is None:
        raise MissingDependencyError(
            f"{path}: reading GGUF files needs the package gguf; pip install 'prunecomp[gguf]'"
        )
    from prunecomp.checkpoint.digests import sha256
    from prunecomp.gguf.header import read_header

    header = read_header(path)
    digest = sha256(path)
    place = _cache() / f"{digest}-{metadata.version('transformers')}-{_SCHEME}"
    for found in _complete(place):
        progress.say(f"{path.name}: converted before, in {found}")
        return found
    return _convert(header, digest, _free(place, path.stem[:_MAX_NAME]), progress)


def _cache() -> Path:
    from prunecomp.checkpoint.digests import cache_directory

    try:
        return cache_directory() / "gguf"
    except RuntimeError as error:
        raise UsageError(
            "there is no home directory to keep the converted model in; set XDG_CACHE_HOME"
        ) from error


def _complete(place: Path) -> Iterator[Path]:
    """The finished directories in `place`."""
    from prunecomp.checkpoint.converted import read_record

    if place.is_dir():
        for path in sorted(place.iterdir()):
            if not path.name.startswith(".") and read_record(path) is not None:
                yield path


def _free(place: Path, name: str) -> Path:
    """A path in `place` that nothing has: what lies there without its record is left alone."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(place / free for free in names if not (place / free).exists())


def _convert(header: GgufHeader, digest: str, target: Path, progress: Progress) -> Path:
    from prunecomp.checkpoint.converted import Converted, write_record
    from prunecomp.checkpoint.digests import stamp
    from prunecomp.checkpoint.output import output_directory
    from prunecomp.gguf.convert import prepare, write
    from prunecomp.gguf.tokenizer import front_matter

    before = stamp(header.path)
    conversion = prepare(header)
    _say(conversion, target, progress)
    _check_room(conversion, target)
    try:
        with output_directory(target) as partial:
            write(conversion, partial, progress)
            if matter := front_matter(header.metadata):
                (partial / "README.md").write_text(matter, encoding="utf-8")
            source = Converted(
                "gguf", header.path.name, digest, header.quantization, dict(header.types)
            )
            write_record(partial, source)
            if stamp(header.path) != before:
                raise CheckpointError(f"{header.path}: has changed while it was read; try again")
    except OSError as error:
        raise PruneCompError(
            f"{target}: cannot be written ({error.strerror}); free some space, or set "
            "XDG_CACHE_HOME to another place"
        ) from error
    except UsageError:
        if other := next(_complete(target.parent), None):
            return other  # of another process, which was faster
        raise
    return target


def _say(conversion: Conversion, target: Path, progress: Progress) -> None:
    header = conversion.header
    progress.say(
        f"{header.path.name}: GGUF, {header.quantization}; converting it once to bfloat16, "
        f"{conversion.nbytes / 1e9:.2f} GB in {target}"
    )
    if conversion.unused:
        names = ", ".join(conversion.unused[:6]) + ", ..." * (len(conversion.unused) > 6)
        progress.say(f"note: transformers makes no use of what the file has in {names}")


def _check_room(conversion: Conversion, target: Path) -> None:
    from prunecomp.checkpoint.output import check_output

    try:
        check_output(target, overwrite=False)
    except UsageError as error:
        raise UsageError(
            f"the converted model cannot be kept, set XDG_CACHE_HOME to a place for it: {error}"
        ) from error
    there = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < conversion.nbytes + _SPARE_BYTES:
        raise UsageError(
            f"{conversion.header.path}: converted, it takes {conversion.nbytes / 1e9:.2f} GB, and "
            f"{there} has {free / 1e9:.2f} GB left; set XDG_CACHE_HOME to a place with more"
        )
