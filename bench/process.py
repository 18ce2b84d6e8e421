"""Child processes that end with us, whatever ends us, and a log that tells why they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bench.supervisor import PATIENCE_S

LOG_TAIL_LINES = 25
_ROOT = Path(__file__).resolve().parents[1]


class Child:
    """A command under `bench.supervisor`; leaving the block ends it and all that it started.

    Attributes:
        log: what it says on stderr, and on stdout where that is not `answers`.
        pid: of the supervisor, whose descendants the command's processes are.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        talks: bool = False,
    ) -> None:
        """Starts it.

        Args:
            talks: whether it takes requests on stdin and answers on stdout.
        """
        self.log = log
        lifeline, self._lifeline = os.pipe()
        pipe = subprocess.PIPE if talks else None
        try:
            with log.open("ab") as sink:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "bench.supervisor", str(lifeline), *command],
                    stdin=pipe or subprocess.DEVNULL, stdout=pipe or sink, stderr=sink,
                    pass_fds=[lifeline], start_new_session=True, text=talks or None,
                    env={**os.environ, **(environment or {}), "PYTHONPATH": _python_path()},
                )  # fmt: skip
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)
        self.pid = self._process.pid

    @property
    def stdin(self) -> IO[Any]:
        return self._process.stdin

    @property
    def stdout(self) -> IO[Any]:
        return self._process.stdout

    def ended(self) -> str | None:
        """How it ended, to read; None while it runs."""
        code = self._process.poll()
        return None if code is None else how_it_ended(code)

    def wait(self, seconds: float) -> str | None:
        """The same after at most `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.ended()

    def tail(self) -> str:
        """The last lines of the log."""
        return tail(self.log)

    def hang_up(self) -> None:
        """Tells it to end, and returns at once."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def stop(self) -> None:
        """Ends all of it; returns when nothing is left."""
        self.hang_up()
        deadline = time.monotonic() + 2 * PATIENCE_S + 5
        while self._process.poll() is None and time.monotonic() < deadline:
            self.wait(0.5)
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _python_path() -> str:
    """So that a child finds this package from wherever it is started."""
    return os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))


def how_it_ended(code: int) -> str:
    """An exit code in words; 137 is what the kernel's out-of-memory killer leaves."""
    number = -code if code < 0 else code - 128
    if number == signal.SIGKILL:
        return "was killed (SIGKILL), as the kernel does when memory runs out"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit code {code}"


def tail(log: Path) -> str:
    """The last lines of a log file."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join([line for line in lines if line.strip()][-LOG_TAIL_LINES:])
