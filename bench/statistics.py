"""Percentiles, spreads over repeats, paired ratios and retained performance, without packages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bench.quantities import Estimate, Percentiles, Ratio, Spread


def percentile(values: Sequence[float], q: float) -> float:
    """The `q`-th percentile (0 to 100), linear between neighbours, as numpy's default.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * q / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(samples: Sequence[float | None]) -> Spread | None:
    """Median, smallest and largest over repeats; None where no repeat has a value."""
    found = [s for s in samples if s is not None]
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), tuple(samples))


def percentiles(repeats: Sequence[Sequence[float]]) -> Percentiles | None:
    """Percentiles within each repeat, then the median over repeats.

    Args:
        repeats: values of single requests, by repeat; an empty repeat is one that failed.
    """
    full = [values for values in repeats if values]
    if not full:
        return None
    p50 = [percentile(values, 50) if values else None for values in repeats]
    found = [p for p in p50 if p is not None]
    return Percentiles(
        p50=statistics.median(found),
        p90=statistics.median(percentile(values, 90) for values in full),
        p99=statistics.median(percentile(values, 99) for values in full),
        mean=statistics.median(statistics.fmean(values) for values in full),
        low=min(found),
        high=max(found),
        samples=tuple(p50),
    )


def speedup(
    base: Sequence[float | None], pruned: Sequence[float | None], *, rate: bool
) -> Ratio | None:
    """How many times faster `pruned` is, repeat by repeat; None where no repeat has both.

    The two values of a repeat were taken one right after the other, so that a drift of the machine
    is in both and cancels.

    Args:
        rate: the values are rates (more is better), not times.
    """
    pairs = [
        (p / b if rate else b / p)
        for b, p in zip(base, pruned, strict=False)
        if b is not None and p is not None and b > 0 and p > 0
    ]
    if not pairs:
        return None
    return Ratio(statistics.median(pairs), min(pairs), max(pairs), len(pairs))


def retained(base: Sequence[float], pruned: Sequence[float]) -> Estimate | None:
    """``mean(pruned) / mean(base)`` over the same samples, with its standard error.

    The delta method for a ratio of means of paired samples:
    ``var(r) = (var(p) + r^2 var(b) - 2 r cov(p, b)) / (n mean(b)^2)``. None where the base has
    nothing to retain.

    Raises:
        ValueError: the samples are not the same number.
    """
    if len(base) != len(pruned):
        raise ValueError(f"{len(base)} samples of the base, {len(pruned)} of the pruned model")
    n = len(base)
    if not n or (mean := statistics.fmean(base)) == 0:
        return None
    ratio = statistics.fmean(pruned) / mean
    if n == 1:
        return Estimate(ratio, None)
    # p - r b has mean zero, and its variance is that of the numerator above.
    rests = [p - ratio * b for b, p in zip(base, pruned, strict=True)]
    variance = math.fsum(rest * rest for rest in rests) / (n - 1)
    return Estimate(ratio, math.sqrt(variance / n) / abs(mean))


def mean_of(estimates: Sequence[Estimate]) -> Estimate | None:
    """The mean of independent estimates, such as those of several tasks."""
    if not estimates:
        return None
    value = statistics.fmean(e.value for e in estimates)
    errors = [e.stderr for e in estimates]
    if any(e is None for e in errors):
        return Estimate(value, None)
    return Estimate(value, math.sqrt(math.fsum(e * e for e in errors)) / len(errors))
