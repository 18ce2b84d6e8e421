"""Ctrl-C, a polite kill, a closed terminal, a hard kill: at any moment, nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError
from tests.cli.support import REPOSITORY, one_line, tree

INTERRUPTED = "error: interrupted; nothing is left behind\n"

#: Moments of a run, as the functions that are then called.
MOMENTS = {
    "hashing": "prunecomp.checkpoint.reader.Checkpoint._read_all",
    "tokenising": "prunecomp.calibration.data.load_tokenizer",
    "loading": "prunecomp.machine.skeleton",
    "embedding": "prunecomp.calibration.view.PlannedModel.embed",
    "scoring": "prunecomp.calibration.runner.Runner.cosines",
    "cutting": "prunecomp.calibration.runner.Runner.advance",
    "creating": "prunecomp.checkpoint.output._remove_stale",
    "writing": "prunecomp.checkpoint.writer._copy",
    "copying": "prunecomp.checkpoint.files.shutil.copyfile",
    "configuring": "prunecomp.rewrite.write_config",
    "checking": "prunecomp.rewrite.check_written",
    "describing": "prunecomp.pipeline.model_card",
    "moving": "prunecomp.checkpoint.output._move_into_place",
}


@pytest.fixture
def strike(monkeypatch, terminal_signals):
    """``strike(function, *signals)``: the signals come when the function is called first."""

    def at(function: str, *numbers: int) -> None:
        owner, _, name = function.rpartition(".")
        import pkgutil

        owner = pkgutil.resolve_name(owner)
        original, left = getattr(owner, name), list(numbers)

        def struck(*args, **kwargs):
            while left:
                os.kill(os.getpid(), left.pop(0))
            time.sleep(0)  # a place where Python looks for signals
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, struck)

    return at


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment(refused_compress, model, strike, moment):
    strike(MOMENTS[moment], signal.SIGINT)
    assert refused_compress(model, code=130) == INTERRUPTED


@pytest.mark.parametrize("error", [ValueError("not a sequence"), CheckpointError("no such shape")])
def test_ctrl_c_that_compiled_code_has_made_an_error_of(
    refused_compress, model, monkeypatch, terminal_signals, error
):
    """As torch does with a sequence whose length it asks for; other code may reword that."""

    def lost(*args, **kwargs):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
        raise error

    monkeypatch.setattr(MOMENTS["scoring"], lost)
    assert refused_compress(model, code=130) == INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals(refused_compress, model, strike, number):
    strike(MOMENTS["writing"], number)
    assert refused_compress(model, code=130) == INTERRUPTED


def test_impatient_ctrl_c(refused_compress, model, strike):
    """A second one, in the midst of the cleaning up, does not stop it."""
    strike(MOMENTS["checking"], signal.SIGINT)
    strike("prunecomp.checkpoint.output._remove", signal.SIGINT, signal.SIGTERM)
    assert refused_compress(model, code=130) == INTERRUPTED


def test_interrupt_of_an_overwrite(refused, model, plan_file, strike, cli, tmp_path):
    assert cli("apply", model, plan_file, "-q", "-o", tmp_path / "out").code == 0
    strike(MOMENTS["moving"], signal.SIGINT)
    line = refused("apply", model, plan_file, "-q", "--overwrite", "--rounds", 1, "-o",
                   tmp_path / "out", code=130)  # fmt: skip
    assert line == INTERRUPTED


def test_finished_rounds_are_kept_where_asked_for(cli, model, small, plan_file, strike, tmp_path):
    """And are said to be; a run that continues from them ends as one in one go."""
    rounds = tmp_path / "rounds.json"
    command = ["plan", model, "-q", "--layers", 3, *small, "--resume", rounds]
    with pytest.MonkeyPatch.context() as patch:
        from prunecomp.calibration.runner import Runner

        advance, count = Runner.advance, []

        def second(self, plan):
            count.append(1)
            if len(count) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            advance(self, plan)

        patch.setattr(Runner, "advance", second)
        ended = cli(*command, "-o", tmp_path / "out.json")
    assert ended.code == 130
    assert one_line(ended.err) == f"error: interrupted; finished rounds are in {rounds}\n"
    assert not (tmp_path / "out.json").exists()
    assert len(json.loads(rounds.read_text())["rounds"]) == 1
    assert cli(*command, "-o", tmp_path / "out.json").code == 0
    done, whole = (json.loads(p.read_text()) for p in (tmp_path / "out.json", plan_file))
    assert done["rounds"] == whole["rounds"]


# --- from outside, in processes of their own


@pytest.fixture
def long_run(warm, model, text, elsewhere, tmp_path):
    """``long_run()`` starts a run that scores for some seconds."""

    def start(*options, first: str = "", samples: int = 100):
        command = ["compress", model, "-o", tmp_path / "a" / "out", "--layers", "5", "--metric",
                   "ppl", "--calibration", text, "--samples", samples, "--seq-len", "32",
                   "--batch-size", "1", *options]  # fmt: skip
        return warm.start(command, cwd=elsewhere, first=first)

    return start


@pytest.mark.parametrize(
    ("number", "line"),
    [(signal.SIGINT, "calibration: "), (signal.SIGTERM, "round 1: "), (signal.SIGHUP, "round 2: ")],
)
def test_signal_from_outside(long_run, tmp_path, number, line):
    run = long_run()
    run.wait_for(lambda err: line in err)
    run.send(number)
    ended = run.end()
    assert ended.code == 130
    assert ended.out == ""
    assert ended.err.endswith("\n" + INTERRUPTED)
    assert "Traceback" not in ended.err
    assert not (tmp_path / "a").exists()


def test_nohup(long_run, tmp_path):
    """What is set to be ignored stays so."""
    run = long_run(first="signal.signal(signal.SIGHUP, signal.SIG_IGN)", samples=20)
    run.wait_for(lambda err: "calibration: " in err)
    run.send(signal.SIGHUP)
    assert run.end().code == 0
    assert (tmp_path / "a" / "out" / "config.json").exists()


STOP = "import prunecomp.rewrite as r, time; r.{} = lambda *a, **k: time.sleep(600)"


def partials(directory: Path) -> list[Path]:
    return sorted(directory.glob(".out.prunecomp-partial-*")) if directory.exists() else []


def test_signal_while_writing(long_run, tmp_path):
    run = long_run(first=STOP.format("check_written"), samples=4)
    run.wait_for(lambda err: any((p / "config.json").exists() for p in partials(tmp_path / "a")))
    run.send(signal.SIGINT)
    ended = run.end()
    assert ended.code == 130
    assert ended.err.endswith("\n" + INTERRUPTED)
    assert not (tmp_path / "a").exists()


def test_hard_kill(cli, long_run, model, small, tmp_path):
    """What it leaves is hidden, is no model, and goes with the next run."""
    before = tree(model)
    run = long_run(first=STOP.format("carry_over"), samples=4)
    run.wait_for(lambda err: any((p / "model.safetensors").exists()
                                 for p in partials(tmp_path / "a")))  # fmt: skip
    run.send(signal.SIGKILL)
    assert run.end().code == -signal.SIGKILL
    assert not (tmp_path / "a" / "out").exists()
    (left,) = partials(tmp_path / "a")
    with pytest.raises(CheckpointError):
        Checkpoint(left)
    ended = cli("compress", model, "-q", "-o", tmp_path / "a" / "out", "--layers", 1, *small)
    assert (ended.code, ended.err) == (0, "")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]
    assert tree(model) == before


def test_ctrl_c_while_torch_is_imported(model, text, tmp_path):
    """A real process, from its start; what has been interrupted there has no time to say much."""
    command = [sys.executable, "cli.py", "compress", model, "-o", tmp_path / "out", "--layers",
               "1", "--calibration", text]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    maps, end = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 120
    while "libtorch_cpu" not in maps.read_text() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", INTERRUPTED)
    assert not (tmp_path / "out").exists()
