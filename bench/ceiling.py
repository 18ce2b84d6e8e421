"""Ideal speedups from the counted work, and how much of them was reached.

Prefill is bound by floating point operations, decode by bytes read. A generation is some of each,
so no mixture of the two can be sped up by more than the larger of their ratios: that is the ideal
of throughput and of serving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.conditions import Mix
from bench.quantities import Ratio, Spread
from bench.schema import Ceiling, CeilingPoint, Model, Offline, Serving, Work
from bench.statistics import speedup
from bench.work import Counts, counts_of, total


def _prefill(base: Counts, pruned: Counts, length: int) -> float:
    return total(base.prefill_flops_per_token(length)) / total(
        pruned.prefill_flops_per_token(length)
    )


def _decode(base: Counts, pruned: Counts, tokens: float, batch: int) -> float:
    return total(base.decode_bytes_per_token(tokens, batch)) / total(
        pruned.decode_bytes_per_token(tokens, batch)
    )


def ideal(
    base: Counts, pruned: Counts, *, stage: str, input_tokens: int, output_tokens: int, batch: int
) -> float:
    """The ratio of the counted work of a stage.

    Args:
        stage: ``prefill``, ``decode``, or anything that is made of both.
        batch: requests per decode step; a step reads the weights once for all.
    """
    prefill = _prefill(base, pruned, input_tokens)
    decode = _decode(base, pruned, input_tokens + output_tokens / 2, batch)
    return {"prefill": prefill, "decode": decode}.get(stage, max(prefill, decode))


def _ratio(base: Spread | None, pruned: Spread | None, *, rate: bool) -> Ratio | None:
    if base is None or pruned is None:
        return None
    return speedup(base.samples, pruned.samples, rate=rate)


def offline_pairs(base: Offline, pruned: Offline) -> Iterator[tuple[str, Ratio | None]]:
    """Stages that a pair of offline results tells of, with the measured speedup."""
    if base.measure == "throughput":
        rates = base.output_tokens_per_s, pruned.output_tokens_per_s
        yield "throughput", _ratio(*rates, rate=True)
        return
    yield "prefill", _ratio(base.prefill_s, pruned.prefill_s, rate=False)
    yield "decode", _ratio(base.decode_s_per_token, pruned.decode_s_per_token, rate=False)


def serving_speedup(base: Serving, pruned: Serving) -> Ratio | None:
    """Of the output tokens per second of a closed loop."""
    if base.metrics is None or pruned.metrics is None:
        return None
    rates = base.metrics.output_tokens_per_s, pruned.metrics.output_tokens_per_s
    return _ratio(*rates, rate=True)


def _point(what: str, found: Ratio | None, best: float, **fields) -> CeilingPoint:
    share = None if found is None else found.value / best
    return CeilingPoint(
        what=what, ideal=best, measured=found, share_of_ideal=share, **fields
    )  # fmt: skip


def ceiling_of(
    base: Model,
    pruned: Model,
    *,
    mixes: Sequence[Mix],
    offline: Sequence[Offline],
    serving: Sequence[Serving],
) -> Ceiling:
    """All points of one pruned model."""
    counts = counts_of(Path(base.path)), counts_of(Path(pruned.path))
    points = []
    partners = {(o.engine, o.measure, o.mix, o.batch): o for o in offline if o.model == pruned.id}
    for one in (o for o in offline if o.model == base.id):
        other = partners.get((one.engine, one.measure, one.mix, one.batch))
        if other is None:
            continue
        for stage, found in offline_pairs(one, other):
            best = ideal(
                *counts, stage=stage, input_tokens=one.input_tokens,
                output_tokens=one.output_tokens, batch=one.batch,
            )  # fmt: skip
            where = f"mix {one.mix}" if one.mix else f"batch {one.batch}"
            points.append(_point(
                f"{stage}, {where}, {one.engine}", found, best,
                stage=stage, engine=one.engine, batch=one.batch, mix=one.mix,
            ))  # fmt: skip
    lengths = {m.name: m for m in mixes if m.input_tokens}
    loads = {(s.mix, s.concurrency): s for s in serving if s.model == pruned.id}
    for load in (s for s in serving if s.model == base.id and s.mode == "closed"):
        other = loads.get((load.mix, load.concurrency))
        if other is None or load.mix not in lengths:
            continue
        mix = lengths[load.mix]
        best = ideal(
            *counts, stage="serving", input_tokens=mix.input_tokens,
            output_tokens=mix.output_tokens, batch=load.concurrency,
        )  # fmt: skip
        points.append(_point(
            f"serving, mix {load.mix}, {load.concurrency} at a time, vllm",
            serving_speedup(load, other), best,
            stage="serving", engine="vllm", batch=load.concurrency, mix=load.mix,
        ))  # fmt: skip
    first = next(iter(lengths.values()), None)
    given, made = (first.input_tokens, first.output_tokens) if first else (256, 256)
    base_work, work = (
        Work(each.prefill_flops_per_token(given), each.decode_bytes_per_token(given + made / 2, 1))
        for each in counts
    )
    return Ceiling(
        model=pruned.id, against=base.id, work=work, base_work=base_work, points=tuple(points)
    )
