"""The report, put together from the pieces of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import answers
from bench.ceiling import ceiling_of, serving_speedup
from bench.context import Run
from bench.engines.base import Options
from bench.environment import environment
from bench.offline_stage import OfflineStage
from bench.qualities import Accuracy
from bench.quantities import Estimate, Ratio
from bench.schema import Ceiling, Frontier, Memory, Model, Offline, Report, Serving, Summary
from bench.serving_stage import RATES_FROM, ServingStage
from bench.work import counts_of

#: A share of the ideal above this is said to be one.
_TOO_GOOD = 1.05
_ITEMSIZES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


def _memory_of(run: Run, model: Model, engine: str) -> Memory | None:
    served = run.raw.read(f"memory/{model.id}-{engine}")
    facts = served or run.raw.read(f"memory/{model.id}-offline-{engine}")
    if facts is None:
        return None
    counts = counts_of(Path(model.path))
    per_token = counts.kv_bytes_per_token
    if per_token is not None:
        dtype = Options(run.settings.engine_args).dtype()
        per_token = per_token // counts.itemsize * _ITEMSIZES.get(dtype, counts.itemsize)
    tokens, budget = facts["kv_cache_tokens"], run.settings.kv_cache_bytes
    if budget is None and tokens and per_token:
        budget = tokens * per_token
    return Memory(
        model=model.id, engine=engine, weights_bytes=model.weights_bytes, kv_cache_tokens=tokens,
        kv_bytes_per_token=per_token, kv_budget_bytes=budget if engine == "vllm" else None,
        peak_bytes=facts["peak_bytes"], peak_of=facts["peak_of"], note=counts.kv_note,
    )  # fmt: skip


def memory_of(run: Run) -> list[Memory]:
    """Of every model in every engine that ran; vLLM's server before its Python API."""
    engines = dict.fromkeys(("vllm", *run.settings.engines))
    found = (_memory_of(run, model, engine) for engine in engines for model in run.models)
    return [memory for memory in found if memory is not None]


def _mean_retained(accuracy: Accuracy | None, model: str) -> Estimate | None:
    for row in accuracy.mean_retained if accuracy else ():
        if row.model == model:
            return Estimate(row.value, row.stderr)
    return None


def _speedups(
    model: str, base: str, ceiling: Ceiling, serving: Sequence[Serving]
) -> dict[str, Ratio]:
    """The first measured point of each stage; of serving, the first mix at its highest load."""
    found: dict[str, Ratio] = {}
    for point in ceiling.points:
        if point.measured is not None and point.stage != "serving":
            found.setdefault(point.stage, point.measured)
    closed = [s for s in serving if s.mode == "closed" and s.metrics]
    for load in sorted(closed, key=lambda s: -s.concurrency):
        if load.model == model and load.mix == closed[0].mix:
            partner = next(
                (s for s in closed if (s.model, s.mix, s.concurrency)
                 == (base, load.mix, load.concurrency)), None,
            )  # fmt: skip
            if partner and (ratio := serving_speedup(partner, load)):
                found.setdefault("serving_output_tokens_per_s", ratio)
    return found


def summary_of(
    models: Sequence[Model],
    ceilings: Sequence[Ceiling],
    serving: Sequence[Serving],
    memory: Sequence[Memory],
    accuracy: Accuracy | None,
) -> list[Summary]:
    """One row per pruned model."""
    base, rows = models[0], []
    tokens = {m.model: m.kv_cache_tokens for m in reversed(memory) if m.kv_cache_tokens}
    for model, ceiling in zip(models[1:], ceilings, strict=True):
        both = model.id in tokens and base.id in tokens
        rows.append(Summary(
            model=model.id, layers_removed=model.layers_removed,
            speedup=_speedups(model.id, base.id, ceiling, serving),
            retained=_mean_retained(accuracy, model.id),
            weights_ratio=model.weights_bytes / base.weights_bytes,
            kv_tokens_ratio=tokens[model.id] / tokens[base.id] if both else None,
        ))  # fmt: skip
    return rows


def _too_good(ceilings: Sequence[Ceiling]) -> list[str]:
    """Warnings of what was faster than the counted work allows."""
    found = [
        f"{ceiling.model}: {point.what}"
        for ceiling in ceilings
        for point in ceiling.points
        if point.share_of_ideal is not None and point.share_of_ideal > _TOO_GOOD
    ]
    if not found:
        return []
    return [
        f"{len(found)} speedups are more than {_TOO_GOOD - 1:.0%} above the ideal, the first of "
        f"{found[0]}: the machine was not quiet, or the time goes to what is done for every layer "
        "whatever its size; trust neither without more repeats"
    ]


def assemble(
    run: Run,
    *,
    created: str,
    command: Sequence[str],
    duration_s: float,
    accuracy: Accuracy | None = None,
    frontier: Frontier | None = None,
    shares: Sequence[float] = (),
) -> Report:
    """The report of what was measured so far."""
    skipped = run.settings.skipped
    serving: list[Serving] = []
    offline: list[Offline] = []
    if "serving" not in skipped:
        serving = list(ServingStage(run, shares=shares).results())
    if "offline" not in skipped:
        for engine in run.settings.engines:
            offline += OfflineStage(run, engine).results()
    memory, base = memory_of(run), run.models[0]
    ceilings = [
        ceiling_of(base, model, mixes=run.settings.mixes, offline=offline, serving=serving)
        for model in run.models[1:]
    ]
    settings = run.settings
    if shares:
        settings = replace(settings, rates_from=RATES_FROM.format(", ".join(map(str, shares))))
    return Report(
        created=created, command=tuple(command), duration_s=duration_s, settings=settings,
        environment=environment(commands=run.commands), models=run.models,
        serving=tuple(serving), offline=tuple(offline), memory=tuple(memory),
        ceiling=tuple(ceilings), accuracy=accuracy,
        answers=answers.results(run), frontier=frontier,
        summary=tuple(summary_of(run.models, ceilings, serving, memory, accuracy)),
        failures=tuple(run.failures), warnings=(*run.warnings, *_too_good(ceilings)),
    )  # fmt: skip
