"""Makes the task set ``quick``: cloze questions on code that the tiny models were not trained on.

    python -m bench.tasks.make_quick bench/tasks/quick

Every item is taken from a module of `python_stdlib.HELD_OUT` of the running interpreter, and is
dropped if its text is also found in what the models were trained on. The files are kept in the
repository, because the library differs between versions of Python; ``source.json`` says which
one they are of. The same library gives the same bytes.
"""

from __future__ import annotations

import io
import json
import keyword
import platform
import random
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.tasks.writing import write_tasks
from prunecomp.calibration.python_stdlib import documents
from prunecomp.checkpoint.output import write_text

ITEMS = 200  # per task: a standard error of 0.03
CHAINS = 100  # generating takes longer
CONTEXT_CHARACTERS = 180
OPTIONS = 4
CHAIN_LINES = 5  # of the blocks that are to be continued
CLOSERS = re.compile(r"[)\]}]+[:,]?$")
STATEMENTS = frozenset(keyword.kwlist) - {"and", "as", "in", "is", "not", "or", "await", "lambda"}


@dataclass(frozen=True)
class Place:
    """A question in a file: what stands at `offset`, and what else could."""

    offset: int
    answer: str
    others: tuple[str, ...]


class Source:
    """A file of the library, with what is code in it and not string or comment."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.lines = text.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        inside, code = set(), set()
        self.tokens: list[tuple[int, str]] = []
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            row = token.start[0] - 1
            if token.type in {tokenize.NAME, tokenize.OP}:
                code.add(row)
            if token.type == tokenize.NAME:
                self.tokens.append((self.starts[row] + token.start[1], token.string))
            inside.update(range(token.start[0], token.end[0]))  # rows that continue a string
        self.code_rows = [
            row for row in sorted(code - inside) if "#" not in self.lines[row] and row > 0
        ]

    def context(self, offset: int) -> str:
        """The text in front of `offset`, from the start of a line."""
        start = max(0, offset - CONTEXT_CHARACTERS)
        if start:
            start = self.text.find("\n", start, offset) + 1 or start
        return self.text[start:offset]

    def line(self, row: int) -> str:
        return self.lines[row].rstrip("\n")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def next_line(source: Source) -> Iterator[Place]:
    """Which of four lines of the file, all indented alike and about as long, comes next."""
    lines = [(row, source.line(row)) for row in source.code_rows]
    for row, line in lines:
        if len(line.strip()) < 12:
            continue
        alike = {
            "\n" + other for r, other in lines
            if abs(r - row) > 10 and _indent(other) == _indent(line) and other != line
            and 0.6 <= len(other) / len(line) <= 1.6
        }  # fmt: skip
        yield Place(source.starts[row] - 1, "\n" + line, tuple(sorted(alike)))


def name(source: Source) -> Iterator[Place]:
    """Which of four names that the file uses stands here."""
    counts = Counter(word for _, word in source.tokens)
    usual = sorted(
        w for w, n in counts.items() if n >= 3 and len(w) >= 3 and not keyword.iskeyword(w)
    )
    for offset, word in source.tokens:
        if word in usual:
            others = (w for w in usual if not w.startswith(word) and not word.startswith(w))
            yield Place(offset, word, tuple(others))


def closing(source: Source) -> Iterator[Place]:
    """Which brackets close the line, and what follows them."""
    found = []
    for row in source.code_rows:
        end = CLOSERS.search(source.line(row))
        if end and len(end[0]) > 1 and end.start() > _indent(source.line(row)):
            found.append((source.starts[row] + end.start(), end[0] + "\n"))
    kinds = [answer for _, answer in found]
    for offset, answer in found:
        yield Place(offset, answer, tuple(k for k in kinds if k != answer))


def statement(source: Source) -> Iterator[Place]:
    """With which keyword the next statement begins."""
    found = []
    for row in source.code_rows:
        line = source.line(row)
        word = re.match(r"\s*([a-z]+)\b", line)
        if word and word[1] in STATEMENTS:
            found.append((source.starts[row] - 1, "\n" + " " * _indent(line), word[1]))
    kinds = [word for *_, word in found]
    for offset, before, word in found:
        yield Place(offset, before + word, tuple(before + k for k in kinds if k != word))


TASKS: dict[str, Callable[[Source], Iterator[Place]]] = {
    "quick_next_line": next_line,
    "quick_name": name,
    "quick_closing": closing,
    "quick_statement": statement,
}


def _divide(text: str) -> tuple[str, str]:
    """`text` up to its last letter or digit, and the rest.

    Tokenizers join brackets, spaces and line ends with what follows; a context that ends with one
    would have other tokens than the same text has where it goes on.
    """
    end = max(i for i, character in enumerate(text) if character.isalnum()) + 1
    return text[:end], text[end:]


def _questions(
    task: str, places: Callable[[Source], Iterator[Place]], source: Source
) -> Iterator[tuple[dict, str]]:
    """Items of one file in random order, each with the text that it was made of."""
    rng = random.Random(f"{task} {source.path}")
    found = list(places(source))
    rng.shuffle(found)
    for place in found:
        drawn = list(place.others)
        rng.shuffle(drawn)
        options = list(dict.fromkeys([place.answer, *drawn]))[:OPTIONS]
        context = source.context(place.offset)
        if len(options) < OPTIONS or len(context) < CONTEXT_CHARACTERS / 2:
            continue
        rng.shuffle(options)
        context, link = _divide(context)
        item = {
            "source": source.path,
            "context": context,
            "choices": [link + option for option in options],
            "answer": options.index(place.answer),
        }
        yield item, context + link + place.answer


def _chains(source: Source) -> Iterator[tuple[dict, str]]:
    """Blocks of code, given twice, the second time without the end, which is to be repeated."""
    code = set(source.code_rows)
    rows = [row for row in source.code_rows if code.issuperset(range(row, row + CHAIN_LINES))]
    random.Random(f"quick_gen {source.path}").shuffle(rows)
    for row in rows:
        lines = [source.line(r) for r in range(row, row + CHAIN_LINES)]
        block = "\n".join(lines)
        if len(set(lines)) == CHAIN_LINES and 120 <= len(block) <= 260:
            context, link = _divide(f"{block}\n\n{lines[0]}\n{lines[1]}")
            answer = link + "\n" + "\n".join(lines[2:])
            yield {"source": source.path, "context": context, "answer": answer}, block


def in_turns(items: Sequence[Iterator[dict]], count: int) -> list[dict]:
    """`count` items, one of each file in turn, as long as it has any."""
    chosen: list[dict] = []
    queues = list(items)
    while queues and len(chosen) < count:
        found = [(queue, next(queue, None)) for queue in queues]
        chosen += [item for _, item in found if item]
        queues = [queue for queue, item in found if item]
    if len(chosen) < count:
        raise ValueError(f"{len(chosen)} items were found, {count} are needed")
    return chosen[:count]


def make(root: Path | None = None) -> dict[str, list[dict]]:
    """All items by task; `root` is the library, that of the running interpreter if None."""
    sources = [Source(path, text) for path, text in documents("held-out", root=root)]
    trained = "\n".join(t for _, t in documents("train", with_tests=True, root=root))
    makers = {task: partial(_questions, task, places) for task, places in TASKS.items()}
    makers["quick_gen"] = _chains
    return {
        task: in_turns(
            [(item for item, text in maker(source) if text not in trained) for source in sources],
            CHAINS if maker is _chains else ITEMS,
        )
        for task, maker in makers.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Writes one file per task; returns the exit code."""
    output = write_tasks("bench.tasks.make_quick", __doc__, make, argv)
    source = {"python": platform.python_version(), "library": "CPython standard library"}
    write_text(output / "source.json", json.dumps(source) + "\n", overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
