"""From the worker's files to the report: results, and what of the base's accuracy is left."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.qualities import Accuracy, MeanRetained, Perplexity, Retained, TaskResult
from bench.quantities import Estimate
from bench.statistics import mean_of, retained
from prunecomp.calibration.data import BUILT_IN
from prunecomp.errors import PruneCompError

#: Of several metrics of a task the first of these counts: normalised by length where the task
#: does so, as papers on pruning report it.
PREFERRED = ("acc_norm", "acc", "exact_match")
ONLY_SHORT = (
    "only short tasks were run, which score given answers: removing layers harms long chains of "
    "reasoning first; add a task that generates, such as gsm8k or quick-gen"
)


@dataclass(frozen=True)
class Row:
    """One row of one model, with what a comparison needs.

    Attributes:
        outcomes: by item, the same key for the same item of every model; empty where the metric
            is not a mean over items, so that nothing can be paired.
    """

    result: TaskResult
    outcomes: Mapping[str, float]


def _samples(directory: Path, task: str) -> list[dict[str, Any]]:
    text = (directory / "samples" / f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _outcomes(directory: Path, task: str) -> tuple[str, dict[str, float], float | None]:
    """Metric, outcome of every item, and chance, of one task.

    Of several filters of the answer (``strict-match``, ``flexible-extract``) the first counts.
    """
    samples = _samples(directory, task)
    samples = [s for s in samples if s["filter"] == samples[0]["filter"]]
    names = samples[0]["metrics"]
    metric = next((m for m in PREFERRED if m in names), names[0])
    values = [sample[metric] for sample in samples]
    if not all(isinstance(v, (int, float)) for v in values):
        return metric, {}, None
    outcomes = {f"{task}/{s['doc_id']}/{s['doc_hash']}": float(s[metric]) for s in samples}
    return metric, outcomes, statistics.fmean(1 / len(s["filtered_resps"]) for s in samples)


def _aggregate(found: Mapping[str, Any], task: str, metric: str) -> tuple[float, float | None]:
    """What lm-eval makes of a metric that is no mean, and its standard error if it has one."""
    for key, value in found["results"][task].items():
        name, _, choice = key.partition(",")
        if name == metric and isinstance(value, (int, float)):
            error = found["results"][task].get(f"{metric}_stderr,{choice}")
            return float(value), float(error) if isinstance(error, (int, float)) else None
    raise PruneCompError(f"task {task}: lm-eval gives no figure for {metric}; choose another task")


def _row(
    model: str, directory: Path, found: Mapping[str, Any], group: str, name: str, tasks: list[str]
) -> Row:
    parts = [_outcomes(directory, task) for task in tasks]
    metric = parts[0][0]
    outcomes = {item: value for _, part, _ in parts for item, value in part.items()}
    kinds = {found["output_types"][task] for task in tasks}
    values = list(outcomes.values())
    if values:
        value = statistics.fmean(values)
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    else:
        value, error = _aggregate(found, tasks[0], metric)
    chance = None
    if values and kinds == {"multiple_choice"}:
        weights = [len(part) for _, part, _ in parts]
        chance = statistics.fmean([c or 0.0 for *_, c in parts], weights)
    result = TaskResult(
        model=model, task=name, group=group, metric=metric, value=value, stderr=error,
        n=len(values) or sum(len(_samples(directory, t)) for t in tasks), chance=chance,
        kind="generation" if kinds == {"generate_until"} else "choice",
    )  # fmt: skip
    higher = found.get("higher_is_better", {}).get(tasks[0], {}).get(metric)
    return Row(result, outcomes if higher is not False else {})


def read_rows(model: str, directory: Path) -> Iterator[Row]:
    """All rows of one model, in the order of the tasks that were asked for."""
    found = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    for group, rows in found["groups"].items():
        for name, tasks in rows.items():
            yield _row(model, directory, found, group, name, tasks)


def read_perplexities(model: str, directory: Path) -> Iterator[Perplexity]:
    """Of one model, by text; none where it was not measured."""
    path = directory / "perplexity.json"
    for found in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
        text = found["text"] + (", held-out part" if found["text"] in BUILT_IN else "")
        yield Perplexity(model, text, found["perplexity"], found["tokens"])


def _compare(base: Row, row: Row) -> Estimate | None:
    if not base.outcomes or not row.outcomes:
        return None
    if base.outcomes.keys() != row.outcomes.keys():
        raise PruneCompError(
            f"task {row.result.task}: {base.result.model} and {row.result.model} were not asked "
            "the same; run both again"
        )
    items = list(base.outcomes)
    return retained([base.outcomes[i] for i in items], [row.outcomes[i] for i in items])


def collect(
    directories: Mapping[str, Path], *, base: str, engine: str, num_fewshot: int | None
) -> tuple[Accuracy, list[str]]:
    """The report's part, and warnings, of models that were evaluated.

    Args:
        directories: of the worker, by model.
        base: what the others are compared with; if it is not among them, nothing is compared.

    Raises:
        PruneCompError: two models were not asked the same.
    """
    rows = {model: list(read_rows(model, where)) for model, where in directories.items()}
    texts = (row for m, where in directories.items() for row in read_perplexities(m, where))
    kept: list[Retained] = []
    means: list[MeanRetained] = []
    lost: set[str] = set()
    for model in [m for m in rows if m != base] if base in rows else ():
        groups: dict[str, list[Estimate]] = {}
        for reference, row in zip(rows[base], rows[model], strict=True):
            task, group = row.result.task, row.result.group
            estimate = _compare(reference, row)
            if estimate is None:
                lost.add(task)
                continue
            kept.append(Retained(model, task, group, estimate.value, estimate.stderr))
            groups.setdefault(group, []).append(estimate)
        for group, estimates in groups.items():
            mean = mean_of(estimates)
            means.append(MeanRetained(model, group, mean.value, mean.stderr))
    results = tuple(row.result for found in rows.values() for row in found)
    accuracy = Accuracy(
        engine, num_fewshot, results, tuple(kept), tuple(means),
        tuple(texts), _prefix(directories),
    )  # fmt: skip
    return accuracy, [*guard(results), *_guessed(results, base), *_lost(sorted(lost))]


def _prefix(directories: Mapping[str, Path]) -> tuple[str, ...] | None:
    """What every text began with, for the first model; the others have the same tokenizer."""
    for where in directories.values():
        found = json.loads((where / "results.json").read_text(encoding="utf-8"))
        return tuple(found["prefix"]) if "prefix" in found else None
    return None


def guard(results: Sequence[TaskResult]) -> list[str]:
    """The warning that nothing was generated, where that is so."""
    return [ONLY_SHORT] if results and all(r.kind != "generation" for r in results) else []


def _guessed(results: Sequence[TaskResult], base: str) -> list[str]:
    """The warning that the base guesses, where it may: within two standard errors of chance."""
    tasks = [
        r.task for r in results
        if r.model == base and r.chance is not None and r.value <= r.chance + 2 * (r.stderr or 0.0)
    ]  # fmt: skip
    if not tasks:
        return []
    return [
        f"the base is not clearly above chance on {', '.join(tasks)}: what a pruned model retains "
        "of guesses says nothing; take more samples, or other tasks"
    ]


def _lost(tasks: Sequence[str]) -> list[str]:
    return [
        f"task {task}: no retained performance, for the base has nothing to retain, or the metric "
        "is not a mean of which more is better"
        for task in tasks
    ]
