"""Runs a command that leaves nothing behind: ``python -m bench.supervisor FD COMMAND...``.

`FD` is the read end of a pipe whose other end the harness holds. When that closes, because the
harness is done with the command or is dead of whatever, SIGKILL included, the command and all that
it started get SIGTERM and, a little later, SIGKILL. The supervisor is the reaper of orphans below
it, so processes that moved to another session, or whose parent died, are among them.

Ends with the exit code of the command; 128 + n where signal n ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PATIENCE_S = 10.0
_POLL_S = 0.2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere an orphan of a killed server may escape."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _dies_with_us() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _descendants() -> list:
    import psutil

    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_all(patience_s: float = PATIENCE_S) -> None:
    """Ends every process below this one."""
    import psutil

    for number, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
        end = time.monotonic() + seconds
        told: set[int] = set()
        while time.monotonic() < end:
            with contextlib.suppress(psutil.NoSuchProcess):
                if not (left := _descendants()):
                    return
                for process in left:  # what is started meanwhile is told as well
                    if process.pid not in told:
                        told.add(process.pid)
                        process.send_signal(number)
            time.sleep(0.05)
            _reap()


def main(arguments: list[str]) -> int:
    """Runs the command until it ends or the pipe closes; returns the exit code."""
    lifeline, command = int(arguments[0]), arguments[1:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(128 + signal.SIGTERM))
    code = 128 + signal.SIGTERM
    try:
        child = subprocess.Popen(command, preexec_fn=_dies_with_us)
        while (ended := child.poll()) is None:
            if select.select([lifeline], [], [], _POLL_S)[0]:
                break
        if ended is not None:
            code = ended if ended >= 0 else 128 - ended
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_all()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
