"""The sets ``plain`` and ``speech``: what their items are made of, and that lm-eval reads them."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from bench.accuracy.worker import Job, load_tasks
from bench.tasks import make_plain, make_speech
from bench.tasks.plain_text import ENDS, FACTS, WORDS
from prunecomp.calibration.prose import documents

TASKS = Path(__file__).resolve().parents[2] / "bench" / "tasks"
FILES = sorted([*(TASKS / "plain").glob("*.jsonl"), *(TASKS / "speech").glob("*.jsonl")])


def items_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_the_files_are_what_the_scripts_make():
    made = make_plain.make()
    source = json.loads((TASKS / "speech" / "source.json").read_text())
    if metadata.version(source["package"]) == source["version"]:
        made |= make_speech.make()
    for task, items in made.items():
        assert items_of(TASKS / task.partition("_")[0] / f"{task}.jsonl") == items


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_items_are_well_formed(file):
    items = items_of(file)
    assert len({json.dumps(item) for item in items}) == len(items) >= 30
    for item in items:
        # the answer begins with the space that joins it to its word: its tokens are its own
        assert item["context"] == item["context"].rstrip()
        options = item.get("choices", [item["answer"]])
        assert all(option.startswith(" ") and not option.startswith("  ") for option in options)
        if "choices" in item:
            assert len(set(options)) == len(options) == 4
    if "choices" in items[0]:  # no place is the right one more often than by chance
        places = [item["answer"] for item in items]
        assert all(0.1 <= places.count(p) / len(items) <= 0.4 for p in range(4))


def test_the_right_option_is_right():
    facts = items_of(TASKS / "plain" / "plain_facts.jsonl")
    pairs = {
        sentence.format(word): answer
        for table in (FACTS, WORDS) for sentence, rows in table.items()
        for word, answer in rows.items()
    } | ENDS  # fmt: skip
    for item in facts + items_of(TASKS / "plain" / "plain_ends.jsonl"):
        assert item["choices"][item["answer"]] == " " + pairs[item["context"]]
    assert pairs["The capital of France is"] == "Paris"


def test_nothing_of_the_speeches_is_calibrated_on():
    def flat(text: str) -> str:
        return " ".join(text.split())

    held_out = {name: flat(text) for name, text in documents("held-out")}
    trained = {name: flat(text) for name, text in documents("train")}
    for item in items_of(TASKS / "speech" / "speech_next.jsonl"):
        whole = item["context"] + item["choices"][item["answer"]]
        assert whole in held_out[item["source"]]
        assert item["source"] not in trained
        assert not any(whole in text for text in trained.values())
    for item in items_of(TASKS / "speech" / "speech_last_word.jsonl"):
        whole = item["context"] + item["answer"]
        assert whole in held_out[item["source"]]
        assert not any(whole in text for text in trained.values())
        assert re.search(rf"\b{item['answer'].strip()}\b", item["context"])


def test_lm_eval_reads_them():
    names = ("plain", "plain-gen", "speech")
    tasks, groups, _ = load_tasks(Job("m", names, "hf"))
    assert {name: list(rows) for name, rows in groups.items()} == {
        "plain": ["plain_facts", "plain_words", "plain_ends"],
        "plain-gen": ["plain_gen"],
        "speech": ["speech_next", "speech_last_word"],
    }
    for task in tasks:
        folder = TASKS / task.task_name.partition("_")[0]
        items = items_of(folder / f"{task.task_name}.jsonl")
        docs = list(task.test_docs())
        assert len(docs) == len(items)
        assert task.doc_to_text(docs[0]) == items[0]["context"]
