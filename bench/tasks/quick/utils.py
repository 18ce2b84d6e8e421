"""Reads and scores the items of this directory; lm-eval imports this file by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load(file: str, **_: Any) -> dict[str, Any]:
    """The items of `file` as the split ``test``; nothing is cached outside of this directory."""
    from datasets import Dataset

    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    return {"test": Dataset.from_list([json.loads(line) for line in text.split("\n") if line])}


def score_chain(item: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """What share of the answer's characters is right before the first error."""
    right, given = item["answer"], answers[0]
    length = min(len(right), len(given))
    correct = next((i for i in range(length) if right[i] != given[i]), length)
    return {"prefix_match": correct / len(right)}
