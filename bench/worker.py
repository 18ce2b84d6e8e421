"""A process that is asked and answers in JSON lines: what is slow to import is imported once.

The asking side is `Worker`; the answering side is `answer_requests`, which the programs
`bench.load_worker` and `bench.engine_worker` call. All that libraries print goes to the log.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.process import Child
from prunecomp.errors import PruneCompError


class WorkerError(PruneCompError):
    """A worker ended, took too long, or could not do what it was asked.

    The first line says what; the tail of the log follows.
    """


class Worker:
    """The asking side; leaving the block ends the process and all that it started."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        name: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts ``python -m MODULE ARGUMENTS`` and returns at once.

        Args:
            name: how errors call it.
        """
        log.write_bytes(b"")
        self.name = name
        self.child = Child(
            [sys.executable, "-m", module, *arguments], log=log, environment=environment, talks=True
        )
        self._rest = b""

    def ask(self, request: Mapping[str, Any], *, patience_s: float) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            WorkerError: there is none after `patience_s` seconds, or it is an error.
        """
        try:
            self.child.stdin.write(json.dumps(request) + "\n")
            self.child.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            self._raise(self.child.wait(5.0) or "takes no more requests", error)
        answer = json.loads(self._line(patience_s))
        if "error" in answer:
            self._raise(f"failed: {answer['error']}")
        return answer

    def _line(self, patience_s: float) -> bytes:
        deadline, stream = time.monotonic() + patience_s, self.child.stdout.fileno()
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0:
                self.stop()
                self._raise(f"gave no answer within {patience_s:.0f} s")
            if select.select([stream], [], [], min(left, 1.0))[0]:
                if not (data := os.read(stream, 1 << 16)):
                    self._raise(self.child.wait(30.0) or "closed its output")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _raise(self, what: str, cause: Exception | None = None) -> None:
        raise WorkerError(f"{self.name} {what}\n{self.child.tail()}") from cause

    def hang_up(self) -> None:
        """Tells it to end, and returns at once."""
        self.child.hang_up()

    def stop(self) -> None:
        """Ends it, and all that it started."""
        self.child.stop()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def one_line(error: BaseException) -> str:
    """An error of whatever package, for people."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, PruneCompError) else f"{type(error).__name__}: {text}"


def answer_requests(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers every line of stdin by `handle` until stdin ends; errors are answers, too."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what packages print is no answer
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:  # noqa: BLE001 -- whatever a package raises is the answer
            traceback.print_exc()
            answer = {"error": one_line(error)}
        data = (json.dumps(answer) + "\n").encode()
        while data:
            data = data[os.write(answers, data) :]
