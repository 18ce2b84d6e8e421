"""How an output gets its name, whatever interrupts that, and what earlier runs left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunecomp.checkpoint import output
from prunecomp.checkpoint.output import output_directory, output_file
from prunecomp.errors import UsageError


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


DEAD, ALIVE, OWN = 2**22 + 1, os.getppid(), os.getpid()  # the first is above every process id


def leave(directory: Path, name: str) -> None:
    (directory / name).mkdir()
    (directory / name / "config.json").write_text("left")


@pytest.mark.parametrize("name", ["out", "out[1]", "o*t"])
def test_remains_of_killed_runs_go(tmp_path, name):
    """Also of one with our own id, as every run in a container has."""
    for owner in (DEAD, OWN):
        leave(tmp_path, f".{name}.prunecomp-partial-{owner}")
    for kept in (f".{name}.prunecomp-partial-{ALIVE}", f".{name}.prunecomp-partial-x",
                 f".other.prunecomp-partial-{DEAD}"):  # fmt: skip
        leave(tmp_path, kept)
    with output_directory(tmp_path / name) as partial:
        (partial / "config.json").write_text("new")
    assert (tmp_path / name / "config.json").read_text() == "new"
    assert names(tmp_path) == {name, f".{name}.prunecomp-partial-{ALIVE}",
                               f".{name}.prunecomp-partial-x",
                               f".other.prunecomp-partial-{DEAD}"}  # fmt: skip


def test_remains_of_a_killed_swap_stay_until_there_is_a_result(tmp_path):
    """A run that was killed between its two renames has left the old output under this name."""
    old = f".out.prunecomp-partial-{DEAD}.old"
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
