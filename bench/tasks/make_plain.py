"""Makes the task set ``plain``: easy questions in natural language, for models of some size.

    python -m bench.tasks.make_plain bench/tasks/plain

All that is asked stands in `plain_text`; which wrong options go with a right one is drawn here. The
same text gives the same bytes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from bench.tasks.plain_text import CHAINS, ENDS, FACTS, WORDS
from bench.tasks.writing import write_tasks

OPTIONS = 4
#: Sentences that are to be said again, at a time.
SAID_AGAIN = 2


def _item(rng: random.Random, context: str, answer: str, others: list[str]) -> dict[str, Any]:
    options = [answer, *rng.sample(others, OPTIONS - 1)]
    rng.shuffle(options)
    return {
        "context": context, "choices": [f" {option}" for option in options],
        "answer": options.index(answer),
    }  # fmt: skip


def _pairs(task: str, tables: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """One question for every pair; the wrong options are right for others of its table."""
    rng = random.Random(task)
    for sentence, pairs in tables.items():
        for word, answer in pairs.items():
            others = sorted(set(pairs.values()) - {answer})
            yield _item(rng, sentence.format(word), answer, others)


def _ends(task: str) -> Iterator[dict[str, Any]]:
    rng = random.Random(task)
    for beginning, end in ENDS.items():
        yield _item(rng, beginning, end, sorted(set(ENDS.values()) - {end}))


def _chains() -> Iterator[dict[str, Any]]:
    """Rows that go on, and sentences that are said again."""
    for beginning, rest in CHAINS.items():
        yield {"context": beginning, "answer": rest}
    sentences = [f"{beginning} {end}" for beginning, end in ENDS.items()]
    for start in range(0, len(sentences), SAID_AGAIN):
        text = " ".join(sentences[start : start + SAID_AGAIN])
        words = text.split(" ")
        yield {
            "context": f"{text}\nOnce more: {' '.join(words[:3])}",
            "answer": " " + " ".join(words[3:]),
        }


def make() -> dict[str, list[dict[str, Any]]]:
    """All items by task."""
    return {
        "plain_facts": list(_pairs("plain_facts", FACTS)),
        "plain_words": list(_pairs("plain_words", WORDS)),
        "plain_ends": list(_ends("plain_ends")),
        "plain_gen": list(_chains()),
    }


def main(argv: list[str] | None = None) -> int:
    """Writes one file per task; returns the exit code."""
    write_tasks("bench.tasks.make_plain", __doc__, make, argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
