"""The finished pieces of a run, one JSON file each, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecomp.checkpoint.foreign import remove_ours
from prunecomp.checkpoint.output import write_text
from prunecomp.errors import UsageError
from prunecomp.json_files import read_json


def is_ours(name: str) -> bool:
    """Whether `bench` or `frontier` wrote a file of this name, relative to the run's directory."""
    folder, _, file = name.partition("/")
    if not file:
        return name in {"report.json", "report.md", "report.html"}
    if folder == "logs":
        return file.endswith(".log")
    return folder == "raw" and file.endswith((".json", ".jsonl", ".partial", "/log.txt"))


class Raw:
    """``DIR/raw``: what was measured, as it was measured."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "raw"

    def path(self, name: str) -> Path:
        """Of the piece `name`, such as ``serving/base/balanced-closed-4-r0``."""
        return self.directory / f"{name}.json"

    def relative(self, name: str) -> str:
        """The same as the report names it."""
        return f"{self.directory.name}/{name}.json"

    def read(self, name: str) -> Any:
        """The piece, or None where it is not there; files are whole or absent."""
        path = self.path(name)
        if not path.exists():
            return None
        return read_json(path, UsageError, "delete it to measure it again", foreign=True)

    def write(self, name: str, document: Any) -> None:
        write_text(self.path(name), json.dumps(document) + "\n", overwrite=True)

    def clear(self) -> None:
        """Removes an earlier run: its pieces, logs and report; all else stays.

        Raises:
            UsageError: what is not ours lies among them.
        """
        if self.read("settings") is not None:
            remove_ours(self.directory.parent, is_ours, among=("raw", "logs"))

    def open(self, settings: Mapping[str, Any]) -> None:
        """Begins a run, or goes on with one of the same settings.

        Raises:
            UsageError: it had other settings.
        """
        before = self.read("settings")
        if before is None:
            self.write("settings", settings)
            return
        different = [k for k in settings if before.get(k) != json.loads(json.dumps(settings[k]))]
        if different:
            raise UsageError(
                f"{self.directory.parent}: was begun with another {different[0].replace('_', '-')};"
                " --resume needs the same command"
            )
