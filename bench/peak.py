"""Starts a command and learns its peak resident memory.

The kernel counts for a new process what the process that started it ever held, so a script that has
made a model cannot ask for it (`ru_maxrss`). A small process stands between the two: this file, run
as a script, with the end of a pipe to which the bytes are written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def start(command: Sequence[str], **options: Any) -> tuple[subprocess.Popen, int]:
    """The process in between, which ends as the command does, and a pipe for `read_peak`.

    Args:
        options: of `subprocess.Popen`.
    """
    told, tell = os.pipe()
    between = [sys.executable, "-I", "-S", __file__, str(tell), *command]
    try:
        return subprocess.Popen(between, pass_fds=[tell], **options), told
    finally:
        os.close(tell)


def read_peak(told: int) -> int:
    """Bytes, when the command has ended; 0 if it could not be started."""
    with os.fdopen(told) as pipe:
        return int(pipe.read() or 0)


def _main() -> int:
    tell, *command = sys.argv[1:]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    os.write(int(tell), str(usage.ru_maxrss * 1024).encode())  # KiB on Linux
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except KeyboardInterrupt:
        sys.exit(130)
