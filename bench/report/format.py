"""Numbers as people read them; what was not measured says so."""

from __future__ import annotations

from collections.abc import Iterable

from bench.qualities import MeanRetained, Retained
from bench.quantities import Estimate, Percentiles, Ratio, Spread

NOT_MEASURED = "not measured"
#: Speedups by their name in the summary: the stage of the ceiling, and the words for it.
SPEEDUPS = {
    "decode": ("decode", "decode"),
    "prefill": ("prefill", "prefill"),
    "throughput": ("throughput", "offline throughput"),
    "serving_output_tokens_per_s": ("serving", "serving throughput"),
}


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, never an exponent: ``0.0123``, ``12.3``, ``12,346``."""
    if value is None:
        return NOT_MEASURED
    if value == 0:
        return "0"
    places = digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:,.{max(places, 0)}f}"


def interval(middle: float, low: float, high: float) -> str:
    """``1.31 (1.28–1.34)``; one repeat has no interval."""
    if low == middle == high:
        return number(middle)
    return f"{number(middle)} ({number(low)}–{number(high)})"


def ratio(value: Ratio | None) -> str:
    """``1.31 (1.28–1.34)``."""
    return NOT_MEASURED if value is None else interval(value.value, value.low, value.high)


def spread(value: Spread | None, *, scale: float = 1.0) -> str:
    """``1.31 (1.28–1.34)``, in units of ``1 / scale``."""
    if value is None:
        return NOT_MEASURED
    return interval(value.median * scale, value.low * scale, value.high * scale)


def percentiles(value: Percentiles | None) -> str:
    """``p50 / p90 / p99``."""
    if value is None:
        return NOT_MEASURED
    return " / ".join(number(v) for v in (value.p50, value.p90, value.p99))


def percent(value: float | None) -> str:
    """``96.1 %``."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def retained(value: Estimate | Retained | MeanRetained | None) -> str:
    """``91.2 ± 1.9 %``."""
    if value is None:
        return NOT_MEASURED
    error = "" if value.stderr is None else f" ± {100 * value.stderr:.1f}"
    return f"{100 * value.value:.1f}{error} %"


def size(nbytes: float | None) -> str:
    """In powers of 1000, as disks and ``inspect`` count."""
    if nbytes is None:
        return NOT_MEASURED
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{number(nbytes / unit)} {name}"
    return f"{number(nbytes)} B"


def count(value: int | None) -> str:
    """``12,345``."""
    return NOT_MEASURED if value is None else f"{value:,}"


def listed(values: Iterable[object]) -> str:
    """``a, b``, or ``none``."""
    return ", ".join(map(str, values)) or "none"
