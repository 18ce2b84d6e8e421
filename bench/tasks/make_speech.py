"""Makes the task set ``speech``: questions on English prose that ``--calibration prose`` holds out.

    python -m bench.tasks.make_speech bench/tasks/speech

`speech_next` asks which sentence comes next, in the manner of HellaSwag; `speech_last_word` asks
for the last word of a passage, which was said in it before, in the manner of LAMBADA. The addresses
are in the public domain. The same package gives the same bytes; ``source.json`` names it.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.tasks.make_quick import in_turns
from bench.tasks.writing import write_tasks
from prunecomp.calibration.prose import PACKAGE, documents
from prunecomp.checkpoint.output import write_text

ITEMS = 100  # per task
OPTIONS = 4
CONTEXT = (120, 420)  # characters
SENTENCE = (40, 160)
_END = re.compile(r"(?<=[a-z][.?!]) +(?=[A-Z])")
_PLAIN = re.compile(r"[A-Z][A-Za-z ,;'\u2019.\-?!]*[.?!]")
_LAST = re.compile(r"^(.* )([a-z]{4,})[.?!]$")


def _runs(text: str) -> Iterator[list[str]]:
    """Sentences that follow one another, without figures and quotations, by paragraph."""
    for paragraph in text.split("\n"):
        run: list[str] = []
        for sentence in _END.split(" ".join(paragraph.split())):
            if _PLAIN.fullmatch(sentence):
                run.append(sentence)
            elif run:
                yield run
                run = []
        if run:
            yield run


def _fits(text: str, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= len(text) <= bounds[1]


def _nexts(name: str, runs: Sequence[list[str]], others: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Which of four sentences, all about as long, comes next."""
    rng = random.Random(f"next {name}")
    for run in rng.sample(runs, len(runs)):
        for place in range(len(run) - 2):
            context, answer = " ".join(run[place : place + 2]), run[place + 2]
            if not (_fits(context, CONTEXT) and _fits(answer, SENTENCE)):
                continue
            alike = [s for s in others if 0.7 <= len(s) / len(answer) <= 1.4]
            options = [answer, *rng.sample(alike, OPTIONS - 1)]
            rng.shuffle(options)
            yield {
                "source": name, "context": context, "choices": [f" {o}" for o in options],
                "answer": options.index(answer),
            }  # fmt: skip
            break  # one of a paragraph


def _last_words(name: str, runs: Sequence[list[str]]) -> Iterator[dict[str, Any]]:
    """Passages whose last word has been said before in them."""
    rng = random.Random(f"last word {name}")
    for run in rng.sample(runs, len(runs)):
        for place in range(len(run) - 2):
            passage = " ".join(run[place : place + 3])
            found = _LAST.match(passage)
            if not (found and _fits(passage, CONTEXT)):
                continue
            before, word = found.groups()
            if re.search(rf"\b{word}\b", before):
                yield {"source": name, "context": before.rstrip(), "answer": f" {word}"}
                break


def _whole(item: dict[str, Any]) -> str:
    """The text that an item was made of."""
    right = item["choices"][item["answer"]] if "choices" in item else item["answer"]
    return item["context"] + right


def make(root: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """All items by task; `root` is the folder of the addresses, that of the package if None."""
    runs = {name: list(_runs(text)) for name, text in documents("held-out", root=root)}
    sentences = {
        name: [s for run in found for s in run if _fits(s, SENTENCE)]
        for name, found in runs.items()
    }
    nexts, lasts = [], []
    for name, found in runs.items():
        others = [s for other, of_it in sentences.items() if other[:4] != name[:4] for s in of_it]
        nexts.append(_nexts(name, found, others))
        lasts.append(_last_words(name, found))
    # Some presidents said the same again in a year that is calibrated on.
    known = " ".join(" ".join(text.split()) for _, text in documents("train", root=root))

    def unknown(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return (item for item in items if _whole(item) not in known)

    return {
        "speech_next": in_turns([unknown(items) for items in nexts], ITEMS),
        "speech_last_word": in_turns([unknown(items) for items in lasts], ITEMS),
    }


def main(argv: list[str] | None = None) -> int:
    """Writes one file per task; returns the exit code."""
    output = write_tasks("bench.tasks.make_speech", __doc__, make, argv)
    source = {"package": PACKAGE, "version": metadata.version(PACKAGE)}
    write_text(output / "source.json", json.dumps(source) + "\n", overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
