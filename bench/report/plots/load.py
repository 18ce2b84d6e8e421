"""Latency and throughput against load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from bench.report.format import number
from bench.report.plots.drawing import (
    Plot,
    colour,
    error_bar,
    logarithmic,
    numbers,
    panel,
    plain_ticks,
    series,
    slug,
)
from bench.schema import Percentiles, Report, Serving

_LATENCIES = (
    ("ttft_ms", "Time to first token"),
    ("tpot_ms", "Time per output token"),
    ("e2el_ms", "End-to-end latency"),
)


def plots(report: Report, mix: str) -> list[Plot]:
    """Latency against load, closed and open, and then what was served at that load."""
    latencies: list[Plot] = []
    rates: list[Plot] = []
    for mode, load, xlabel, rate, words in (
        ("closed", "concurrency", "requests in flight", "output_tokens_per_s", "output tokens"),
        ("open", "request_rate", "requests per second offered", "goodput_requests_per_s",
         "goodput, requests"),
    ):  # fmt: skip
        curves: dict[str, list[tuple[float, Serving]]] = {}
        for model in numbers(report):
            rows = [
                (getattr(s, load), s) for s in report.serving
                if (s.mix, s.mode, s.model) == (mix, mode, model) and s.metrics
            ]  # fmt: skip
            if rows:
                curves[model] = sorted(rows, key=lambda row: row[0])
        if not curves:
            continue
        suffix = f"{mode}-{slug(mix)}"
        for field, title in _LATENCIES:
            measured = _measured(curves, field)
            if measured:
                latencies.append(_latency(
                    report, measured, field, f"{title}, {mode} loop", xlabel, f"{field}-{suffix}"
                ))  # fmt: skip
        rates += _rate(
            report, curves, rate, f"{words} per second", mode, xlabel, f"{rate}-{suffix}"
        )
    return [*latencies, *rates]


Curves = Mapping[str, Sequence[tuple[float, Serving]]]


def _measured(curves: Curves, field: str) -> Curves:
    """What has a field that outputs of one token lack."""
    found = {
        model: [(load, s) for load, s in points if getattr(s.metrics, field) is not None]
        for model, points in curves.items()
    }
    return {model: points for model, points in found.items() if points}


def _loads(axes, curves: Curves) -> None:
    loads = sorted({load for points in curves.values() for load, _ in points})
    if len(loads) > 1 and loads[0] > 0 and loads[-1] >= 4 * loads[0]:
        axes.set_xscale("log", base=2)
    crowded = axes.get_xscale() == "linear" and any(
        b - a < 0.09 * (loads[-1] - loads[0]) for a, b in pairwise(loads)
    )
    plain_ticks(axes.xaxis, loads[::2] if crowded else loads)


def _latency(
    report: Report, curves: Curves, field: str, title: str, xlabel: str, name: str
) -> Plot:
    """p50 as a line in the band of its repeats, p99 dashed."""
    colours, said, seen = numbers(report), [], []
    with panel(title, xlabel, "milliseconds") as drawing:
        axes = drawing.axes
        for model, points in curves.items():
            style = series(colours[model])
            loads = [load for load, _ in points]
            values: list[Percentiles] = [getattr(s.metrics, field) for _, s in points]
            p50, p99 = [v.p50 for v in values], [v.p99 for v in values]
            axes.plot(loads, p50, **style)
            axes.fill_between(loads, [v.low for v in values], [v.high for v in values],
                              color=style["color"], alpha=0.18, linewidth=0)  # fmt: skip
            axes.plot(loads, p99, color=style["color"], linestyle=(0, (4, 2)), linewidth=1.3,
                      marker="_")  # fmt: skip
            seen += [*p99, *(v.high for v in values), *(v.low for v in values)]
            said.append(f"{model}: p50 {_range(p50)}, p99 {_range(p99)}")
        limit = getattr(report.settings.slo, field)
        if limit is not None and limit <= max(seen):
            axes.axhline(limit, color=colour("ink"), linestyle=":", linewidth=1.3)
        logarithmic(axes.yaxis, seen)
        if axes.get_yscale() == "linear":
            axes.set_ylim(0, 1.06 * max(seen) or 1)
        _loads(axes, curves)
        return drawing.finish(name, f"{title}; milliseconds. {'; '.join(said)}.")


def _range(values: Sequence[float]) -> str:
    if len(values) == 1:
        return number(values[0])
    return f"from {number(values[0])} to {number(values[-1])}"


def _rate(
    report: Report, curves: Curves, field: str, words: str, mode: str, xlabel: str, name: str
) -> list[Plot]:
    """What was served, with the range of the repeats."""
    title = f"{words[0].upper()}{words[1:]}, {mode} loop"
    known = {
        model: [(load, value) for load, s in points if (value := getattr(s.metrics, field))]
        for model, points in curves.items()
    }
    if not any(known.values()):
        return []
    colours, said = numbers(report), []
    with panel(title, xlabel, words) as drawing:
        axes = drawing.axes
        for model, points in known.items():
            loads, middles = [p[0] for p in points], [p[1].median for p in points]
            errors = [error_bar(v, v.median) for _, v in points]
            axes.errorbar(
                loads, middles, yerr=[[e[side][0] for e in errors] for side in (0, 1)],
                **series(colours[model]), capsize=2.5, elinewidth=1.2,
            )  # fmt: skip
            if points:
                said.append(f"{model}: {_range(middles)}")
        axes.set_ylim(0, 1.06 * max(v.high for points in known.values() for _, v in points) or 1)
        _loads(axes, curves)
        return [drawing.finish(name, f"{title}. {'; '.join(said)}.")]
