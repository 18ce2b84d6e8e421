"""What the requests look like: mixes of prompt and output lengths, and load points."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.conditions import Mix
from prunecomp.errors import UsageError
from prunecomp.registry import did_you_mean

T = TypeVar("T")

#: Prompt and output tokens of the mixes that have a name of their own.
LENGTHS = {"prefill-heavy": (1024, 32), "balanced": (256, 256), "decode-heavy": (64, 512)}
PROMPTS = 32
#: A closed loop sends this many requests per place, so that its two ends weigh little.
ROUNDS = 4
_MIX = re.compile(r"([\w.-]+)(?:=(\d+):(\d+)(?:x(\d+))?)?")


@dataclass(frozen=True)
class Point:
    """One load: closed with a number of requests in flight, or open with a rate."""

    mix: Mix
    concurrency: int | None = None
    request_rate: float | None = None

    @property
    def mode(self) -> str:
        return "open" if self.concurrency is None else "closed"

    @property
    def prompts(self) -> int:
        """Requests of one repeat."""
        return max(self.mix.prompts, ROUNDS * (self.concurrency or 0))

    @property
    def name(self) -> str:
        """As its files are called."""
        level = self.concurrency if self.mode == "closed" else f"{self.request_rate:.4g}"
        return f"{self.mix.name}-{self.mode}-{level}"

    def __str__(self) -> str:
        if self.mode == "closed":
            return f"{self.mix.name}, {self.concurrency} at a time"
        return f"{self.mix.name}, {self.request_rate:.3g} requests/s"


def parse_mix(text: str) -> Mix:
    """``NAME``, ``NAME=IN:OUT`` or ``NAME=IN:OUTxPROMPTS``.

    Raises:
        UsageError: neither a known name nor lengths.
    """
    found = _MIX.fullmatch(text)
    if not found:
        raise UsageError(f"--mix {text}: give NAME or NAME=INPUT:OUTPUT[xPROMPTS], in tokens")
    name, given, output, prompts = found.groups()
    if given is None and name not in LENGTHS:
        raise UsageError(
            f"--mix {name}: unknown{did_you_mean(name, list(LENGTHS))} (choose from "
            f"{', '.join(LENGTHS)}, or give {name}=INPUT:OUTPUT)"
        )
    lengths = LENGTHS[name] if given is None else (int(given), int(output))
    count = PROMPTS if prompts is None else int(prompts)
    if min(*lengths, count) < 1:
        raise UsageError(f"--mix {text}: lengths and prompts must be at least 1")
    return Mix(name, *lengths, count)


def prompt_file_mix(path: Path, *, output_tokens: int) -> Mix:
    """All prompts of a file of JSON lines ``{"prompt": text}``.

    Raises:
        UsageError: it cannot be read as that.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # not splitlines(): a string may hold U+2028
        lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        good = lines and all(isinstance(line["prompt"], str) for line in lines)
    except OSError as error:
        raise UsageError(f"--prompt-file {path}: {error.strerror}; name a readable file") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise UsageError(f'--prompt-file {path}: give JSON lines, each with {{"prompt": text}}')
    return Mix(path.stem, None, output_tokens, len(lines), str(path.resolve()))


def check_lengths(mixes: Sequence[Mix], context: int | None, *, batch_lengths: int = 0) -> None:
    """Raises `UsageError` where a request is longer than the models' context."""
    for mix in mixes:
        need = (mix.input_tokens or 1) + mix.output_tokens
        if context is not None and max(need, batch_lengths) > context:
            raise UsageError(
                f"mix {mix.name}: {need} tokens do not fit the model's context of {context}; give "
                f"shorter lengths, such as --mix {mix.name}={context // 4}:{context // 4}"
            )


def random_prompts(
    count: int, length: int, *, vocabulary: int, seed: int, prefix: Sequence[int] = ()
) -> list[list[int]]:
    """Token ids [count, length], which begin with `prefix`; the same for the same arguments."""
    draw = random.Random(f"{seed}-{count}-{length}")
    drawn = [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(count)]
    return [[*prefix, *ids[len(prefix) :]][:length] for ids in drawn]


def rotated(items: Sequence[T], by: int) -> list[T]:
    """`items`, begun at another place: no model always goes first."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]
