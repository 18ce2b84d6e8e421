"""One run: what was asked for, what stands so far, what went wrong."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.conditions import Settings
from bench.placement import Placement
from bench.questions import Asked
from bench.raw import Raw
from bench.schema import Failure, Model
from bench.server import Server
from bench.worker import Worker
from prunecomp.errors import PruneCompError
from prunecomp.progress import Progress


@dataclass(frozen=True)
class Tools:
    """What the stages start; tests put stand-ins with known timings here."""

    server: Callable[..., Any] = Server
    worker: Callable[..., Any] = Worker


@dataclass
class Run:
    """The state of a run.

    Attributes:
        directory: of the report.
        models: base first.
        port: of the first server; None for free ones.
        startup_timeout_s: for one server or engine.
        asked: what every model is to answer; None for nothing.
        commands: exactly what was started, to read and to repeat.
        failures: a model that failed in a stage plays no further part in that stage.
    """

    directory: Path
    models: tuple[Model, ...]
    settings: Settings
    placement: Placement
    raw: Raw
    progress: Progress
    port: int | None = None
    startup_timeout_s: float = 900.0
    device: str = "cpu"
    asked: Asked | None = None
    tools: Tools = field(default_factory=Tools)
    commands: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fail(self, model: str, stage: str, error: PruneCompError) -> None:
        """Notes a failure, and says it."""
        first, _, rest = str(error).partition("\n")
        self.failures.append(Failure(model, stage, str(error)))
        self.progress.say(f"{stage}, {model}: {first}")
        for line in rest.splitlines():
            self.progress.say(f"  | {line}")

    def failed(self, model: str, stage: str) -> bool:
        return any((f.model, f.stage) == (model, stage) for f in self.failures)

    def note_command(self, command: Sequence[str]) -> None:
        """Notes what is run."""
        self.commands.append(shlex.join(command))

    def log(self, name: str) -> Path:
        """A log file under the run's directory."""
        folder = self.directory / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"
