"""Two reports side by side: what was different about them, then what changed.

A change is beyond noise where the ranges of the repeats (smallest to largest) do not overlap; for
accuracies, where it is more than two standard errors of the difference, as if the samples were not
the same ones; for perplexity, where it is more than 0.1 %; for counts, where there is one. With a
single repeat nobody can tell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.qualities import MeanRetained, TaskResult
from bench.quantities import Percentiles, Ratio, Spread
from bench.report.format import SPEEDUPS, interval, number
from bench.schema import Model, Report, Serving

_PERPLEXITY_NOISE = 1e-3
_UNLIKE = ("environment.commands", "environment.git.dirty")


@dataclass(frozen=True)
class Quantity:
    """One number of one model.

    Attributes:
        low: smallest repeat; `value` where there is one only.
        high: largest repeat.
        stderr: standard error, where it is an estimate.
        noise: relative change that means nothing; null where the repeats or the error tell.
        more_is_better: else less is.
        main: is shown even if it did not change.
    """

    value: float
    low: float
    high: float
    stderr: float | None = None
    noise: float | None = None
    more_is_better: bool = True
    main: bool = False

    def __str__(self) -> str:
        if self.stderr is not None:
            return f"{number(self.value)} ± {number(self.stderr, 2)}"
        return interval(self.value, self.low, self.high)


@dataclass(frozen=True)
class Change:
    """The same quantity in both reports."""

    what: str
    a: Quantity
    b: Quantity

    @property
    def ratio(self) -> float | None:
        """B / a."""
        return self.b.value / self.a.value if self.a.value else None

    @property
    def better(self) -> bool | None:
        """Whether b is; None where both are the same."""
        if self.a.value == self.b.value:
            return None
        return (self.b.value > self.a.value) == self.a.more_is_better

    @property
    def beyond_noise(self) -> bool | None:
        """None where that cannot be told."""
        a, b = self.a, self.b
        if a.noise is not None:
            return abs(b.value - a.value) > a.noise * abs(a.value)
        if a.stderr is not None and b.stderr is not None:
            return abs(b.value - a.value) > 2 * math.hypot(a.stderr, b.stderr)
        if a.low == a.high or b.low == b.high:
            return None
        return a.high < b.low or b.high < a.low

    def to_json(self) -> dict[str, Any]:
        sides = {
            name: {"value": q.value, "low": q.low, "high": q.high, "stderr": q.stderr}
            for name, q in (("a", self.a), ("b", self.b))
        }
        return {
            "what": self.what, **sides, "ratio": self.ratio, "better": self.better,
            "beyond_noise": self.beyond_noise,
        }  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A model of each report that are the same one, or stand for the same depth."""

    a: str
    b: str
    layers_removed: int
    changes: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Attributes:
        differences: settings, environment or model data that are not the same: name, a, b.
        only_a: models without a counterpart.
        only_b: the same of the second report.
    """

    differences: tuple[tuple[str, Any, Any], ...]
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "differences": [{"what": w, "a": a, "b": b} for w, a, b in self.differences],
            "models": [
                {**dataclasses.asdict(p), "changes": [c.to_json() for c in p.changes]}
                for p in self.pairs
            ],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }


def compare(a: Report, b: Report) -> Comparison:
    """Matches models by id, else by the number of layers removed, and quantities by their name."""
    matched = list(_matched(a, b))
    pairs = []
    for one, other in matched:
        before, after = quantities(a, one.id), quantities(b, other.id)
        pairs.append(Pair(
            one.id, other.id, one.layers_removed,
            tuple(Change(what, before[what], after[what]) for what in before if what in after),
            tuple(what for what in before if what not in after),
            tuple(what for what in after if what not in before),
        ))  # fmt: skip
    return Comparison(
        tuple(_differences(a, b, matched)),
        tuple(pairs),
        tuple(m.id for m in a.models if m not in [one for one, _ in matched]),
        tuple(m.id for m in b.models if m not in [other for _, other in matched]),
    )


def _matched(a: Report, b: Report) -> Iterator[tuple[Model, Model]]:
    ids = {m.id: m for m in b.models}
    free = [m for m in b.models if m.id not in {x.id for x in a.models}]
    lone = [m for m in a.models if m.id not in ids]
    for model in a.models:
        if model.id in ids:
            yield model, ids[model.id]
            continue

        def like(other: Model, model: Model = model) -> bool:
            return (other.role, other.layers_removed) == (model.role, model.layers_removed)

        if len(same := list(filter(like, free))) == 1 == len(list(filter(like, lone))):
            yield model, same[0]


def _differences(
    a: Report, b: Report, matched: list[tuple[Model, Model]]
) -> Iterator[tuple[str, Any, Any]]:
    before, after = a.to_json(), b.to_json()
    for part in ("environment", "settings"):
        one, other = dict(_leaves(before[part], part)), dict(_leaves(after[part], part))
        for name in {**one, **other}:
            if one.get(name) != other.get(name) and not name.startswith(_UNLIKE):
                yield name, one.get(name), other.get(name)
    for x, y in matched:
        for name in ("model_type", "num_hidden_layers", "parameters", "removed"):
            if getattr(x, name) != getattr(y, name):
                yield f"model {x.id}.{name}", getattr(x, name), getattr(y, name)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for item in value:  # request mixes
            yield f"{name}.{item['name']}", {k: v for k, v in item.items() if k != "name"}
    else:
        yield name, value


def quantities(report: Report, model: str) -> dict[str, Quantity]:
    """Everything measured of one model, by a name that says where and how it was measured."""
    return {
        **dict(_speedups(report, model)),
        **dict(_accuracy(report, model)),
        **dict(_memory(report, model)),
        **dict(_offline(report, model)),
        **dict(_serving(report, model)),
    }


Named = Iterator[tuple[str, Quantity]]


def _ranged(value: Spread | Ratio, **more: Any) -> Quantity:
    middle = value.value if isinstance(value, Ratio) else value.median
    return Quantity(middle, value.low, value.high, **more)


def _count(value: float, **more: Any) -> Quantity:
    return Quantity(value, value, value, noise=0.0, **more)


def _speedups(report: Report, model: str) -> Named:
    for row in report.summary:
        if row.model == model:
            for name, value in row.speedup.items():
                words = SPEEDUPS[name][1] if name in SPEEDUPS else name
                yield f"{words} speedup", _ranged(value, main=True)


def _accuracy(report: Report, model: str) -> Named:
    def estimate(row: MeanRetained | TaskResult, **more: Any) -> Quantity:
        return Quantity(row.value, row.value, row.value, row.stderr, **more)

    if report.accuracy is None:
        return
    for row in report.accuracy.mean_retained:
        if row.model == model:
            yield f"retained accuracy, {row.group}", estimate(row, main=True)
    for text in report.accuracy.perplexity:
        if text.model == model:
            value = text.value
            yield f"perplexity, {text.text}", Quantity(
                value, value, value, noise=_PERPLEXITY_NOISE, more_is_better=False, main=True
            )  # fmt: skip
    for task in report.accuracy.results:
        if task.model == model:
            yield f"{task.metric} of {task.task} ({task.group}, {task.n} samples)", estimate(task)


def _memory(report: Report, model: str) -> Named:
    for row in report.memory:
        if row.model != model:
            continue
        yield f"weights, bytes ({row.engine})", _count(row.weights_bytes, more_is_better=False)
        if row.kv_cache_tokens is not None:
            budget = f"in {row.kv_budget_bytes} bytes" if row.kv_budget_bytes else "as they fit"
            yield f"KV cache tokens {budget} ({row.engine})", _count(row.kv_cache_tokens)
        if row.peak_bytes is not None:
            peak = Quantity(row.peak_bytes, row.peak_bytes, row.peak_bytes, more_is_better=False)
            yield f"peak of {row.peak_of}, bytes ({row.engine})", peak


def _offline(report: Report, model: str) -> Named:
    for row in report.offline:
        if row.model != model:
            continue
        where = f"offline {row.engine}, {row.measure}, batch {row.batch}, "
        where += f"{row.input_tokens} + {row.output_tokens} tokens: "
        yield f"{where}output tokens/s", _ranged(row.output_tokens_per_s)
        for name, value in (("prefill, s", row.prefill_s),
                            ("decode, s per token", row.decode_s_per_token)):  # fmt: skip
            if value is not None:
                yield where + name, _ranged(value, more_is_better=False)


def _serving(report: Report, model: str) -> Named:
    shapes = {
        m.name: f"{m.prompt_file or m.input_tokens} + {m.output_tokens} tokens"
        for m in report.settings.mixes
    }
    for row in report.serving:
        if row.model == model and row.metrics is not None:
            yield from _load_point(row, f"{row.mix} ({shapes[row.mix]})")


def _load_point(row: Serving, mix: str) -> Named:
    closed, m = row.mode == "closed", row.metrics
    load = f"{row.concurrency} in flight" if closed else f"{row.request_rate:g} requests/s"
    where = f"serving {mix}, {load}: "
    latencies: dict[str, Percentiles | None] = {
        "TTFT": m.ttft_ms, "TPOT": m.tpot_ms, "ITL": m.itl_ms, "E2EL": m.e2el_ms
    }  # fmt: skip
    for name, p in latencies.items():
        if p is None:  # outputs of one token have no time between tokens
            continue
        yield f"{where}{name} p50, ms", Quantity(p.p50, p.low, p.high, more_is_better=False)
        yield f"{where}{name} p99, ms", Quantity(p.p99, p.p99, p.p99, more_is_better=False)
    yield f"{where}output tokens/s", _ranged(m.output_tokens_per_s)
    if m.goodput_requests_per_s is not None:
        yield f"{where}goodput, requests/s", _ranged(m.goodput_requests_per_s)


def lines(found: Comparison, *, everything: bool = False) -> list[str]:
    """To read in a terminal: differences, then changes.

    Args:
        everything: also what did not change beyond noise, or has no measure of noise.
    """
    said = [f"differs   {what}: {a} -> {b}" for what, a, b in found.differences]
    said = said or ["conditions are the same"]
    for pair in found.pairs:
        name = pair.a if pair.a == pair.b else f"{pair.a} and {pair.b}"
        said += ["", f"{name} ({pair.layers_removed} layers removed)"]
        shown = [c for c in pair.changes if everything or c.a.main or c.beyond_noise]
        said += [_line(change) for change in shown]
        if hidden := len(pair.changes) - len(shown):
            said.append(f"  {hidden} more within noise, or without a measure of it; --all")
        for only, side in ((pair.only_a, "first"), (pair.only_b, "second")):
            if only:
                more = f" and {len(only) - 1} more" if len(only) > 1 else ""
                said.append(f"  only in the {side}: {only[0]}{more}")
    for models, side in ((found.only_a, "first"), (found.only_b, "second")):
        if models:
            said += ["", f"only in the {side} report: {', '.join(models)}"]
    return said


def _line(change: Change) -> str:
    by = "" if change.ratio is None else f"{100 * (change.ratio - 1):+.1f} %"
    noise = {True: "beyond noise", False: "within noise", None: "noise not known"}
    verdict = {True: "better", False: "worse", None: "the same"}[change.better]
    return (
        f"  {change.what}: {change.a} -> {change.b}  {by}  {verdict}, {noise[change.beyond_noise]}"
    )
