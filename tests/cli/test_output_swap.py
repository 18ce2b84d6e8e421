"""How an output gets its name, whatever interrupts that, and what earlier runs left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunecomp.checkpoint import output, ownership
from prunecomp.checkpoint.output import output_directory, output_file
from prunecomp.checkpoint.ownership import hold, own_id
from prunecomp.errors import UsageError


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


DEAD, ALIVE, OWN = 2**22 + 1, os.getppid(), os.getpid()  # the first is above every process id


def owner(process: int, *, boot: str = "", namespace: str = "") -> str:
    """What the names of another process's partial outputs end with."""
    mine = own_id().split(".")
    return f"{boot or mine[0]}.{namespace or mine[1]}.{process}"


def leave(directory: Path, name: str) -> Path:
    """An output of a version of prunecomp that did not list its files."""
    (directory / name).mkdir()
    (directory / name / "config.json").write_text("left")
    (directory / name / "prunecomp.json").write_text(json.dumps({"prunecomp": "0.1"}))
    return directory / name


def partial(name: str, owner: str) -> str:
    return f".{name}.prunecomp-partial-{owner}"


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, as some network file systems are."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("name", ["out", "out[1]", "o*t"])
def test_remains_of_killed_runs_go(tmp_path, name):
    """Whatever their number says: of one with our own, and of one that a running process has."""
    for process in (DEAD, OWN, ALIVE):
        leave(tmp_path, partial(name, owner(process)))
    leave(tmp_path, partial(name, owner(DEAD, namespace="1")))  # of a container on this machine
    leave(tmp_path, partial("other", owner(DEAD)))
    with output_directory(tmp_path / name) as made:
        (made / "config.json").write_text("new")
    assert (tmp_path / name / "config.json").read_text() == "new"
    assert names(tmp_path) == {name, partial("other", owner(DEAD))}


def test_what_its_owner_holds_stays(tmp_path):
    """Also under the number of a process that is not seen here, as in another container."""
    left = leave(tmp_path, partial("out", owner(DEAD)))
    with hold(left), output_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == {left.name, "out"}
    with output_directory(tmp_path / "out", overwrite=True):
        pass
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize(
    "who", [owner(DEAD, boot="00000000"), owner(OWN, boot="00000000"), str(DEAD), "x",
            "unknown.0.1"],
    ids=["another boot", "another boot, our number", "a number only", "no number", "unknown"],
)  # fmt: skip
@pytest.mark.parametrize("old", ["", ".old"])
def test_what_cannot_be_told_stays_and_is_named(tmp_path, who, old):
    """Of another machine, or of a version that gave the number of its process only."""
    left, said = leave(tmp_path, partial("out", who + old)), []
    with output_directory(tmp_path / "out", note=said.append):
        pass
    assert names(tmp_path) == {left.name, "out"}
    assert len(said) == 1
    assert str(left) in said[0]
    assert "delete it if that run has ended" in said[0]


def test_without_locks_the_number_of_the_process_counts(tmp_path, no_locks):
    """Where it is one of ours; in another container's it is somebody else's."""
    theirs = partial("out", owner(DEAD, namespace="1"))
    for name in (partial("out", owner(DEAD)), partial("out", owner(OWN)),
                 partial("out", owner(ALIVE)), theirs):  # fmt: skip
        leave(tmp_path, name)
    said = []
    with output_directory(tmp_path / "out", note=said.append):
        pass
    assert names(tmp_path) == {"out", partial("out", owner(ALIVE)), theirs}
    assert [theirs in text for text in said] == [True]


def test_no_boot_no_claim(tmp_path, monkeypatch):
    """A machine that does not say which boot this is removes nothing but its own."""
    monkeypatch.setattr(ownership, "_boot", lambda: "")
    left = leave(tmp_path, partial("out", own_id()))
    with pytest.raises(FileExistsError), output_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == {left.name}


KILLED = """
import os, sys
from pathlib import Path
from prunecomp.checkpoint.output import output_directory
with output_directory(Path(sys.argv[1])) as made:
    (made / "half").write_text("x")
    print(made, flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def test_a_writer_is_left_alone_until_it_is_killed(tmp_path):
    """Two processes, one lock: what counts in earnest."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        made = Path(other.stdout.readline().strip())
        with output_directory(tmp_path / "out"):
            pass
        assert (made / "half").read_text() == "x"
        other.stdin.close()
        assert other.wait(60) == 9
    assert made.exists()
    (tmp_path / "out").rmdir()
    with output_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == {"out"}


def test_remains_of_a_killed_swap_stay_until_there_is_a_result(tmp_path):
    """A run that was killed between its two renames has left the old output under this name."""
    old = partial("out", owner(DEAD)) + ".old"
    leave(tmp_path, old)
    with pytest.raises(ZeroDivisionError), output_directory(tmp_path / "out"):
        raise ZeroDivisionError
    assert names(tmp_path) == {old}
    with output_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("number", [1, 2])
def test_interrupted_swap_is_undone(tmp_path, monkeypatch, number):
    """Whichever of the two renames does not happen."""
    leave(tmp_path, "out")
    rename, count = Path.rename, [0]

    def interrupted(self, target):
        count[0] += 1
        if count[0] == number:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), output_directory(tmp_path / "out", overwrite=True):
        pass
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "config.json").read_text() == "left"


def test_interrupt_behind_the_swap(tmp_path, monkeypatch):
    """The new output is in place and stays; the old one goes."""
    leave(tmp_path, "out")
    remove = output._remove
    calls = []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(output, "_remove", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        output_directory(tmp_path / "out", overwrite=True) as partial,
    ):
        (partial / "config.json").write_text("new")
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "config.json").read_text() == "new"


def test_two_runs_for_one_name(tmp_path):
    """The second to end does not replace what the first wrote, unless it was told to."""

    def second() -> None:
        with output_directory(tmp_path / "out") as partial:
            (partial / "config.json").write_text("second")
            leave(tmp_path, "out")

    with pytest.raises(UsageError, match="has appeared meanwhile"):
        second()
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "config.json").read_text() == "left"


def test_parents_that_others_use_stay(tmp_path):
    def fill() -> None:
        with output_directory(tmp_path / "a" / "b" / "out"):
            (tmp_path / "a" / "theirs").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert names(tmp_path) == {"a"}
    assert names(tmp_path / "a") == {"theirs"}


def test_link_in_the_path(tmp_path):
    """Also one whose target is not there yet."""
    (tmp_path / "link").symlink_to("real")
    with output_file(tmp_path / "link" / "a" / "file") as partial:
        partial.write_text("x")
    assert (tmp_path / "real" / "a" / "file").read_text() == "x"


def test_file_that_was_not_written(tmp_path):
    with pytest.raises(FileNotFoundError), output_file(tmp_path / "a" / "file"):
        pass
    assert names(tmp_path) == set()
