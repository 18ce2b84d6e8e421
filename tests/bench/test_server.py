"""Servers that come up, and all the ways in which they do not; a stand-in takes vLLM's place."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.memory import kv_cache_tokens, peak_of_tree
from bench.process import how_it_ended
from bench.server import Server, ServerError, cause_in, check_port, free_port
from prunecomp.errors import UsageError
from tests.bench import fake_server

PROGRAM = str(Path(fake_server.__file__))


@pytest.fixture
def start(tmp_path):
    """``start(mode)``: a server; nothing of it may be alive at the end of the test."""
    log = tmp_path / "server.log"

    def start(mode: str, **options) -> Server:
        return Server(
            tmp_path / "the-model", log=log, program=(sys.executable, PROGRAM, mode), **options
        )

    yield start
    assert gone(log)


def helper_of(log: Path) -> int:
    end = time.monotonic() + 30
    while "helper " not in log.read_text() or "\n" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(log.read_text().split("helper ")[1].split()[0])


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def gone(log: Path, seconds: float = 15.0) -> bool:
    pid, end = helper_of(log), time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_up_then_gone(start):
    with start("slow") as server:
        server.wait_until_up(60)
        assert server.startup_s >= 1
        assert kv_cache_tokens(server.get("/metrics")) == 1024
        assert peak_of_tree(server.child.pid)["peak_bytes"] > 1 << 20
        server.check_alive()
        assert alive(helper_of(server.log))
    with pytest.raises(OSError, match="refused"):
        server.get("/health")


@pytest.mark.parametrize(
    ("mode", "says", "last"),
    [
        ("refuses", "vLLM ended with exit code 1 before it was up: ValueError: Model "
         "architectures ['Odd'] are not supported", "See root cause above."),
        ("killed", "vLLM was killed (SIGKILL), as the kernel does when memory runs out", ""),
    ],
)  # fmt: skip
def test_not_up(start, mode, says, last):
    with start(mode) as server, pytest.raises(ServerError) as error:
        server.wait_until_up(60)
    first, *tail = str(error.value).splitlines()
    assert first.startswith(f"{server.directory}: {says}")
    assert tail[-1].endswith(last)


def test_too_slow(start):
    with start("hangs") as server, pytest.raises(ServerError) as error:
        server.wait_until_up(0.5)
    assert "was not up after 0 s; give it longer with --startup-timeout" in str(error.value)
    assert "helper" in str(error.value)


def test_dies_under_load(start):
    with start("dies") as server:
        server.wait_until_up(60)
        assert server.child.wait(60) == "ended with exit code 1"
        with pytest.raises(ServerError, match="ended with exit code 1 under load") as error:
            server.check_alive()
    assert fake_server.OUT_OF_MEMORY in str(error.value).splitlines()[0]


def test_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} cannot be used .*choose another --port"):
            Server(tmp_path, log=tmp_path / "log", port=port)
    check_port(free_port())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_harness(tmp_path, number):
    """Even if it is killed and cannot clean up."""
    code = f"""
import sys, time
from pathlib import Path
from bench.server import Server
server = Server(Path("m"), log=Path({str(tmp_path / "log")!r}),
                program=(sys.executable, {PROGRAM!r}, "runs"))
time.sleep(600)
"""
    harness = subprocess.Popen([sys.executable, "-c", code], cwd=Path(PROGRAM).parents[2])
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    pid = helper_of(tmp_path / "log")
    assert alive(pid)
    os.kill(harness.pid, number)
    harness.wait()
    assert gone(tmp_path / "log")


def test_words():
    assert how_it_ended(137) == how_it_ended(-9)
    assert how_it_ended(-11) == "was killed by SIGSEGV"
    assert how_it_ended(3) == "ended with exit code 3"
    assert cause_in("all is well\n") == ""
    assert cause_in("x\nOSError: [Errno 98] in use\nbye") == "OSError: [Errno 98] in use"
