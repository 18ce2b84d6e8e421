"""The command line that the scripts which make tasks share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunecomp.checkpoint.output import write_text

Items = Mapping[str, Sequence[Mapping[str, Any]]]


def write_tasks(
    script: str, description: str | None, make: Callable[[], Items], argv: Sequence[str] | None
) -> Path:
    """Writes ``TASK.jsonl`` for every task that `make` gives; returns the directory.

    Args:
        script: as ``python -m`` calls it.
        argv: the directory to write; None for what the process was called with.
    """
    parser = argparse.ArgumentParser(prog=script, description=description)
    parser.add_argument("output", type=Path)
    output: Path = parser.parse_args(argv).output
    for task, items in make().items():
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        write_text(output / f"{task}.jsonl", text, overwrite=True)
        print(f"{task}: {len(items)} items, {len(text):,} bytes")
    return output
