"""stdout carries one result, stderr the rest; paths of every kind; dry runs that write nothing."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from prunecomp.console import SILENCE, print_result, silence_libraries
from prunecomp.errors import PruneCompError
from tests.cli.support import DEPTH, REPOSITORY, one_line, tree

# --- results


@pytest.fixture
def commands(model, small, plan_file, tmp_path) -> dict[str, list]:
    return {
        "compress": ["compress", model, "--layers", 2, *small, "-o", tmp_path / "new" / "out"],
        "plan": ["plan", model, "--layers", 2, *small, "-o", tmp_path / "new" / "plan.json"],
        "apply": ["apply", model, plan_file, "--rounds", 2, "-o", tmp_path / "new" / "out"],
    }


COMMANDS = pytest.mark.parametrize("command", ["compress", "plan", "apply"])


@COMMANDS
def test_json(cli, commands, command):
    """One document, whatever is said beside it."""
    ended = cli(*commands[command], "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    plan = document if command == "plan" else document["plan"]
    assert len(plan["removed_layers"]) == 2
    assert len(plan["kept_layers"]) == DEPTH - 2
    if command != "plan":
        assert document["written"]["output"] == str(commands[command][-1])
        assert document["written"]["parameters"] < document["written"]["source_parameters"]


@COMMANDS
@pytest.mark.parametrize("talk", [[], ["--quiet"], ["--quiet", "--json"]])
def test_dry_run(cli, commands, command, talk, tmp_path):
    before = tree(tmp_path)
    ended = cli(*commands[command], "--dry-run", *talk)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out
    assert tree(tmp_path) == before
    if "--json" in talk:
        assert json.loads(ended.out)["dry_run"] is True


@COMMANDS
def test_dry_run_checks_the_output(refused, commands, command):
    *options, out = commands[command]
    out.parent.mkdir()
    out.write_text("there") if command == "plan" else out.mkdir()
    refused(*options, out, "--dry-run", says="exists already")


@pytest.mark.parametrize("options", [["--samples", "0"], ["--metric", "x"], ["--layers", "9"],
                                     ["--calibration", "nope.txt"]])  # fmt: skip
@pytest.mark.parametrize("command", ["compress", "plan"])
def test_dry_run_checks_the_rest(refused, commands, command, options):
    refused(*commands[command], "--dry-run", *options)


@COMMANDS
def test_quiet(cli, commands, command):
    ended = cli(*commands[command], "--quiet")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"^removed  \d, \d  \(of 6\)$", ended.out, re.MULTILINE)
    assert f"wrote    {commands[command][-1]}" in ended.out


def test_talk_goes_to_stderr(cli, commands):
    ended = cli(*commands["compress"])
    assert ended.code == 0
    lines = ended.err.splitlines()
    assert re.fullmatch(
        r"calibration: .*text.txt, 4 x 32 tokens; bfloat16 on cpu, the whole model in about .* GiB",
        lines[0],
    )
    assert [line[:8] for line in lines[1:]] == ["round 1:", "round 2:", "checked:"]
    assert "round 1:" not in ended.out


def test_fewer_samples_than_asked_for(cli, commands):
    ended = cli(*commands["plan"], "--samples", "1000")
    assert ended.code == 0
    assert "note: the text has 168 samples of 32 tokens, not 1000" in ended.err


def test_strategy_that_a_metric_does_not_have(cli, commands):
    ended = cli(*commands["plan"], "--metric", "cl", "--strategy", "iterative")
    assert ended.code == 0
    assert "note: cl picks one block at once; the strategy is one-shot" in ended.err


def test_help(cli):
    for command in ([], ["compress"], ["plan"], ["apply"]):
        ended = cli(*command, "--help")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("usage: cli.py")
        assert ("example" if command else "exit codes:") in ended.out


# --- stdout and stderr of other kinds


def test_terminal(warm, model, text, elsewhere, tmp_path):
    """A bar for every pass, with the time that is left; it clears its line."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = ["compress", model, "-o", tmp_path / "out", "--layers", "2", "--metric", "ppl",
               "--calibration", text, "--samples", "100", "--seq-len", "32", "--batch-size", "1",
               "--json"]  # fmt: skip
    run = warm.start(command, cwd=elsewhere, err=Path(os.ttyname(slave)))
    shown = b""
    while b"round 2: " not in shown:
        shown += os.read(master, 4096)
    code = int(run.codes.readline())
    while b"writing" not in shown:
        shown += os.read(master, 4096)
    os.close(slave)
    os.close(master)
    assert code == 0
    assert json.loads(run.out.read_text())["written"]
    # of 6 layers, candidate p goes through the 5 - p behind it, with 100 batches
    assert re.search(rb"candidates: +\d+%.*\d/1500 \[\d\d:\d\d<\d\d:\d\d", shown)
    assert re.search(rb"writing: ", shown)
    assert b"\x1b[A" in shown or b"\r" in shown


def test_log_file_gets_lines(capsys, monkeypatch):
    """No carriage returns, and nothing of passes that are over soon."""
    from prunecomp import progress

    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.02)
    bar = progress.Progress().bar(4, "scores", unit="batch")
    import time

    for _ in range(4):
        time.sleep(0.03)
        bar.update()
    bar.close()
    err = capsys.readouterr().err
    assert "\r" not in err
    assert err.endswith("\n")
    assert all(re.match(r"scores: +\d+%\|.*\d/4 \[", line) for line in err.splitlines())
    monkeypatch.undo()
    list(progress.Progress().track(range(3), "short", total=3, unit="x"))
    assert capsys.readouterr().err == ""


def test_closed_stderr(cli, commands, monkeypatch):
    """As ``2>&-`` does: what would be said is not said, least of all on stdout."""
    monkeypatch.setattr(sys, "stderr", None)
    ended = cli(*commands["compress"], "--json")
    assert ended.code == 0
    json.loads(ended.out)
    assert cli(*commands["compress"]).code == 2
    assert cli(*commands["compress"]).out == ""


def test_full_stdout(warm, commands, elsewhere):
    ended = warm.start(commands["plan"], cwd=elsewhere, out=Path("/dev/full"))
    code = int(ended.codes.readline())
    assert code == 1
    line = ended.err.read_text().splitlines()[-1]
    assert line == "error: stdout: cannot be written (No space left on device); all else is done"
    assert commands["plan"][-1].exists()


def test_reader_that_has_seen_enough(monkeypatch):
    """``cli.py plan ... | head -1``: no error, then or when the interpreter ends."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stdout:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", stdout)
        print_result("x" * 100_000)


def test_stdout_that_fails(monkeypatch):
    with open("/dev/full", "w") as stdout:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(PruneCompError, match="stdout: cannot be written"):
            print_result("x")


def test_stdout_without_umlauts(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    print_result("wrote größe/\udcff")
    assert stdout.buffer.getvalue() == b"wrote gr\\xf6\\xdfe/\\udcff\n"


def test_whole_process(model, text, tmp_path):
    """From a shell, as it is: nothing on stderr, one document on stdout.

    The paths are relative, not ASCII, with blanks and a slash at the end; the text is longer
    than the tokenizer's limit, and the config has keys of an older transformers, of which the
    libraries would like to say something.
    """
    work = tmp_path / "Größe und 大小"
    work.mkdir()
    shutil.copytree(model, work / "ein modèle")
    shutil.copy(text, work / "tëxt 1.txt")
    command = [sys.executable, REPOSITORY / "cli.py", "compress", "ein modèle/", "--output",
               "aus gabe/модель/", "--layers", "2", "--calibration", "tëxt 1.txt", "--samples", "4",
               "--seq-len", "32", "--json", "--quiet"]  # fmt: skip
    unset = {k: v for k, v in os.environ.items() if k not in SILENCE}
    done = subprocess.run(
        command, cwd=work, capture_output=True, text=True, timeout=300, check=False, env=unset
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["plan"]["source"]["name"] == "ein modèle/"
    assert (work / "aus gabe" / "модель" / "config.json").exists()
    assert {p.name for p in work.iterdir()} == {"ein modèle", "tëxt 1.txt", "aus gabe"}
    assert {p.name for p in (work / "aus gabe").iterdir()} == {"модель"}


OFFLINE = """
import socket, time
def no(*args, **kwargs): raise socket.gaierror(-2, "Name or service not known")
socket.getaddrinfo, time.sleep = no, lambda seconds: None
os.environ["HF_HOME"] = os.getcwd()
"""


@pytest.mark.parametrize("options", [["owner-x/name-y"], ["MODEL", "--calibration", "wikitext-2"]])
def test_no_network(warm, model, elsewhere, tmp_path, options):
    """One line, after the retries that the hub's own client makes in silence."""
    options = [model if word == "MODEL" else word for word in options]
    command = ["compress", *options, "-o", tmp_path / "a" / "out", "--layers", "1", "--seq-len", 32]
    run = warm.start(command, cwd=elsewhere, first=OFFLINE)
    ended = run.end()
    assert (ended.code, ended.out) == (2, "")
    assert "and the network" in one_line(ended.err)
    assert not (tmp_path / "a").exists()


def test_silence_is_a_default(monkeypatch):
    """Who wants to hear the libraries sets their variables."""
    for variable in [*SILENCE, "HF_HUB_DISABLE_PROGRESS_BARS"]:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    silence_libraries(progress=False)
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["HF_HUB_VERBOSITY"] == "error"
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    silence_libraries(progress=True)
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


# --- paths


@pytest.fixture
def expected(cli, model, small, tmp_path) -> dict[str, bytes]:
    out = tmp_path / "expected"
    assert cli("compress", model, "-q", "--layers", 2, *small, "-o", out).code == 0
    return weights_of(out)


def weights_of(out: Path) -> dict[str, bytes]:
    """All files but the two that name the source."""
    names = {p.name for p in out.iterdir()} - {"README.md", "prunecomp.json"}
    return {name: (out / name).read_bytes() for name in names}


@pytest.mark.parametrize("form", ["../model", "../model/", "./../here/../model", "../model//"])
def test_model_by_relative_path(cli, small, expected, tmp_path, form):
    out = "out/"
    ended = cli("compress", form, "-q", "--layers", 2, *small, "-o", out)
    assert (ended.code, ended.err) == (0, "")
    assert weights_of(tmp_path / "here" / "out") == expected


def test_snapshot_of_links(cli, model, small, expected, tmp_path):
    """As the hub's cache has it; the result has files, not links."""
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "0123", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(model, blobs)
    for number, path in enumerate(sorted(blobs.iterdir())):
        blob = path.rename(blobs / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    (tmp_path / "link").symlink_to(snapshot)
    for number, source in enumerate((snapshot, tmp_path / "link")):
        out = tmp_path / f"out{number}"
        ended = cli("compress", source, "-q", "--layers", 2, *small, "-o", out)
        assert (ended.code, ended.err) == (0, "")
        assert weights_of(out) == expected
        assert not [p for p in out.iterdir() if p.is_symlink()]


def test_model_whose_name_is_not_utf8(refused_compress, model, tmp_path):
    """Linux allows it; the libraries that read the files do not."""
    refused_compress(model.rename(tmp_path / os.fsdecode(b"mod\xe8le")), says="mod\\udce8le")
