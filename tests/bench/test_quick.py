"""The local task set: where its items come from, and that the tiny model can do them."""

from __future__ import annotations

import json
import platform
import random
import re
from pathlib import Path

import pytest

from bench.accuracy.collect import read_rows
from bench.accuracy.run import Request, job_of
from bench.accuracy.worker import evaluate
from bench.tasks import make_quick
from bench.tasks.quick.utils import load, score_chain
from prunecomp.calibration.python_stdlib import HELD_OUT, documents

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "bench" / "tasks" / "quick"
FILES = sorted(QUICK.glob("*.jsonl"))
SAME_LIBRARY = (
    json.loads((QUICK / "source.json").read_text())["python"] == platform.python_version()
)


def items_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def made_of(item: dict) -> str:
    """The text of the library that an item was made of."""
    if "choices" in item:
        return item["context"] + item["choices"][item["answer"]]
    return item["context"].split("\n\n")[0]


@pytest.fixture(scope="module")
def library_texts() -> tuple[dict[str, str], dict[str, str]]:
    """Held-out files, and what the models were trained on."""
    return dict(documents("held-out")), dict(documents("train", with_tests=True))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_items_are_of_held_out_modules_only(file, library_texts):
    items = items_of(file)
    held_out, trained = library_texts
    for item in items:
        assert item["source"].split("/")[0].removesuffix(".py") in HELD_OUT
        assert item["source"] not in trained
        if SAME_LIBRARY:
            assert made_of(item) in held_out[item["source"]]
    for item in random.Random(0).sample(items, 8):  # all of them were compared when it was made
        assert not any(made_of(item) in text for text in trained.values())


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_items_are_well_formed(file):
    items = items_of(file)
    assert len(items) == (100 if file.stem == "quick_gen" else 200)
    assert len({json.dumps(item) for item in items}) == len(items)
    assert len({item["source"] for item in items}) >= 10
    answers = [item["answer"] for item in items]
    for item in items:
        assert item["context"][-1].isalnum()  # so that its tokens are a part of the whole's
        if file.stem != "quick_gen":
            assert len(set(item["choices"])) == 4
    if file.stem != "quick_gen":  # no place is the right one more often than by chance
        assert all(25 <= answers.count(place) <= 75 for place in range(4))
    assert sum(f.stat().st_size for f in FILES) < 300_000


CODE = '''"""A module."""
import os


class Shelf:
    """Holds things."""

    def __init__(self, things, limit):
        self.things = list(things)
        self.limit = int(max(limit, 1))
        if not isinstance(things, (list, tuple)):
            raise TypeError(str(things), (limit,))
        for thing in self.things:
            print(repr(thing), len(str(thing)))

    def clear(self):
        while self.things and self.limit:
            thing = self.things.pop(min(0, 1))
            if thing is None and (self.limit):
                return dict(a=[self.things[0]])
            yield str(repr([thing, self.limit]))
'''


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    """A library of three held-out files, and one that repeats the first half of one of them."""
    monkeypatch.setattr(make_quick, "ITEMS", 4)
    monkeypatch.setattr(make_quick, "CHAINS", 2)
    monkeypatch.setattr(make_quick, "CONTEXT_CHARACTERS", 80)
    for name in ("csv", "heapq", "queue"):
        # The same code in other words, so that what is trained on is not in every file.
        (tmp_path / f"{name}.py").write_text(re.sub(r"\bthings?\b", name + "s", CODE) * 2)
    head = (tmp_path / "csv.py").read_text()
    (tmp_path / "os.py").write_text(head)
    return tmp_path


def test_making_them(library):
    made = make_quick.make(library)
    assert made == make_quick.make(library)
    assert set(made) == {file.stem for file in FILES}
    for task, items in made.items():
        assert len(items) == (2 if task == "quick_gen" else 4)
        for item in items:
            assert item["source"] != "csv.py"  # all of it was trained on
            assert made_of(item) in (library / item["source"]).read_text()


def test_too_small_a_library_is_refused(library, monkeypatch):
    monkeypatch.setattr(make_quick, "ITEMS", 400)
    with pytest.raises(ValueError, match="400 are needed"):
        make_quick.make(library)


def test_chains_are_scored_up_to_the_first_error():
    item = {"answer": "abcd"}
    assert score_chain(item, ["abcdxyz"]) == {"prefix_match": 1.0}
    assert score_chain(item, ["abXd"]) == {"prefix_match": 0.5}
    assert score_chain(item, [""]) == {"prefix_match": 0.0}
    assert load("quick_gen.jsonl", version=1.0)["test"].num_rows == 100


@pytest.mark.slow
def test_the_tiny_model_is_clearly_above_chance(tmp_path):
    """On every task, by three standard errors; half of the items are enough for that."""
    request = Request(limit=100, device="cpu", texts=())
    evaluate(job_of(ROOT / "examples" / "tiny-python-lm", request), tmp_path)
    rows = [row.result for row in read_rows("base", tmp_path)]
    assert {row.task for row in rows} == {f.stem for f in FILES} - {"quick_gen"}
    for row in rows:
        assert row.chance == 0.25
        assert row.value > row.chance + 3 * row.stderr, row.task
