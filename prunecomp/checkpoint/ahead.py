"""Brings the beginnings of weight files into memory while Python still loads its packages.

That takes seconds, in which a disk would have nothing to do.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

#: As much as a fast disk reads in the time; it must not drive out what others need.
MOST_BYTES = 2 << 30
_BLOCK_BYTES = 8 << 20


def _read(directory: Path, most: int) -> None:
    buffer = bytearray(_BLOCK_BYTES)
    with contextlib.suppress(OSError):  # whoever really reads the files says what is wrong
        for path in sorted(directory.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    most -= got
                    if most <= 0:
                        return


def read_ahead(directory: Path, *, most: int = MOST_BYTES) -> threading.Thread:
    """Starts to read up to `most` bytes, in the background; nobody needs to wait for it.

    Files come in the order of their names, in which they are written as well.
    """
    thread = threading.Thread(target=_read, args=(directory, most), daemon=True)
    thread.start()
    return thread
