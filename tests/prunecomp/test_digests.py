"""A digest is remembered for a file as it was, and for nothing else."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from prunecomp.checkpoint import digests


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that has been left alone for long enough, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SMALLEST_BYTES", 4)
    monkeypatch.setattr(digests, "_SETTLED_NS", 10**7)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    time.sleep(0.05)
    return path


def remember(path) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    digests.remember(path, digest, read_as=digests.stamp(path))
    return digest


def test_what_was_not_touched_is_known(file):
    assert digests.recall(file) is None
    assert digests.recall(file) is None
    digest = remember(file)
    assert digests.recall(file) == digest
    other = file.with_name("other")
    other.write_bytes(b"weightz")
    assert digests.recall(other) is None


def test_a_change_that_hides_its_time_is_seen(file):
    """Same size and same time of modification; the time of change cannot be set."""
    remember(file)
    before = file.stat()
    file.write_bytes(b"weighty")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert digests.recall(file) is None


def test_a_file_that_changed_while_it_was_read_is_not_remembered(file):
    before = digests.stamp(file)
    file.write_bytes(b"other weights")
    time.sleep(0.05)
    digests.remember(file, "0" * 64, read_as=before)
    assert digests.recall(file) is None


def test_a_file_that_changed_just_now_is_not_remembered(file, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", 10**12)
    remember(file)
    assert digests.recall(file) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}'])
def test_a_damaged_cache_is_as_none(file, tmp_path, text):
    place = tmp_path / "cache" / "prunecomp" / "sha256.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    assert digests.recall(file) is None
    digest = remember(file)
    assert digests.recall(file) == digest
    place.write_text(place.read_text().replace(digest, "short"))
    assert digests.recall(file) is None


def test_a_cache_that_cannot_be_written_is_no_error(file, tmp_path):
    (tmp_path / "cache").write_text("a file, not a directory")
    remember(file)
    assert digests.recall(file) is None


def test_apply_does_not_read_again_what_plan_has_read(
    file, tiny_directory, tiny_tokens, tmp_path, monkeypatch
):
    import shutil

    import cli
    from prunecomp.checkpoint import writer

    model = shutil.copytree(tiny_directory("llama-tied"), tmp_path / "model")
    time.sleep(0.05)
    plan, hashed = str(tmp_path / "plan.json"), []
    real = writer._reading
    monkeypatch.setattr(writer, "_reading", lambda *of: hashed.append(1) or real(*of))
    options = ["--calibration", str(tiny_tokens), "--layers", "1", "-q"]
    assert cli.main(["plan", str(model), "-o", plan, *options]) == 0
    assert cli.main(["apply", str(model), plan, "-o", str(tmp_path / "one"), "-q"]) == 0
    assert hashed == []
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert cli.main(["apply", str(model), plan, "-o", str(tmp_path / "two"), "-q"]) == 2
    assert hashed == [1]
    assert not (tmp_path / "two").exists()
