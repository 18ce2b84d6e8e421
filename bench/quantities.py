"""Measured quantities: a value is never without its spread."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """One quantity, measured once per repeat.

    Attributes:
        median: over the repeats.
        low: smallest.
        high: largest.
        samples: by repeat, null where a repeat failed; two models' samples of the same place were
            taken one right after the other, so ratios are taken place by place.
    """

    median: float
    low: float
    high: float
    samples: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Percentiles:
    """A quantity of single requests: percentiles of each repeat, then the median over repeats.

    Attributes:
        low: smallest p50 of a repeat.
        high: largest p50 of a repeat.
        samples: p50 by repeat, null where a repeat failed.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    low: float
    high: float
    samples: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """How many times faster (or more) the pruned model is than the base; above 1 is better.

    Attributes:
        value: median of the ratios of the repeats.
        low: smallest ratio of a repeat.
        high: largest ratio of a repeat.
        n: number of repeats that both models finished.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error; the error is null where it is not known."""

    value: float
    stderr: float | None
