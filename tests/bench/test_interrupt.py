"""Ctrl-C and SIGTERM, while servers start and under load: one line, 130, no process left."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import fake_server
from tests.bench.test_server import alive, gone, helper_of

ROOT = Path(__file__).parents[2]
CODE = """
import dataclasses, functools, sys
import cli
from bench.context import Tools
from bench.server import Server
from bench.worker import Worker
from prunecomp.commands import bench
server = functools.partial(Server, program=(sys.executable, {program!r}, {mode!r}))
worker = lambda module, **options: Worker("tests.bench.hanging_load", **options)
tools = Tools(server=server, worker=worker)
original = bench._request
bench._request = lambda args: dataclasses.replace(original(args), tools=tools)
sys.exit(cli.main(["bench", {model!r}, {model!r}, "-o", {output!r}, "--skip", "offline,accuracy",
                   "--mix", "m=4:4"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["hangs", "serves"])
def test_no_process_is_left(text_model, tmp_path, number, mode):
    output = tmp_path / "run"
    code = CODE.format(
        program=fake_server.__file__, model=str(text_model), output=str(output), mode=mode
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    logs = [output / "logs" / f"server-{name}.log" for name in ("base", "minus-0")]
    if mode == "serves":  # then the load generator has been asked
        logs.append(output / "logs" / "load.log")
    end = time.monotonic() + 120
    while not all(log.exists() and "helper" in log.read_text() for log in logs):
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    assert all(alive(helper_of(log)) for log in logs)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        f"error: interrupted; what is finished is in {output}, --resume goes on with it"
    )
    assert "Traceback" not in err
    assert all(gone(log) for log in logs)
