"""Two processes under torchrun: the plan of one, one voice, and one end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.cli.support import REPOSITORY, one_line

LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


#: The second process fails in the middle, and only that one.
ONE_FAILS = """
import os, sys
sys.path.insert(0, {repository!r})
import cli
from prunecomp.calibration.runner import Runner
from prunecomp.errors import PruneCompError
def fail(*arguments, **options):
    {how}
if os.environ["RANK"] == "1":
    Runner.advance = fail
sys.exit(cli.main())
"""


@pytest.fixture
def torchrun(tmp_path):
    """``torchrun("plan", ...)``: (exit code, stdout, what our processes said on stderr)."""

    def run(*arguments, script=REPOSITORY / "cli.py"):
        command = [sys.executable, *LAUNCH, script, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        # torchrun itself reports on processes that failed; ours is the line that starts so
        ours = [line for line in ended.stderr.splitlines(keepends=True) if line[:6] == "error:"]
        return ended.returncode, ended.stdout, "".join(ours)

    return run


@pytest.mark.parametrize("metric", ["bi", "ppl", "taylor"])
def test_two_processes_plan_as_one(metric, torchrun, cli, model, text, tmp_path):
    """Same rounds, factors and perplexities; written once."""
    options = ["--layers", 2, "--metric", metric, "--protect-first", 0, "--protect-last", 0,
               "--calibration", text, "--samples", 5, "--seq-len", 32, "--batch-size", 2,
               "--dtype", "float32", "--device", "cpu", "-q", "--json"]  # fmt: skip
    command = "compress" if metric == "bi" else "plan"
    code, out, err = torchrun(command, model, "-o", tmp_path / "two", *options)
    assert (code, err) == (0, "")
    two = json.loads(out)  # one document: one process printed
    if command == "compress":
        two = two["plan"]
        manifest = json.loads((tmp_path / "two" / "prunecomp.json").read_text())
        assert two["rounds"] == manifest["plan"]["rounds"]
    else:
        assert two == json.loads((tmp_path / "two").read_text())
    one = json.loads(cli("plan", model, "-o", tmp_path / "one.json", *options).out)
    assert two["removed_layers"] == one["removed_layers"]
    for a, b in zip(two["rounds"], one["rounds"], strict=True):
        assert a["removed"] == b["removed"]
        assert a["factor"] == pytest.approx(b["factor"], rel=1e-6)
        assert a["scores"] == pytest.approx(b["scores"], rel=1e-5)
    for name, values in one["perplexity"].items():
        assert two["perplexity"][name] == pytest.approx(values, rel=1e-6)


def test_one_line_says_what_is_wrong(torchrun, model, small, tmp_path):
    code, out, err = torchrun(
        "plan", model, "-q", "-o", tmp_path / "plan.json", "--layers", 2, *small, "--samples", 1
    )
    assert code != 0
    assert out == ""
    assert "1 samples for 2 processes" in one_line(err)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise PruneCompError('its disk is full')", "its disk is full"),
        ("os.kill(os.getpid(), 9)", None),  # by whom memory had run out for
    ],
    ids=["error", "killed"],
)
def test_one_process_fails_alone(how, said, torchrun, model, small, tmp_path):
    """The other one does not wait for it, and nothing is written."""
    (tmp_path / "main.py").write_text(ONE_FAILS.format(repository=str(REPOSITORY), how=how))
    code, out, err = torchrun(
        "plan", model, "-q", "-o", tmp_path / "plan.json", "--layers", 2, *small, "--samples", 4,
        script=tmp_path / "main.py",
    )  # fmt: skip
    assert code != 0
    assert out == ""
    if said:
        assert said in one_line(err)
    else:
        assert one_line(err)
    assert not (tmp_path / "plan.json").exists()


def test_what_cannot_be_shared_is_done_once(torchrun, model):
    code, out, err = torchrun("inspect", model, "--json", "-q")
    assert (code, err) == (0, "")
    assert json.loads(out)
