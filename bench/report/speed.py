"""Sections on speed: summary, serving, offline, memory and ceiling."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report.content import Part, Section, Table, missing
from bench.report.format import (
    NOT_MEASURED,
    SPEEDUPS,
    count,
    number,
    percent,
    percentiles,
    ratio,
    retained,
    size,
    spread,
)
from bench.report.plots.overview import ideal
from bench.schema import Memory, Model, Offline, Parts, Report, Serving, Summary


def _why(report: Report, stage: str) -> str:
    """Why a stage is missing, where that is known."""
    if stage in report.settings.skipped:
        return "not asked for"
    return "it failed, see above" if any(f.stage == stage for f in report.failures) else ""


def summary(report: Report) -> Section:
    """One sentence and one row a model."""
    rows = {row.model: row for row in report.summary}
    table = Table(
        ("model", "layers", "parameters", *(f"{words} speedup" for _, words in SPEEDUPS.values()),
         "share of ideal", "accuracy retained", "KV tokens"),
        [_summary_row(report, model, rows.get(model.id)) for model in report.models],
    )  # fmt: skip
    note = (
        "Speedups are over the base, above 1 is faster: the median of the ratios within each "
        "repeat, and in brackets the smallest and the largest. The share of ideal is that of the "
        "first speedup measured. Accuracy is the mean over the first group of tasks, ± one "
        "standard error. KV tokens fit into the same memory for every model."
    )
    sentences = [_sentence(report, row) for row in report.summary]
    return Section(
        "summary", "Summary",
        [Part(text=sentences), Part(table=table), Part(plots="overview"),
         Part("How to read this", text=(note,), folded=True)],
        folded=False,
    )  # fmt: skip


def _first(row: Summary) -> str | None:
    return next((measure for measure in SPEEDUPS if measure in row.speedup), None)


def _sentence(report: Report, row: Summary) -> str:
    depth = next((m.num_hidden_layers for m in report.models if m.role == "base"), None)
    gained = f"speed {NOT_MEASURED}"
    if (measure := _first(row)) is not None:
        gained = f"{SPEEDUPS[measure][1]} speedup {ratio(row.speedup[measure])}"
        if (point := ideal(report, row.model, measure)) and point.share_of_ideal is not None:
            gained += f", {percent(point.share_of_ideal)} of the ideal {number(point.ideal)}"
    kept = f"accuracy {NOT_MEASURED}"
    if row.retained is not None:
        kept = f"it keeps {retained(row.retained)} of the base's accuracy"
    of = f" of {depth}" if depth else ""
    return f"{row.model} ({row.layers_removed}{of} layers removed): {gained}; {kept}."


def _summary_row(report: Report, model: Model, row: Summary | None) -> list[str]:
    start = [model.id, str(model.num_hidden_layers), f"{model.parameters:,}"]
    tokens = next(
        (m.kv_cache_tokens for m in report.memory if m.model == model.id and m.kv_cache_tokens),
        None,
    )
    if model.role == "base":
        return [*start, *["1"] * len(SPEEDUPS), "", "100 %", count(tokens)]
    if row is None:
        return [*start, *[NOT_MEASURED] * (len(SPEEDUPS) + 2), count(tokens)]
    measure = _first(row)
    point = ideal(report, model.id, measure) if measure else None
    return [
        *start,
        *(ratio(row.speedup.get(m)) for m in SPEEDUPS),
        percent(point.share_of_ideal if point else None),
        retained(row.retained),
        count(tokens),
    ]


def serving(report: Report) -> Section:
    """One piece for every mix."""
    parts = [part for mix in report.settings.mixes for part in _mix(report, mix.name)]
    note = (
        "Latencies are p50 / p90 / p99 over the requests of a repeat, then the median over the "
        "repeats; rates are medians with the smallest and the largest repeat in brackets. TTFT is "
        "the time to first token, TPOT the mean time per output token after the first, ITL the "
        "time between two tokens, E2EL the whole request. Goodput counts the requests that kept "
        f"the SLO ({_slo(report)})."
    )
    return Section(
        "serving", "Serving with vLLM",
        [Part(text=(note,)), *parts] if parts else [missing("Serving", _why(report, "serving"))],
    )  # fmt: skip


def _slo(report: Report) -> str:
    slo = report.settings.slo
    limits = (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms), ("E2EL", slo.e2el_ms))
    said = [f"{name} at most {number(v)} ms" for name, v in limits if v is not None]
    return ", ".join(said) or "none stated"


def _mix(report: Report, name: str) -> Iterator[Part]:
    rows = [row for row in report.serving if row.mix == name]
    if not rows:
        return
    mix = next(m for m in report.settings.mixes if m.name == name)
    of = mix.prompt_file or f"{mix.input_tokens} random tokens"
    yield Part(
        f"{name}: {of} in, {mix.output_tokens} tokens out",
        plots=f"serving {name}",
        table=Table(
            ("load", "model", "TTFT, ms", "TPOT, ms", "ITL, ms", "E2EL, ms", "requests/s",
             "output tokens/s", "goodput, requests/s", "failed"),
            [_serving_row(row) for row in sorted(rows, key=_load)], text_columns=2,
        ),
        folded=True,
    )  # fmt: skip


def _load(row: Serving) -> tuple[str, float]:
    return row.mode, (row.concurrency if row.mode == "closed" else row.request_rate) or 0


def _serving_row(row: Serving) -> list[str]:
    closed = row.mode == "closed"
    load = f"{row.concurrency} in flight" if closed else f"{number(row.request_rate)} requests/s"
    start = [load, row.model]
    end = [f"{count(row.failed)} of {count(row.completed + row.failed)}"]
    if row.metrics is None:
        return [*start, *[NOT_MEASURED] * 7, *end]
    m = row.metrics
    return [
        *start,
        *(percentiles(v) for v in (m.ttft_ms, m.tpot_ms, m.itl_ms, m.e2el_ms)),
        spread(m.requests_per_s), spread(m.output_tokens_per_s), spread(m.goodput_requests_per_s),
        *end,
    ]  # fmt: skip


def offline(report: Report) -> Section:
    """Throughput and latency without a server."""
    if not report.offline:
        return Section("offline", "Offline", [missing("Offline", _why(report, "offline"))])
    engines = [*report.settings.engines, *(row.engine for row in report.offline)]
    rows = sorted(
        report.offline, key=lambda r: (engines.index(r.engine), r.measure, r.mix or "", r.batch)
    )
    columns = (
        "engine", "measure", "model", "batch", "tokens in + out", "seconds", "output tokens/s",
        "total tokens/s", "prefill, ms", "decode, ms per token",
    )  # fmt: skip
    table = Table(columns, [_offline_row(row) for row in rows], text_columns=3)
    note = (
        "No server, prefix caching off. Medians over the repeats, in brackets the smallest and the "
        "largest. Decode is the time of a generation less that of its first token, by token."
    )
    return Section("offline", "Offline", [Part(text=(note,)), Part(table=table)])


def _offline_row(row: Offline) -> list[str]:
    return [
        row.engine,
        row.measure + (f", {row.mix}" if row.mix else ""),
        row.model,
        count(row.batch),
        f"{count(row.input_tokens)} + {count(row.output_tokens)}",
        *(spread(s) for s in (row.seconds, row.output_tokens_per_s, row.total_tokens_per_s)),
        *(spread(s, scale=1e3) if s else "" for s in (row.prefill_s, row.decode_s_per_token)),
    ]


def memory(report: Report) -> Section:
    """Weights, room in the KV cache, and the peak."""
    if not report.memory:
        return Section("memory", "Memory", [missing("Memory", _why(report, "memory"))])
    table = Table(
        ("model", "engine", "weights", "KV bytes per token", "KV budget", "KV tokens", "peak"),
        [
            [m.model, m.engine, size(m.weights_bytes), count(m.kv_bytes_per_token),
             size(m.kv_budget_bytes), count(m.kv_cache_tokens), _peak(m)]
            for m in report.memory
        ],
        text_columns=2,
    )  # fmt: skip
    notes = [f"{m.model}, {m.engine}: {m.note}." for m in report.memory if m.note]
    return Section("memory", "Memory", [Part(table=table), *([Part(text=notes)] if notes else [])])


def _peak(row: Memory) -> str:
    return size(row.peak_bytes) + (f" ({row.peak_of})" if row.peak_bytes and row.peak_of else "")


def ceiling(report: Report) -> Section:
    """Ideal speedups from the counted work, and the share that was reached."""
    if not report.ceiling:
        return Section("ceiling", "Ceiling", [missing("Ceiling", _why(report, "ceiling"))])
    points = Table(
        ("model", "what", "ideal speedup", "measured speedup", "share of ideal"),
        [
            [c.model, p.what, number(p.ideal, 4), ratio(p.measured), percent(p.share_of_ideal)]
            for c in report.ceiling for p in c.points
        ],
        text_columns=2,
    )  # fmt: skip
    work = Table(
        ("model", "work", "layers", "embedding", "head", "KV cache"),
        [
            [model, what, *(number(v, 4) for v in _parts(parts))]
            for model, work in [
                (report.ceiling[0].against, report.ceiling[0].base_work),
                *((c.model, c.work) for c in report.ceiling),
            ]
            for what, parts in (("prefill, MFLOP per token", work.prefill_flops_per_token),
                                ("decode, MB per token", work.decode_bytes_per_token))
        ],
        text_columns=2,
    )  # fmt: skip
    note = (
        "The ideal is the ratio of the work that the base and the pruned model need by count, as "
        "if nothing else took time. Embedding and head stay whatever is removed, so it is below "
        "the ratio of the layers."
    )
    return Section(
        "ceiling", "Ceiling",
        [Part(text=(note,), table=points),
         Part("Counted work, at the lengths of the first mix and batch 1", table=work)],
    )  # fmt: skip


def _parts(parts: Parts) -> list[float]:
    return [v / 1e6 for v in (parts.layers, parts.embedding, parts.head, parts.kv_cache)]
