"""Writes safetensors as a stream, byte for byte as the format's own library would.

All names, shapes and dtypes are known before the first byte is written, so every byte of a source
file has its place. Files are read once, from front to back: the kernel copies what no edit touches,
and edited tensors pass through memory in pieces, so memory use does not depend on the model. What
is made of several tensors, from whichever files, is gathered at the end, one tensor at a time.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

_WINDOW_BYTES = 64 << 20
#: Writing and hashing are at most so far apart, so that the second finds a file in memory.
_LEAD_WINDOWS = 16
#: So many windows are written at once: disks like to be asked for several things.
_WRITERS = 4
#: Of a source tensor; a multiple of every dtype's size. Large, because each piece asks Python for a
#: turn several times; not larger, for the sake of memory and of the processor's caches.
_PIECE_BYTES = 2 << 20
_CHUNK_BYTES = 1 << 20
#: More is not read ahead for one request, on most systems.
_ASKED_BYTES = 1 << 20
#: Seconds after which Python passes from one busy thread to another: by default so long that its
#: loading of packages holds up the threads here, who ask for a turn several times per piece.
_TURN_S = 1e-4
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


@dataclass(frozen=True)
class _Window:
    """A stretch of a source file, up to the end of the file where `end` is None; its jobs."""

    file: Path
    start: int
    end: int | None
    jobs: Sequence[_Job]


def _jobs(directory: Path, shards: Sequence[Shard]) -> dict[Path, list[_Job]]:
    """All jobs by the file that they read, in the order of that file; neighbours are joined."""
    found: dict[Path, list[_Job]] = {}
    for shard in shards:
        for place, output in shard.placed():
            if not output.edit.elementwise:
                continue
            (source,) = output.sources
            job = _Job(
                source.offset, source.nbytes, directory / shard.name, place,
                None if output.is_copy else output,
            )  # fmt: skip
            found.setdefault(source.file, []).append(job)
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
        ratio = 1.0 if job.output is None else job.output.nbytes / max(_nbytes(job.output), 1)
        for done in range(0, job.nbytes, limit):
            yield replace(
                job, start=job.start + done, nbytes=min(limit, job.nbytes - done),
                place=job.place + int(done * ratio),
            )  # fmt: skip


def _nbytes(output: Output) -> int:
    """Of all that an output is made of."""
    return sum(source.nbytes for source in output.sources)


def _windows(jobs: Mapping[Path, Sequence[_Job]], files: Sequence[Path]) -> Iterator[_Window]:
    """The jobs in the order in which they are done; all bytes of all files are in a window."""
    for file in files:
        start, window = 0, []
        for job in _pieces(jobs.get(file, ())):
            if window and job.end - start > _WINDOW_BYTES:
                yield _Window(file, start, window[-1].end, window)
                start, window = window[-1].end, []
            window.append(job)
        yield _Window(file, start, None, window)


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


def _ask_for(source: BinaryIO, window: _Window) -> None:
    """Has the system read a window, without waiting for it."""
    last = window.jobs[-1].end if window.jobs else window.start
    for start in range(window.start, last, _ASKED_BYTES):
        os.posix_fadvise(source.fileno(), start, _ASKED_BYTES, os.POSIX_FADV_WILLNEED)


def _tensor(source: BinaryIO, start: int, nbytes: int, dtype: str) -> torch.Tensor:
    """Bytes of a file as a flat tensor."""
    raw = torch.empty(nbytes, dtype=torch.uint8)
    _read(source, start, memoryview(raw.numpy()))
    return raw.view(TORCH_DTYPES[dtype])


def _bytes(value: torch.Tensor) -> memoryview:
    return memoryview(value.contiguous().flatten().view(torch.uint8).numpy())


def _edit(source: BinaryIO, job: _Job, out: BinaryIO, turn: threading.Lock) -> None:
    assert job.output is not None
    piece = _tensor(source, job.start, job.nbytes, job.output.sources[0].dtype)
    value = job.output.edit.apply(lambda name: piece, TORCH_DTYPES[job.output.dtype])
    with turn:
        _write(out, job.place, _bytes(value))


def _gather(directory: Path, shards: Sequence[Shard], on_written: Callable[[int], None]) -> None:
    """Writes what is made of several tensors: all of them, and the result, are in memory at once.

    Raises:
        CheckpointError: what an edit makes has another shape than it said.
    """
    for shard in shards:
        for place, output in shard.placed():
            if output.edit.elementwise:
                continue
            read = {}
            for key, spec in zip(output.edit.sources, output.sources, strict=True):
                with spec.file.open("rb", buffering=0) as file:
                    flat = _tensor(file, spec.offset, spec.nbytes, spec.dtype)
                read[key] = flat.view(spec.shape)
            value = output.edit.apply(read.__getitem__, TORCH_DTYPES[output.dtype])
            if tuple(value.shape) != output.shape:
                raise CheckpointError(
                    f"{output.edit.replaces}: its sources make {list(value.shape)}, not "
                    f"{list(output.shape)}; make the plan again"
                )
            with (directory / shard.name).open("r+b", buffering=0) as out:
                _write(out, place, _bytes(value))
            on_written(_nbytes(output))


def _write_window(
    window: _Window,
    on_written: Callable[[int], None],
    turns: Mapping[Path, threading.Lock],
) -> None:
    with window.file.open("rb", buffering=0) as source:
        _ask_for(source, window)
        for job in window.jobs:
            turn = turns[job.target]
            with job.target.open("r+b", buffering=0) as out:
                if job.output is None:
                    with turn:
                        _copy(source, job, out)
                else:
                    _edit(source, job, out, turn)
            on_written(job.nbytes)


class _Follower:
    """Calls `do` for window after window in threads of its own, near the others."""

    def __init__(
        self, do: Callable[[_Window], None], windows: Sequence[_Window], *, threads: int = 1
    ) -> None:
        self._do, self._windows = do, windows
        self._pool = ThreadPoolExecutor(threads)
        self._asked: list[Future[None]] = []

    def come_to(self, number: int) -> None:
        """Lets it go on to window `number`; waits if it is too far behind."""
        for window in self._windows[len(self._asked) : number + 1]:
            self._asked.append(self._pool.submit(self._do, window))
        if number >= _LEAD_WINDOWS:
            self._asked[number - _LEAD_WINDOWS].result()

    def finish(self) -> None:
        """Waits until all is done."""
        for one in self._asked:
            one.result()

    def close(self) -> None:
        """Drops what is not begun."""
        self._pool.shutdown(cancel_futures=True)


def _reading(
    checkpoint: Checkpoint, on_digest: Callable[[str, str], None] | None
) -> Callable[[_Window], None]:
    """What looks at window after window for values that are no numbers, and hashes if asked to.

    Sidecars of a plan were looked at before anything was written.
    """
    files, scan, digest = set(checkpoint.index.files), None, hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))

    def do(window: _Window) -> None:
        nonlocal scan, digest
        if window.file not in files:
            return
        scan = scan or checkpoint.scan(window.file)
        with window.file.open("rb", buffering=0) as source:
            size = os.fstat(source.fileno()).st_size
            start, end = window.start, size if window.end is None else window.end
            while start < end:
                part = buffer[: end - start]
                _read(source, start, part)
                scan.feed(part)
                if on_digest is not None:
                    digest.update(part)
                start += len(part)
        if window.end is None:
            found, digest, scan = digest, hashlib.sha256(), None
            if on_digest is not None:
                on_digest(window.file.name, found.hexdigest())

    return do


def write_weights(
    directory: Path,
    checkpoint: Checkpoint,
    shards: Sequence[Shard],
    *,
    on_written: Callable[[int], None] = lambda nbytes: None,
    on_digest: Callable[[str, str], None] | None = None,
    scan: bool = False,
) -> None:
    """Writes the weights of `checkpoint` as `shards` into `directory`.

    Args:
        on_written: called with a number of source bytes whenever so many are done.
        on_digest: called in another thread with name and SHA-256 of each source file, once it is
            read; what it raises is raised here. None does not compute them.
        scan: look at every value of the source, as is done where digests are computed.

    Raises:
        CheckpointError: a source file has become shorter, or a value in it is NaN or infinite.
        NumericError: a value does not fit its new dtype.
    """
    for shard in shards:
        (directory / shard.name).write_bytes(shard.header)
    jobs, files = _jobs(directory, shards), checkpoint.index.files
    windows = list(_windows(jobs, [*files, *sorted(jobs.keys() - set(files))]))
    lock = threading.Lock()

    def done(nbytes: int) -> None:
        with lock:
            on_written(nbytes)

    # whoever waits for a file in the kernel wastes a core meanwhile
    turns = {directory / shard.name: threading.Lock() for shard in shards}
    write = functools.partial(_write_window, on_written=done, turns=turns)
    followers = [_Follower(write, windows, threads=_WRITERS)]
    if scan or on_digest is not None:
        followers.append(_Follower(_reading(checkpoint, on_digest), windows))
    threads, turn_s = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)  # there are enough threads
    sys.setswitchinterval(_TURN_S)
    try:
        for number in range(len(windows)):
            for one in followers:
                one.come_to(number)
        for one in followers:
            one.finish()
        _gather(directory, shards, done)
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(turn_s)
        for one in followers:
            one.close()


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
