"""What every depth of one nested plan costs, and the deepest cut that keeps a limit.

A directory holds all of it: ``request.json`` (what was asked), ``plan.json`` (the rounds), then
``measured.json`` (the depths that are done) and at the end ``frontier.json`` with its plots. A run
that was interrupted goes on where it stopped; another limit is applied to what is measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.accuracy import run as accuracy
from bench.quantities import Estimate
from bench.raw import is_ours
from bench.records import parse, plain, read_document
from bench.schema import Frontier, FrontierPoint
from prunecomp import pipeline, records
from prunecomp.checkpoint.foreign import remove_ours
from prunecomp.checkpoint.output import check_output_file, write_text
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.checkpoint.sidecar import write_plan
from prunecomp.errors import PruneCompError, UsageError, brief
from prunecomp.json_files import read_settings
from prunecomp.manifest import versions
from prunecomp.metrics import METRICS
from prunecomp.pipeline import PlanRequest
from prunecomp.plan import PrunePlan, read_plan
from prunecomp.plan_checks import check_plan
from prunecomp.progress import Progress

SCHEMA_VERSION = 1
KIND = "prunecomp-frontier"
_FILES = {"request.json", "plan.json", "measured.json", "frontier.json", "frontier.svg",
          "frontier-retained.svg"}  # fmt: skip
_MODELS = ".models-"


def _is_ours(name: str) -> bool:
    """Whether this module wrote a file of this name; a killed run leaves models of depths."""
    return name in _FILES or name.startswith(_MODELS) or (name.startswith("raw/") and is_ours(name))


@dataclass(frozen=True)
class Criterion:
    """What a depth must keep; both, where both are given.

    Attributes:
        max_ppl_increase: of perplexity, as a share of the base's: 0.2 allows 20 % more.
        min_retained: of accuracy, as a share of the base's.
    """

    max_ppl_increase: float | None = None
    min_retained: float | None = None

    def keeps(self, point: FrontierPoint) -> bool:
        """Whether a depth is within the limits; by its values, not by their standard errors."""
        good = self.max_ppl_increase is None or point.ratio <= 1 + self.max_ppl_increase
        if self.min_retained is not None:
            good &= point.retained is not None and point.retained.value >= self.min_retained
        return good


def recommend(points: Sequence[FrontierPoint], criterion: Criterion) -> int | None:
    """The deepest cut that is within the limits itself, whatever shallower ones are."""
    kept = [p.layers_removed for p in points if p.layers_removed and criterion.keeps(p)]
    return max(kept, default=None)


@dataclass(frozen=True)
class _Measured:
    """``measured.json``: both by the number of layers removed."""

    perplexity: dict[str, float] = field(default_factory=dict)
    retained: dict[str, Estimate] = field(default_factory=dict)


class Study:
    """One directory in which a frontier is measured.

    Args:
        name: what the plan calls the model.
        tasks: what retained accuracy is measured with; None for perplexity only.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        request: PlanRequest,
        output: Path,
        *,
        name: str,
        tasks: accuracy.Request | None,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.request, self.output = checkpoint, request, output
        self.name, self.tasks, self.progress = name, tasks, progress

    def check(self) -> None:
        """Refuses, before anything runs, what cannot be done.

        Raises:
            UsageError: see the message.
        """
        self.recipe = pipeline.resolve_recipe(self.checkpoint, self.request, self.progress)
        if METRICS.get(self.request.metric).block:
            raise UsageError(
                f"--metric {self.request.metric}: picks all layers at once, so its plan for one "
                "depth holds no plan for another; choose another metric"
            )
        if self.tasks is not None:
            accuracy.check(self.tasks)
        check_output_file(
            self.output / "frontier.json", overwrite=True, source=self.checkpoint.home
        )

    def open(self, *, overwrite: bool) -> None:
        """Starts the directory, or goes on in it.

        Raises:
            UsageError: it holds something else, too.
        """
        identity = {
            "kind": KIND, "model": self.checkpoint.sha256(),
            "plan": dataclasses.asdict(self.request),
            "tasks": json.loads(json.dumps(dataclasses.asdict(self.tasks), default=str))
            if self.tasks else None,
        }  # fmt: skip
        found = self._read("request.json")
        empty = not self.output.exists() or not any(self.output.iterdir())
        if found != identity and not empty:
            if found.get("kind") != KIND:
                raise UsageError(f"{self.output}: holds something else; choose another --output")
            if not overwrite:
                raise UsageError(
                    f"{self.output}: holds the frontier of other options or another model; repeat "
                    "its options, choose another --output, or add --overwrite"
                )
            remove_ours(self.output, _is_ours)
        self._write("request.json", identity)

    def _read(self, file: str) -> dict[str, Any]:
        """What an earlier run wrote; nothing where there is none, or something else."""
        return read_settings(self.output / file)

    def _write(self, file: str, document: Any) -> None:
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        write_text(self.output / file, text, overwrite=True)

    def plan(self) -> PrunePlan:
        """The plan of the greatest depth; each round is kept as soon as it is done."""
        path = self.output / "plan.json"
        known = read_plan(path) if path.exists() else None
        if known is not None and len(known.removed) == self.recipe.num_removed and known.perplexity:
            checkpoint = self.checkpoint
            check_plan(
                known, checkpoint.family, checkpoint.num_hidden_layers, tied=checkpoint.tied,
                where=str(path),
            )  # fmt: skip
            return known
        made = pipeline.make_plan(
            self.checkpoint, self.request, name=self.name, progress=self.progress, resume=known,
            on_round=lambda plan: write_plan(path, plan, overwrite=True),
        )  # fmt: skip
        write_plan(path, made, overwrite=True)
        return made

    def _depths(self, plan: PrunePlan) -> dict[str, PrunePlan]:
        """Plans by the number of layers that they remove, from none on."""
        none = dataclasses.replace(plan, rounds=(), perplexity={})
        parts = [none, *(plan.prefix(n) for n in range(1, len(plan.rounds) + 1))]
        return {str(len(part.removed)): part for part in parts}

    def perplexities(self, plan: PrunePlan) -> dict[str, float]:
        """On the evaluation text, by depth, in memory.

        Raises:
            UsageError: no text to evaluate on is known.
        """
        from prunecomp.machine import open_model

        known = self._measured("perplexity")
        missing = {d: part for d, part in self._depths(plan).items() if d not in known}
        if not missing:
            return known
        _, text = pipeline.load_texts(self.checkpoint, self.request)
        if text is None:
            raise UsageError(
                f"--calibration {self.request.calibration}: has no held-out part; name a text "
                "with --evaluation"
            )
        opened = open_model(self.checkpoint, self.request, self.recipe, (text, None), self.progress)
        for depth, part in missing.items():
            opened.model.apply(part)
            runner = opened.runner(text, keep=False)
            known[depth] = math.exp(runner.loss(description="evaluation"))
            self.progress.say(f"{depth} layers removed: perplexity {known[depth]:.3f}")
            self._keep("perplexity", known)
        return known

    def retained(self, plan: PrunePlan) -> dict[str, dict[str, float | None]]:
        """Mean over the tasks of the first group, by depth, from models that are written for it.

        Raises:
            PruneCompError: a model could not be evaluated.
        """
        if self.tasks is None:
            return {}
        known = self._measured("retained")
        known.setdefault("0", {"value": 1.0, "stderr": 0.0})
        for depth, part in self._depths(plan).items():
            if depth in known:
                continue
            name = f"minus-{depth}"
            with tempfile.TemporaryDirectory(prefix=_MODELS, dir=self.output) as folder:
                path = Path(folder) / name
                pipeline.apply_plan(self.checkpoint, part, path, progress=self.progress)
                found = accuracy.run(
                    {"base": self.checkpoint.path, name: path}, self.tasks,
                    output=self.output / "raw", progress=self.progress,
                )  # fmt: skip
            if found.failures:
                raise PruneCompError(f"{found.failures[0].model}: {found.failures[0].message}")
            if not found.accuracy.mean_retained:
                raise PruneCompError(
                    f"{', '.join(self.tasks.tasks)}: the base has no accuracy to retain; choose "
                    "other --tasks"
                )
            mean = found.accuracy.mean_retained[0]
            known[depth] = {"value": mean.value, "stderr": mean.stderr}
            self.progress.say(f"{depth} layers removed: retained {mean.value:.3f}")
            self._keep("retained", known)
        return known

    def _measured(self, what: str) -> dict[str, Any]:
        """What is known by depth; nothing where the file says something that no run says."""
        try:
            found = records.parse(_Measured, self._read("measured.json"), "")
        except records.RecordError:
            return {}
        sound = all(value > 0 for value in found.perplexity.values())
        return plain(found)[what] if sound else {}

    def _keep(self, what: str, found: dict[str, Any]) -> None:
        self._write("measured.json", {**self._read("measured.json"), what: found})

    def run(self, criterion: Criterion) -> Frontier:
        """Measures what is not measured yet, and writes ``frontier.json`` and its plots."""
        plan = self.plan()
        perplexities, retained = self.perplexities(plan), self.retained(plan)
        points = tuple(
            FrontierPoint(
                int(depth), tuple(part.removed), perplexities[depth],
                perplexities[depth] / perplexities["0"],
                Estimate(**retained[depth]) if depth in retained else None,
            )
            for depth, part in self._depths(plan).items()
        )  # fmt: skip
        limits = {k: v for k, v in dataclasses.asdict(criterion).items() if v is not None}
        found = Frontier(
            self.recipe.num_removed, points, limits, recommend(points, criterion), "plan.json"
        )
        self._write("frontier.json", {
            "schema_version": SCHEMA_VERSION, "kind": KIND, "model": self.name,
            "num_hidden_layers": self.checkpoint.num_hidden_layers, "versions": versions(),
            "frontier": plain(found),
        })  # fmt: skip
        return found


def read_frontier(path: Path) -> Frontier:
    """The frontier in a file, or in the ``frontier.json`` of a directory.

    Raises:
        UsageError: there is none that can be read.
    """
    hint = "give the frontier.json of `frontier`"
    file, document = read_document(path, "frontier.json", hint=hint)
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise UsageError(f"{file}: is not a frontier; {hint}")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{file}: has schema version {brief(document.get('schema_version'))}, this program "
            f"reads {SCHEMA_VERSION}; use the version of prunecomp that wrote it"
        )
    return parse(Frontier, document.get("frontier"), str(file), hint=hint)


def draw(found: Frontier, output: Path) -> list[Path]:
    """Writes the plots as SVG files into `output`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    from bench.report.plots import frontier, frontier_retained

    plots = [plot for plot in (frontier(found), frontier_retained(found)) if plot is not None]
    paths = [output / f"{plot.name}.svg" for plot in plots]
    for plot, path in zip(plots, paths, strict=True):
        write_text(path, plot.standalone(), overwrite=True)
    return paths
