"""Where the output must not go, what is replaced, and that a failure leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from prunecomp.errors import UsageError
from tests.cli.support import MORTAL, largest_file, one_line, tree

# --- what is there already


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("kind", ["file", "link", "dangling", "loop"])
def test_no_directory(refused_compress, model, tmp_path, kind, overwrite):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    else:
        (tmp_path / "target").mkdir()
        out.symlink_to({"link": "target", "dangling": "nowhere", "loop": "out"}[kind])
    refused_compress(model, *overwrite, output=out, says="exists and is not a directory")


@pytest.mark.parametrize("content", [[], ["config.json"], ["notes.txt"]])
def test_directory(refused_compress, model, tmp_path, content):
    (tmp_path / "out").mkdir()
    for name in content:
        (tmp_path / "out" / name).write_text("{}")
    refused_compress(model, output=tmp_path / "out", says=("exists already", "--overwrite"))


@pytest.mark.parametrize(
    "content", [["thesis.tex"], ["config.json", "thesis.tex"], [".git/"], ["config.json"]]
)
def test_overwrite_of_what_is_not_ours(refused_compress, model, tmp_path, content):
    """A config.json, or a whole model, proves nothing: only our manifest does."""
    out = tmp_path / "out"
    out.mkdir()
    for name in content:
        if name.endswith("/"):
            (out / name).mkdir()
        else:
            (out / name).write_text("{}")
    says = ("replaces only what prunecomp wrote", "no prunecomp.json", content[-1].strip("/"))
    refused_compress(model, "--overwrite", output=out, says=says)
    shutil.copytree(model, tmp_path / "theirs")
    refused_compress(model, "--overwrite", output=tmp_path / "theirs", says=says[:2])


@pytest.fixture
def written(cli, model, plan_file, tmp_path) -> Path:
    """An output of ours."""
    assert cli("apply", model, plan_file, "-q", "-o", tmp_path / "out").code == 0
    return tmp_path / "out"


def add_file(out: Path) -> str:
    (out / "notes.txt").write_text("precious")
    return "notes.txt"


def add_nested(out: Path) -> str:
    (out / "eval" / "deep").mkdir(parents=True)
    (out / "eval" / "deep" / "result.json").write_text("{}")
    return "eval"


def add_empty_folder(out: Path) -> str:
    (out / ".git").mkdir()
    return ".git"


def add_link(out: Path) -> str:
    (out / "data").symlink_to(out.parent)
    return "data"


def add_shard(out: Path) -> str:
    """Of a kind that we write, but not in this output."""
    (out / "model-00001-of-00002.safetensors").write_bytes(b"x")
    return "model-00001-of-00002.safetensors"


@pytest.mark.parametrize("add", [add_file, add_nested, add_empty_folder, add_link, add_shard])
@pytest.mark.parametrize("command", ["apply", "compress", "export"])
def test_overwrite_spares_what_others_put_into_an_output(
    refused, model, plan_file, small, written, add, command
):
    name = add(written)
    options = {"apply": [plan_file], "compress": ["--layers", 1, *small], "export": []}[command]
    refused(command, model, *options, "-q", "-o", written, "--overwrite",
            says=("replaces only what prunecomp wrote", "also holds " + name))  # fmt: skip


def test_overwrite(cli, model, small, written, tmp_path):
    """Of an output of ours, and of an empty directory: replaced whole."""
    manifest = json.loads((written / "prunecomp.json").read_text())
    assert manifest["files"] == sorted(p.name for p in written.iterdir())
    for _ in range(2):
        ended = cli("compress", model, "-q", "-o", written, "--overwrite", "--layers", 2, *small)
        assert (ended.code, ended.err) == (0, "")
        assert json.loads((written / "config.json").read_text())["num_hidden_layers"] == 4
        assert {p.name for p in tmp_path.iterdir()} == {"here", "model", "out", "plan.json"}
        shutil.rmtree(written)
        written.mkdir()


def test_overwrite_of_an_output_of_an_older_version(cli, refused, model, plan_file, written):
    """Its manifest lists no files; those that it is known to have written may go."""
    manifest = json.loads((written / "prunecomp.json").read_text())
    del manifest["files"]
    (written / "prunecomp.json").write_text(json.dumps(manifest))
    (written / "LICENSE").touch()
    command = ["apply", model, plan_file, "-q", "-o", written, "--overwrite"]
    (written / "thesis.tex").touch()
    refused(*command, says="also holds thesis.tex")
    (written / "thesis.tex").unlink()
    assert cli(*command).code == 0
    assert not (written / "LICENSE").exists()


def test_what_appears_meanwhile_is_spared_too(cli, model, plan_file, written, monkeypatch):
    import prunecomp.rewrite

    check = prunecomp.rewrite.check_written
    monkeypatch.setattr(
        "prunecomp.rewrite.check_written", lambda *a: [check(*a), add_file(written)][:1]
    )
    ended = cli("apply", model, plan_file, "-q", "-o", written, "--overwrite")
    assert ended.code == 2
    assert "also holds notes.txt" in one_line(ended.err)
    assert (written / "notes.txt").read_text() == "precious"


def test_mount_point(refused_compress, model, tmp_path, monkeypatch):
    """A volume of a container cannot be replaced; this is known before the work."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "out")
    refused_compress(
        model, "--overwrite", output=tmp_path / "out", says=("mount point", "inside it")
    )


# --- the model itself


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_the_model_itself(refused_compress, model, tmp_path, overwrite):
    (tmp_path / "link").symlink_to(model)
    for source, out in ((model, model), (tmp_path / "link", model), (model, tmp_path / "link"),
                        (model, tmp_path / "no" / ".." / "model")):  # fmt: skip
        refused_compress(source, *overwrite, output=out, says="is the model itself")


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_inside_the_model(refused_compress, model, overwrite):
    for inside in ("out", "a/b/out", "tokenizer.json"):
        refused_compress(
            model, *overwrite, output=model / inside, says="lies inside the model directory"
        )


def test_around_the_model(refused_compress, model, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refused_compress(model, "--overwrite", output=tmp_path, says="holds files of the model")


def test_what_the_links_of_a_snapshot_lead_to(refused_compress, model, tmp_path):
    snapshot = tmp_path / "hub" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blobs = Path(shutil.move(model, tmp_path / "hub" / "blobs"))
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    refused_compress(snapshot, "--overwrite", output=blobs, says="holds files of the model")


def test_apply_and_plan_spare_the_model(refused, model, plan_file, small):
    refused("apply", model, plan_file, "--overwrite", "-o", model, says="is the model itself")
    for name in ("plan.json", "config.json"):
        refused("plan", model, "--overwrite", "-o", model / name, "--layers", 1, *small,
                says="lies inside the model directory")  # fmt: skip


def test_library_spares_the_model(model, plan_file, tmp_path):
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.pipeline import apply_plan
    from prunecomp.plan import read_plan
    from prunecomp.progress import Progress

    before = tree(model)
    with pytest.raises(UsageError, match="is the model itself"):
        apply_plan(Checkpoint(model), read_plan(plan_file), model, overwrite=True,
                   progress=Progress(quiet=True))  # fmt: skip
    assert tree(model) == before


# --- places that cannot be written


@pytest.mark.parametrize("out", ["/proc/out", "/proc/a/b/out", "/sys/out", "/dev/null/out"])
def test_read_only_place(refused_compress, model, out):
    says = "is not a directory" if "null" in out else "cannot be written"
    refused_compress(model, output=out, says=(out, says, "choose another place"))


def test_read_only_directory(warm, model, elsewhere, small, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    for out in ("out", "a/b/out"):
        command = ["compress", model, "-o", tmp_path / "locked" / out, "--layers", "1", *small]
        ended = warm.start(command, cwd=elsewhere, first=MORTAL).end()
        assert ended.code == 2
        assert "Permission denied" in one_line(ended.err)
        shutil.rmtree(elsewhere)
        elsewhere.mkdir()
    assert list((tmp_path / "locked").iterdir()) == []


def test_unsearchable_directory(warm, model, elsewhere, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o000)
    command = ["compress", model, "-o", tmp_path / "locked" / "out", "--layers", "1"]
    ended = warm.start(command, cwd=elsewhere, first=MORTAL).end()
    assert ended.code == 2
    assert "Permission denied" in one_line(ended.err)


def test_below_a_file(refused_compress, model):
    refused_compress(model, output=model.parent / "model" / "config.json" / "x", says="")
    (model.parent / "file").touch()
    refused_compress(model, output=model.parent / "file" / "x", says="is not a directory")


def test_below_a_loop_of_links(refused_compress, model, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    refused_compress(model, output=tmp_path / "loop" / "out", says="is not a directory")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 230, "é" * 120])
def test_long_name(refused_compress, model, tmp_path, name):
    refused_compress(model, output=tmp_path / name, says="longer than 200 bytes")


def test_name_that_is_not_utf8(refused_compress, model, tmp_path):
    refused_compress(model, output=tmp_path / os.fsdecode(b"out-\xff"), says="is not UTF-8")


def test_current_directory(refused_compress, model, tmp_path, monkeypatch):
    for out in (".", "", "../here", "no/.."):
        refused_compress(model, output=out, says="exists already")
    refused_compress(model, "--overwrite", output="..", says="holds files of the model")


# --- a disk that is full


@pytest.fixture
def weights_size(cli, model, plan_file, tmp_path) -> int:
    assert cli("apply", model, plan_file, "-o", tmp_path / "whole").code == 0
    size = (tmp_path / "whole" / "model.safetensors").stat().st_size
    shutil.rmtree(tmp_path / "whole")
    return size


@pytest.mark.parametrize("share", ["header", "middle", "last tensor"])
def test_file_that_cannot_grow(refused, model, plan_file, weights_size, tmp_path, share):
    limit = {"header": 100, "middle": weights_size // 2, "last tensor": weights_size - 10}[share]
    says = ("new/out: cannot be written (File too large)", "free some space")
    with largest_file(limit):
        refused("apply", model, plan_file, "-q", "-o", tmp_path / "new" / "out", code=1, says=says)


@pytest.mark.parametrize("limit", [10, 1000])
@pytest.mark.parametrize("save", [[], ["--save-tokens", "new/ids.safetensors"]])
def test_plan_that_cannot_grow(refused, model, small, tmp_path, limit, save):
    """With 1000 bytes the tokens fit, and the plan does not."""
    with largest_file(limit):
        refused("plan", model, "-q", "-o", tmp_path / "a" / "b" / "plan.json", "--layers", 1,
                *small, *save, code=1, says="cannot be written (File too large)")  # fmt: skip


def test_full_disk(refused, cli, model, plan_file, small_disk):
    (small_disk / "filler").write_bytes(bytes(130_000))
    says = ("new/out: cannot be written (No space left on device)", "free some space")
    refused("apply", model, plan_file, "-q", "-o", small_disk / "new" / "out", code=1, says=says)
    (small_disk / "filler").unlink()
    assert cli("apply", model, plan_file, "-q", "-o", small_disk / "new" / "out").code == 0


def test_read_only_file_system(refused_compress, model, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused_compress(model, output=small_disk / "out", says="Read-only file system")


@pytest.mark.parametrize("call", [
    "rewrite.carry_over", "rewrite.write_config", "rewrite.check_written", "pipeline.model_card",
])  # fmt: skip
@pytest.mark.parametrize("error", [
    (OSError(errno.EIO, "Input/output error", "disk"), 1, "disk: Input/output error"),
    (MemoryError(), 1, "out of memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), 1, "out of memory; use"),
], ids=["disk", "memory", "cuda"])  # fmt: skip
def test_failure_at_any_point(refused, model, plan_file, tmp_path, monkeypatch, call, error):
    exception, code, says = error

    def fail(*args, **kwargs):
        raise exception

    monkeypatch.setattr(f"prunecomp.{call}", fail)
    out = tmp_path / "new" / "deep" / "out"
    refused("apply", model, plan_file, "-q", "-o", out, code=code, says=says)


def test_failed_verification(refused, model, plan_file, tmp_path, monkeypatch):
    from prunecomp.errors import VerificationError

    def fail(*args):
        raise VerificationError("the written weights do not fit")

    monkeypatch.setattr("prunecomp.rewrite.check_written", fail)
    refused("apply", model, plan_file, "-q", "-o", tmp_path / "new" / "out", code=4,
            says="do not fit")  # fmt: skip


def test_a_bug_is_not_hidden(cli, model, plan_file, tmp_path, monkeypatch):
    """Only what is expected becomes one line."""
    monkeypatch.setattr("prunecomp.rewrite.check_source", lambda *a, **k: 1 / 0)
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError):
        cli("apply", model, plan_file, "-o", tmp_path / "out")
    assert tree(tmp_path) == before
    monkeypatch.undo()
    with pytest.raises(UsageError):
        cli("apply", model, plan_file, "-o", "/proc/out", "--debug")


@pytest.mark.parametrize("here", [".", "./", "../model"])
def test_a_model_of_the_current_directory_has_its_name(cli, model, small, tmp_path, here):
    os.chdir(model)
    plan = tmp_path / "plan.json"
    assert cli("plan", here, "-q", "-o", plan, "--layers", 1, *small).code == 0
    name = here if here.endswith(model.name) else model.name
    assert json.loads(plan.read_text())["source"]["name"] == name
    out = tmp_path / "out"
    assert cli("apply", here, plan, "-q", "-o", out).code == 0
    assert model.name in (out / "README.md").read_text()
