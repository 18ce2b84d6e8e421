"""Faults on the way of `export`: never half a model, always one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError
from tests.cli.support import largest_file, one_line, tree
from tests.cli.test_weight_errors import O_PROJ, WEIGHTS, header, put_header, shard

KILLS = 50
#: For the test of kills: copies and edits take a little longer, so that most hits are there.
SLOW = """
import time, prunecomp.checkpoint.writer as w
def slowed(f):
    return lambda *a: (time.sleep(0.002), f(*a))
w._copy, w._edit = slowed(w._copy), slowed(w._edit)
"""


@pytest.fixture(params=["as it stands", "with a plan"])
def how(request, planned, tmp_path) -> list:
    """Options of an export."""
    if request.param == "as it stands":
        return []
    (tmp_path / "plan.json").write_text(json.dumps(planned))
    return ["--plan", tmp_path / "plan.json"]


@pytest.fixture
def refused_export(refused, tmp_path):
    """One line, nothing on stdout, nothing changed."""

    def check(model, *options, output=None, **expected) -> str:
        output = tmp_path / "deep" / "out" if output is None else output
        return refused("export", model, "-q", "-o", output, *options, **expected)

    return check


# --- sources


@pytest.mark.parametrize("length", [0, 7, 100, -1, -1000])
def test_truncated(refused_export, model, how, length):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:length])
    refused_export(model, *how, says=("model.safetensors: damaged", "download it again"))


@pytest.mark.parametrize("length", [0, 1, 5, 2**31, 2**63, 2**64 - 1])
def test_header_length_lies(refused_export, model, how, length):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(length.to_bytes(8, "little") + data[8:])
    refused_export(model, *how, says="damaged")


@pytest.mark.parametrize(
    ("key", "value"), [("shape", [33]), ("dtype", "F64"), ("data_offsets", [0, 64])]
)
def test_entry_lies(refused_export, model, how, key, value):
    head, data = header(model)
    head["model.norm.weight"][key] = value
    put_header(model, head, data)
    refused_export(model, *how, says=("damaged", "tensor"))


@pytest.mark.parametrize("file", ["model-00002.safetensors", "../x.safetensors", "/etc/passwd", 3])
def test_index_names_what_is_not_there(refused_export, model, how, file):
    shard(model, lambda weight_map: {**weight_map, O_PROJ: file})
    refused_export(model, *how, says=("model.safetensors.index.json: names", str(file)))


def test_index_leads_outside(refused_export, model, pristine, how):
    """Not even to a file that holds the tensor."""
    outside = os.path.relpath(pristine / WEIGHTS, model)
    shard(model, lambda weight_map: {**weight_map, O_PROJ: outside})
    refused_export(model, *how, says=(outside, "not a file of this directory"))


def test_missing_tensor(refused_export, model, how):
    head, data = header(model)
    put_header(model, {"something.else" if k == O_PROJ else k: v for k, v in head.items()}, data)
    if how:
        refused_export(model, *how, says="another model")
    else:
        refused_export(model, says=("missing or misshapen", O_PROJ))


def test_changed_bytes_do_not_fit_the_plan(refused_export, model, planned, tmp_path):
    """One bit of the last tensor: known only when all is read."""
    (tmp_path / "plan.json").write_text(json.dumps(planned))
    data = bytearray((model / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (model / WEIGHTS).write_bytes(data)
    refused_export(model, "--plan", tmp_path / "plan.json",
                   says=("made for another model", "model.safetensors differs"))  # fmt: skip


def test_file_that_shrinks_while_it_is_read(cli, model, how, tmp_path, monkeypatch):
    from prunecomp.checkpoint import writer

    copy = writer._copy

    def truncated(source, *arguments):
        os.truncate(source.name, 2000)
        copy(source, *arguments)

    monkeypatch.setattr(writer, "_copy", truncated)
    ended = cli("export", model, *how, "-q", "-o", tmp_path / "deep" / "out")
    assert (ended.code, ended.out) == (2, "")
    assert "model.safetensors: ended early" in one_line(ended.err)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("value", "says", "code"),
    [(1e5, "does not fit torch.float16", 1), (float("nan"), "holds NaN or infinity", 2)],
)
def test_value_that_does_not_fit(refused_export, model, value, says, code):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / WEIGHTS)
    tensors[O_PROJ][3, 4] = value
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    refused_export(model, "--dtype", "float16", says=(O_PROJ, says), code=code)


@pytest.mark.parametrize("size", ["", "0", "0GB", "-5GB", "5XB", "1e3", "nan", "GB"])
def test_shard_size_that_is_none(cli, model, tmp_path, size):
    ended = cli("export", model, "-o", tmp_path / "out", f"--max-shard-size={size}")
    assert ended.code == 2
    assert "is not a size; give one such as 5GB" in ended.err
    assert not (tmp_path / "out").exists()


# --- a disk that is full


@pytest.mark.parametrize("limit", [100, 20_000, -10])
def test_file_that_cannot_grow(refused_export, model, how, limit):
    whole = (model / WEIGHTS).stat().st_size
    if how:
        whole = whole * 2 // 3  # three of six layers are left
    with largest_file(limit if limit > 0 else whole * 9 // 10):
        refused_export(model, *how, code=1, says=("cannot be written", "free some space"))


def test_full_disk(refused_export, cli, model, how, small_disk):
    (small_disk / "filler").write_bytes(bytes(130_000))
    says = ("cannot be written (No space left on device)", "free some space")
    refused_export(model, *how, output=small_disk / "new" / "out", code=1, says=says)
    (small_disk / "filler").unlink()
    assert cli("export", model, *how, "-q", "-o", small_disk / "new" / "out").code == 0


# --- killed


def partials(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.startswith(".out.")]


@pytest.mark.slow
def test_killed_at_random_moments(warm, model, planned, elsewhere, tmp_path):
    """Under its name there is a whole model or none; what else is left goes with the next run."""
    (tmp_path / "plan.json").write_text(json.dumps(planned))
    place, whole = tmp_path / "place", tmp_path / "whole"
    place.mkdir()
    options = ["--plan", tmp_path / "plan.json", "--max-shard-size", "10KB", "--overwrite", "-q"]

    def start(output: Path):
        command = ["export", model, *options, "-o", output]
        return warm.start(command, cwd=elsewhere, first=SLOW)

    started = time.monotonic()
    assert start(place / "out").end().code == 0
    seconds = time.monotonic() - started
    (place / "out").rename(whole)
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    weights = {name for name in expected if name.startswith("model")}
    assert len(weights) > 5

    def is_whole(directory: Path) -> bool:
        names = {path.name for path in directory.iterdir()}
        return names == expected.keys() and all(
            (directory / name).read_bytes() == expected[name] for name in names
        )

    found = {"nothing": 0, "hidden": 0, "whole": 0}
    for seed in range(KILLS):
        moment = random.Random(seed).uniform(0, seconds)
        run = start(place / "out")
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):  # done already
            run.send(signal.SIGKILL)
        run.end()
        left, output = partials(place), place / "out"
        what = f"seed {seed}: killed after {moment * 1e3:.0f} ms"
        if output.exists():
            assert is_whole(output), what
            shutil.rmtree(output)
        for partial in left:
            if (partial / "config.json").exists():  # written last: then the weights are complete
                assert all((partial / n).read_bytes() == expected[n] for n in weights), what
            else:
                with pytest.raises(CheckpointError):
                    Checkpoint(partial)
        found["hidden" if left else "whole" if output.exists() else "nothing"] += 1
        if seed % 10 == 9:
            assert start(place / "out").end().code == 0, what
            assert is_whole(place / "out"), what
            assert [path.name for path in place.iterdir()] == ["out"], what
            shutil.rmtree(place / "out")
    assert found["hidden"], found


def test_interrupt_leaves_nothing(refused_export, model, how, monkeypatch, terminal_signals):
    from prunecomp.checkpoint import writer

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    monkeypatch.setattr(writer, "_copy", interrupted)
    line = refused_export(model, *how, code=130)
    assert line == "error: interrupted; nothing is left behind\n"


def test_same_input_gives_the_same_bytes(cli, model, how, tmp_path):
    for name in ("a", "b"):
        output = tmp_path / name
        assert cli("export", model, *how, "-q", "-o", output, "--max-shard-size", "20KB").code == 0
    first, second = (
        {name: entry[2] for name, entry in tree(tmp_path / each).items()} for each in "ab"
    )
    assert len(first) > 5
    assert first == second


def test_one_line_for_a_format_that_is_none(cli, model, tmp_path):
    ended = cli("export", model, "-o", tmp_path / "out", "--format", "gguf")
    assert ended.code == 2
    assert "unknown export format 'gguf'" in one_line(ended.err)
