"""The finished pieces of a run, one JSON file each, so that an interrupted run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecomp.checkpoint.output import write_text
from prunecomp.errors import UsageError


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
        try:
            return json.loads(self.path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write(self, name: str, document: Any) -> None:
        write_text(self.path(name), json.dumps(document) + "\n", overwrite=True)

    def clear(self) -> None:
        """Removes an earlier run: its pieces, logs and report."""
        run = self.directory.parent
        if self.read("settings") is None:
            return
        for folder in (self.directory, run / "logs"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in run.glob("report.*"):
            file.unlink()

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
