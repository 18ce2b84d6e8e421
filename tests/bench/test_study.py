"""The table of a real model, on a tiny one: its figures, what is kept, what is said of slices."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import cli
from bench import study
from bench.accuracy import worker
from prunecomp.calibration.data import TextSource, load_tokens
from tests.bench.test_answers import write

OPTIONS = ["--samples", "4", "--seq-len", "32", "--quiet"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Model, texts, and a document that people wrote in."""
    root = tmp_path_factory.mktemp("study")
    write(root / "model")
    for name, words in (("read.txt", "one two three four"), ("other.txt", "so it went on and on")):
        (root / name).write_text("\n".join(f"{words} {i**2}" for i in range(80)))
    (root / "results.md").write_text(f"before\n{study.BEGIN}\nold\n{study.END}\nbehind\n")
    return root


def run(root, *options):
    return study.main([
        str(root / "model"), "-o", str(root / "out"), "--document", str(root / "results.md"),
        "--calibration", str(root / "read.txt"), "--depths", "1", "2", "--metrics", "bi", "cl",
        "--compensations", "magnitude", "--tasks", "plain_words,plain_ends", "--limit", "5",
        "--text", f"another={root / 'other.txt'}", "--text-samples", "3", "--text-seq-len", "40",
        *OPTIONS, *options,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def done(setting):
    assert run(setting) == 0
    return json.loads((setting / "results_study.json").read_text())


def test_rows_are_what_compress_writes(setting, done, tmp_path):
    """The same layers and factors, and transformers' own loss on the model that it wrote."""
    names = [row["name"] for row in done["rows"]]
    assert names == ["bi-magnitude-1", "cl-magnitude-1", "bi-magnitude-2", "cl-magnitude-2"]
    losses = {p["model"]: p["value"] for p in done["accuracy"]["perplexity"]}
    for row in done["rows"]:
        path = tmp_path / row["name"]
        assert cli.main([
            "compress", str(setting / "model"), "-o", str(path), "--layers", str(row["depth"]),
            "--metric", row["metric"], "--calibration", str(setting / "read.txt"), *OPTIONS,
            "--evaluation", "none",
        ]) == 0  # fmt: skip
        plan = json.loads((path / "prunecomp.json").read_text())["plan"]
        assert [c["removed"] for c in row["cuts"]] == [c["removed"] for c in plan["rounds"]]
        ids = load_tokens(
            TextSource(str(setting / "other.txt")), tokenizer_dir=path, vocab_size=257, samples=3,
            seq_len=40,
        ).input_ids  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        assert losses[row["name"]] == pytest.approx(float(loss.exp()), rel=1e-4)


def test_the_table_says_what_is_a_slice(setting, done):
    text = (setting / "results.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("behind\n")
    assert "old" not in text
    assert "Slices: plain_words (the first 5 of 116), plain_ends (the first 5 of 50)." in text
    assert re.search(r"Perplexity is over \d+ tokens of another\.", text)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    head = rows[0]
    assert head == ["removed", "metric", "repair", "plain_words", "plain_ends", "retained",
                    "perplexity, another"]  # fmt: skip
    figures = {(r["model"], r["task"]): r for r in done["accuracy"]["results"]}
    for row, cells in zip(done["rows"], rows[3:7], strict=True):
        assert cells[:3] == [str(row["depth"]), row["metric"], "magnitude"]
        for task, cell in zip(("plain_words", "plain_ends"), cells[3:5], strict=True):
            found = figures[row["name"], task]
            assert cell == f"{100 * found['value']:.1f} ± {100 * found['stderr']:.1f}"


def test_what_is_finished_is_not_done_again(setting, done, monkeypatch):
    measured = []
    real = worker.evaluate
    monkeypatch.setattr(
        worker,
        "evaluate",
        lambda job, where, **k: measured.append(where.name) or real(job, where, **k),
    )
    (setting / "out" / "rows" / "cl-magnitude-2" / "done.json").unlink()
    assert run(setting) == 0
    assert measured == ["cl-magnitude-2"]
    again = json.loads((setting / "results_study.json").read_text())
    assert again["accuracy"] == done["accuracy"]


def test_nothing_to_measure(setting, capsys):
    assert study.main([str(setting / "model"), "-o", str(setting / "none")]) == 2
    assert capsys.readouterr().err == "error: nothing to measure; give --tasks or --text\n"
