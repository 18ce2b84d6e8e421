"""Writes safetensors as a stream, byte for byte as the format's own library would.

All names, shapes and dtypes are known before the first byte is written, so every byte of a source
file has its place. Files are read once, from front to back: the kernel copies what no edit touches,
and edited tensors pass through memory in pieces, so memory use does not depend on the model.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch

from prunecomp.checkpoint.index import INDEX_FILE
from prunecomp.checkpoint.layout import (
    TORCH_DTYPES,
    Output,
    Saved,
    Shard,
    index_text,
)  # fmt: skip
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError

#: What is hashed and written side by side, so that it is read from disk only once.
_WINDOW_BYTES = 64 << 20
_PIECE_BYTES = 4 << 20  # of a source tensor; a multiple of every dtype's size
_CHUNK_BYTES = 1 << 20
#: The kernel, or a file system, cannot copy between these two files by itself.
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


@dataclass(frozen=True)
class _Job:
    """Bytes of a source file, and the place where they go; `output` is None for a plain copy."""

    start: int
    nbytes: int
    target: Path
    place: int
    output: Output | None

    @property
    def end(self) -> int:
        return self.start + self.nbytes


def _jobs(directory: Path, shards: Sequence[Shard]) -> dict[Path, list[_Job]]:
    """All jobs by the file that they read, in the order of that file; neighbours are joined."""
    found: dict[Path, list[_Job]] = {}
    for shard in shards:
        for place, output in shard.placed():
            job = _Job(
                output.source.offset, output.source.nbytes, directory / shard.name, place,
                None if output.is_copy else output,
            )  # fmt: skip
            found.setdefault(output.source.file, []).append(job)
    return {
        file: list(_joined(sorted(jobs, key=lambda j: j.start))) for file, jobs in found.items()
    }


def _joined(jobs: Sequence[_Job]) -> Iterator[_Job]:
    last = None
    for job in jobs:
        if (
            last is not None and last.output is None and job.output is None
            and last.target == job.target and last.end == job.start
            and last.place + last.nbytes == job.place
        ):  # fmt: skip
            last = replace(last, nbytes=last.nbytes + job.nbytes)
            continue
        if last is not None:
            yield last
        last = job
    if last is not None:
        yield last


def _pieces(jobs: Sequence[_Job]) -> Iterator[_Job]:
    """The same jobs, none larger than what memory, or a window, is to hold."""
    for job in jobs:
        limit = _WINDOW_BYTES if job.output is None else _PIECE_BYTES
        if job.output is not None and not job.output.edit.elementwise:
            limit = job.nbytes
        ratio = 1.0 if job.output is None else job.output.nbytes / max(job.output.source.nbytes, 1)
        for done in range(0, job.nbytes, limit):
            yield replace(
                job, start=job.start + done, nbytes=min(limit, job.nbytes - done),
                place=job.place + int(done * ratio),
            )  # fmt: skip


def _windows(jobs: Iterator[_Job]) -> Iterator[list[_Job]]:
    window: list[_Job] = []
    for job in jobs:
        if window and job.end - window[0].start > _WINDOW_BYTES:
            yield window
            window = []
        window.append(job)
    if window:
        yield window


def _read(source: BinaryIO, start: int, buffer: memoryview) -> None:
    while buffer:
        got = os.preadv(source.fileno(), [buffer], start)
        if not got:
            raise CheckpointError(
                f"{source.name}: ended early while it was read; leave it alone and try again"
            )
        start, buffer = start + got, buffer[got:]


def _write(out: BinaryIO, place: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(out.fileno(), data, place)
        place, data = place + written, data[written:]


def _copy(source: BinaryIO, job: _Job, out: BinaryIO) -> None:
    """Copies without passing through our memory where the system can do that."""
    done = 0
    try:
        while done < job.nbytes:
            copied = os.copy_file_range(
                source.fileno(), out.fileno(), job.nbytes - done, job.start + done, job.place + done
            )
            if not copied:
                break  # the end of the file, or a file system that claims it is
            done += copied
    except OSError as error:
        if error.errno not in _CANNOT_COPY:
            raise
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, job.nbytes - done)))
    while done < job.nbytes:
        part = buffer[: job.nbytes - done]
        _read(source, job.start + done, part)
        _write(out, job.place + done, part)
        done += len(part)


def _edit(source: BinaryIO, job: _Job, out: BinaryIO) -> None:
    assert job.output is not None
    raw = torch.empty(job.nbytes, dtype=torch.uint8)
    _read(source, job.start, memoryview(raw.numpy()))
    tensor = raw.view(TORCH_DTYPES[job.output.source.dtype])
    if not job.output.edit.elementwise:
        tensor = tensor.view(job.output.source.shape)
    value = job.output.edit.apply(tensor, TORCH_DTYPES[job.output.dtype])
    _write(out, job.place, memoryview(value.contiguous().flatten().view(torch.uint8).numpy()))


def _hash(source: BinaryIO, digest, start: int, end: int) -> None:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while start < end:
        part = buffer[: end - start]
        _read(source, start, part)
        digest.update(part)
        start += len(part)


def _write_from(
    file: Path, jobs: Sequence[_Job], on_written: Callable[[int], None], *, hashed: bool
) -> str:
    """Does the jobs that read `file`; returns its SHA-256, or nothing where it is not `hashed`."""
    digest, at = hashlib.sha256(), 0
    with file.open("rb", buffering=0) as source, ThreadPoolExecutor(1) as pool:
        for window in _windows(_pieces(jobs)):
            reading = pool.submit(_hash, source, digest, at, window[-1].end) if hashed else None
            for job in window:
                with job.target.open("r+b", buffering=0) as out:
                    (_copy if job.output is None else _edit)(source, job, out)
                on_written(job.nbytes)
            if reading is not None:
                reading.result()
                at = window[-1].end
        if hashed:
            _hash(source, digest, at, os.fstat(source.fileno()).st_size)
    return digest.hexdigest() if hashed else ""


def write_weights(
    directory: Path,
    checkpoint: Checkpoint,
    shards: Sequence[Shard],
    *,
    on_written: Callable[[int], None] = lambda nbytes: None,
    on_digest: Callable[[str, str], None] | None = None,
) -> None:
    """Writes the weights of `checkpoint` as `shards` into `directory`.

    Args:
        on_written: called with a number of source bytes whenever so many are done.
        on_digest: called with name and SHA-256 of each source file, once it is read; None does
            not compute them.

    Raises:
        CheckpointError: a source file has become shorter.
        NumericError: a value does not fit its new dtype.
    """
    for shard in shards:
        (directory / shard.name).write_bytes(shard.header)
    jobs = _jobs(directory, shards)
    for file in checkpoint.index.files:
        digest = _write_from(file, jobs.get(file, []), on_written, hashed=on_digest is not None)
        if on_digest is not None:
            on_digest(file.name, digest)


def write_index(
    directory: Path, checkpoint: Checkpoint, shards: Sequence[Shard], saved: Saved
) -> list[str]:
    """Adds the index, where there are several shards; returns the names of all weight files."""
    names = [shard.name for shard in shards]
    if len(shards) == 1:
        return names
    text = index_text(shards, checkpoint, saved)
    (directory / INDEX_FILE).write_text(text, encoding="utf-8")
    return [*names, INDEX_FILE]
