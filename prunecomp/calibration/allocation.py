"""Gives back memory that the C library holds for nothing.

It cuts small pieces out of large blocks that were freed, and what lives on in them keeps the blocks
from being used again: while candidates of `ppl` move through the layers, the holes come to as much
as all streams that are kept.
"""

from __future__ import annotations

import ctypes
import functools

import psutil

#: What may be held for nothing, beyond what was when it was last given back.
HELD = 128 << 20


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
    """The C library's memory of this process."""

    def __init__(self) -> None:
        self._process, self._accepted = psutil.Process(), 0
        self._accepted = self._idle()

    def _idle(self) -> int:
        """Bytes that are resident and not in use; with what else is resident, as code is."""
        library = _library()
        if library is None:
            return 0
        info = library.mallinfo2()
        return self._process.memory_info().rss - info.uordblks - info.hblkhd

    def tidy(self) -> None:
        """Gives back what is held for nothing, if that has become much."""
        library = _library()
        if library is not None and self._idle() > self._accepted + HELD:
            library.malloc_trim(0)
            self._accepted = self._idle()
