"""The built-in text: its two splits share no module, and nothing depends on chance."""

from __future__ import annotations

import pytest
import torch

from prunecomp.calibration import python_stdlib
from prunecomp.calibration.data import TextSource, load_tokens
from prunecomp.calibration.python_stdlib import HELD_OUT, documents


@pytest.fixture
def library(tmp_path):
    """A small library with one file of every kind."""
    for name, text in {
        "os.py": "import os", "csv.py": "import csv", "json/__init__.py": "json = 1",
        "json/decoder.py": "json = 2", "csvkit.py": "not csv", "_json.py": "not json",
        "test/test_csv.py": "test csv", "test/test_json/test_dump.py": "test json",
        "test/test_os.py": "test os", "test/support/__init__.py": "support",
        "idlelib/run.py": "idle", "idlelib/idle_test/test_run.py": "test idle",
        "encodings/cp437.py": "table", "site-packages/thing.py": "third party",
        "lib2to3/tests/data/bad.py": "broken", "empty.py": " \n", "notes.txt": "not code",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    return tmp_path


def paths(*args, **kwargs) -> list[str]:
    return [path for path, _ in documents(*args, **kwargs)]


def test_splits_of_a_small_library(library):
    assert paths("train", root=library) == ["_json.py", "csvkit.py", "idlelib/run.py", "os.py"]
    assert paths("held-out", root=library) == ["csv.py", "json/__init__.py", "json/decoder.py"]
    assert paths("train", with_tests=True, root=library) == [
        "_json.py", "csvkit.py", "idlelib/idle_test/test_run.py", "idlelib/run.py", "os.py",
        "test/support/__init__.py", "test/test_os.py",
    ]  # fmt: skip
    assert paths("held-out", with_tests=True, root=library) == [
        "csv.py", "json/__init__.py", "json/decoder.py", "test/test_csv.py",
        "test/test_json/test_dump.py",
    ]  # fmt: skip
    assert dict(documents("train", root=library))["os.py"] == "import os"


def test_splits_of_the_real_library_are_disjoint():
    train = dict(documents("train", with_tests=True))
    held_out = dict(documents("held-out"))
    assert not train.keys() & held_out.keys()
    assert not set(train.values()) & set(held_out.values())
    modules = {path.split("/")[0].removesuffix(".py") for path in held_out}
    assert modules == HELD_OUT  # every one of them exists in this interpreter
    assert len(train) > 10 * len(held_out)
    assert list(held_out) == sorted(held_out)
    for path in train:
        assert not any(part.removesuffix(".py") in HELD_OUT for part in path.split("/")[:1])


def test_tokens_of_both_splits(text_model, library, monkeypatch):
    """Deterministic by seed; the two splits draw from different files."""
    real = python_stdlib.documents
    monkeypatch.setattr(
        python_stdlib, "documents", lambda split: real(split, with_tests=False, root=library)
    )

    def load(**options):
        return load_tokens(
            TextSource("python-stdlib"), tokenizer_dir=text_model, vocab_size=257, samples=3,
            seq_len=4, **options,
        ).input_ids  # fmt: skip

    train = load(seed=3)
    assert torch.equal(train, load(seed=3))
    assert not torch.equal(train, load(seed=4))
    eos = 256
    stream = load(held_out=True)
    assert stream.max() <= eos
    assert not torch.equal(train, stream)


def test_every_document_starts_after_an_end_of_text(text_model, library, monkeypatch):
    real = python_stdlib.documents
    monkeypatch.setattr(
        python_stdlib, "documents", lambda split: real(split, with_tests=False, root=library)
    )
    texts = [text for _, text in real("held-out", root=library)]
    length = sum(len(text) + 1 for text in texts)  # one byte, one token
    ids = load_tokens(
        TextSource("python-stdlib"), tokenizer_dir=text_model, vocab_size=257, samples=9,
        seq_len=length, held_out=True,
    ).input_ids  # fmt: skip
    assert ids.shape == (1, length)
    assert ids[0, 0] == 256
    assert int((ids == 256).sum()) == len(texts)
