"""How much memory libraries hold that nothing is in: the C library's heap, and oneDNN's kernels.

What is new from the system is slow to touch, so what a layer has freed stays for the next one.

The C library cuts small pieces out of large blocks that were freed, and what lives on in them keeps
the blocks from being used again: while candidates of `ppl` move through the layers, the holes come
to as much as all streams that are kept.

oneDNN generates a kernel for every shape and keeps the last thousand, of one or two megabytes each.
Experts see another number of tokens every time, so that theirs are hardly ever used again.
"""

from __future__ import annotations

import ctypes
import functools
import os

import psutil
import torch

#: What may be held for nothing, beyond what was when it was last given back.
HELD = 64 << 20
#: What the C library keeps of freed memory when it is not asked: at the heap's end, and the largest
#: block that is part of the heap, which is the most that it allows.
KEPT, KEPT_BLOCK = 256 << 20, 32 << 20
#: How much memory grows from one look at that to the next.
GROWN = 8 << 20
#: Kernels that are kept: more than a layer has shapes, forwards and backwards. And bytes of each.
KERNELS = 32
KERNEL = 2 << 20
_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd",
                     "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The C library, if it is glibc 2.33 or later; others are not asked."""
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Mallinfo2
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, TypeError, AttributeError):
        return None
    return library


class Heap:
    """The C library's memory of this process.

    Asked how much is in use, it counts all holes, which takes milliseconds where they are many; so
    it is asked only where memory has grown.
    """

    def __init__(self) -> None:
        self._library, self._process = _library(), psutil.Process()
        self._seen = self._anonymous()
        self._accepted = self._idle()

    def _anonymous(self) -> int:
        """Bytes that are resident and no page of a file."""
        memory = self._process.memory_info()
        return memory.rss - getattr(memory, "shared", 0)

    def _idle(self) -> int:
        """Of these, what is not in use; with other mappings."""
        if self._library is None:
            return 0
        used = self._library.mallinfo2()
        return self._anonymous() - used.uordblks - used.hblkhd

    def tidy(self) -> None:
        """Gives back what is held for nothing, if that has become much and memory grows."""
        if self._library is None or self._anonymous() <= self._seen + GROWN:
            return
        if self._idle() > self._accepted + HELD:
            self._library.malloc_trim(0)
            self._accepted = self._idle()
        self._seen = self._anonymous()


def prepare() -> None:
    """Has both libraries keep what is of use, unless the environment asks for something else."""
    _keep_freed()
    _keep_few_kernels()


def _keep_freed() -> None:
    library = _library()
    asked = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if library is None or any(name in os.environ for name in asked):
        return
    library.mallopt(_TRIM_THRESHOLD, KEPT)
    library.mallopt(_MMAP_THRESHOLD, KEPT_BLOCK)


def _keep_few_kernels() -> None:
    """Has oneDNN keep few kernels, if it was not used yet.

    It reads the environment once, when it is first used; processes that we start are to have
    their own way.
    """
    if _CAPACITY in os.environ:
        return
    os.environ[_CAPACITY] = str(KERNELS)
    try:
        x = torch.ones(64, 64, dtype=torch.bfloat16)
        torch.nn.functional.linear(x, x)
    finally:
        del os.environ[_CAPACITY]
