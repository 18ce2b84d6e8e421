"""Limits that a report must keep, for use in CI: minimal speedups, maximal losses.

Every pruned model of the report must keep every limit. A limit is compared with the median of the
repeats, not with their pessimistic end, because a few repeats' extremes depend on their number; the
interval is printed. What was not measured does not keep a limit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.report.format import NOT_MEASURED, SPEEDUPS, percent, ratio, retained
from bench.schema import Report
from prunecomp.errors import UsageError
from prunecomp.registry import did_you_mean

#: Rounding of binary fractions; a loss of exactly the limit keeps it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Thresholds:
    """What is asked for.

    Attributes:
        speedups: smallest allowed speedup by its name in the report's summary.
        max_accuracy_loss: largest allowed ``1 - retained``, of every group of tasks.
        max_ppl_increase: largest allowed ``pruned / base - 1`` of perplexity, on every text.
    """

    speedups: Mapping[str, float] = field(default_factory=dict)
    max_accuracy_loss: float | None = None
    max_ppl_increase: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command that checks limits."""
    group = parser.add_argument_group("limits (exit code 4 where a pruned model misses one)")
    group.add_argument(
        "--fail-under", metavar="NAME=X[,...]",
        help=f"smallest speedup; NAME is one of {', '.join(SPEEDUPS)}; compared with the median",
    )  # fmt: skip
    for option, what in (
        ("--max-accuracy-loss", "largest loss of mean accuracy, as a share of the base's: 0.05"),
        ("--max-ppl-increase", "largest rise of perplexity, as a share of the base's: 0.1"),
    ):
        group.add_argument(option, type=float, metavar="SHARE", help=what)


def from_arguments(args: argparse.Namespace) -> Thresholds:
    """What the options of `add_arguments` say.

    Raises:
        UsageError: they make no sense.
    """
    for name in ("max_accuracy_loss", "max_ppl_increase"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} {value}: give a share of the base's, such as 0.05")
    return Thresholds(
        parse_fail_under(args.fail_under or ""), args.max_accuracy_loss, args.max_ppl_increase
    )


def parse_fail_under(text: str) -> dict[str, float]:
    """``{"decode": 1.2}`` for ``decode=1.2``.

    Raises:
        UsageError: an unknown name, or no number.
    """
    found: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        if name not in SPEEDUPS:
            near = did_you_mean(name, list(SPEEDUPS))
            raise UsageError(
                f"--fail-under {item}: unknown speedup {name!r}{near} "
                f"(choose from {', '.join(SPEEDUPS)})"
            )
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not (math.isfinite(found[name]) and found[name] > 0):
            raise UsageError(f"--fail-under {item}: give a number, such as {name}=1.2")
    return found


def check(report: Report, thresholds: Thresholds) -> list[str]:
    """What misses a limit, one line each, and by how much; empty where all keep all."""
    pruned = [model.id for model in report.models if model.role != "base"]
    if not pruned and thresholds != Thresholds():
        return ["no pruned model was measured"]
    return [
        f"{model}: {line}"
        for model in pruned
        for line in (
            *_slow(report, model, thresholds.speedups),
            *_inaccurate(report, model, thresholds.max_accuracy_loss),
            *_perplexed(report, model, thresholds.max_ppl_increase),
        )
    ]


def _slow(report: Report, model: str, limits: Mapping[str, float]) -> Iterator[str]:
    measured = next((row.speedup for row in report.summary if row.model == model), {})
    for name, limit in limits.items():
        value = measured.get(name)
        if value is None:
            yield f"{name} speedup {NOT_MEASURED}, at least {limit:g} asked for"
        elif value.value < limit - _ROUNDING:
            yield (
                f"{name} speedup {ratio(value)} of {value.n} repeats, {limit - value.value:.3g} "
                f"under {limit:g}"
            )


def _inaccurate(report: Report, model: str, limit: float | None) -> Iterator[str]:
    if limit is None:
        return
    means = report.accuracy.mean_retained if report.accuracy else ()
    kept = [row for row in means if row.model == model]
    if not kept:
        yield f"accuracy {NOT_MEASURED}, a loss of at most {percent(limit)} asked for"
    for row in kept:
        if (loss := 1 - row.value) > limit + _ROUNDING:
            yield (
                f"loses {percent(loss)} of accuracy on {row.group} (keeps {retained(row)}), "
                f"{percent(loss - limit)} over {percent(limit)}"
            )


def _perplexed(report: Report, model: str, limit: float | None) -> Iterator[str]:
    if limit is None:
        return
    base = next((m.id for m in report.models if m.role == "base"), None)
    rows = report.accuracy.perplexity if report.accuracy else ()
    before = {row.text: row.value for row in rows if row.model == base}
    after = {row.text: row.value for row in rows if row.model == model and row.text in before}
    if not after:
        yield f"perplexity {NOT_MEASURED}, a rise of at most {percent(limit)} asked for"
    for text, value in after.items():
        if (rise := value / before[text] - 1) > limit + _ROUNDING:
            yield (
                f"perplexity on {text} rises by {percent(rise)}, {percent(rise - limit)} over "
                f"{percent(limit)}"
            )
