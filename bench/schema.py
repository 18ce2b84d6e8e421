"""What a benchmark report says: the dataclasses of ``report.json``.

Plain data and the standard library. All names carry their unit; null means not measured, and
there is never a NaN. A reader that meets another version, a missing or an unknown key says so.
The parts live in `bench.conditions`, `bench.qualities` and `bench.quantities`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.conditions import Environment, Settings
from bench.qualities import Accuracy, Answers
from bench.quantities import Estimate, Percentiles, Ratio, Spread
from bench.records import parse, plain, read_document
from prunecomp.errors import UsageError, brief

SCHEMA_VERSION = 1
KIND = "prunecomp-bench"
_HINT = "give the report.json that `bench` wrote"


@dataclass(frozen=True)
class Model:
    """One directory.

    Attributes:
        id: short name, unique in the report; ``base`` for the base.
        role: ``base`` or ``pruned``.
        layers_removed: against the base.
        removed: original indices; empty where the directory has no ``prunecomp.json``.
        weights_bytes: of the files.
        plan: the plan in ``prunecomp.json`` (see `prunecomp.plan`), or null.
    """

    id: str
    path: str
    role: str
    model_type: str
    num_hidden_layers: int
    layers_removed: int
    removed: tuple[int, ...]
    parameters: int
    weights_bytes: int
    plan: dict[str, Any] | None = None


@dataclass(frozen=True)
class ServingMetrics:
    """Of one load point; see docs/bench.md for the definitions.

    Outputs of one token have neither `tpot_ms` nor `itl_ms`.
    """

    ttft_ms: Percentiles
    tpot_ms: Percentiles | None
    itl_ms: Percentiles | None
    e2el_ms: Percentiles
    requests_per_s: Spread
    output_tokens_per_s: Spread
    total_tokens_per_s: Spread
    goodput_requests_per_s: Spread | None = None


@dataclass(frozen=True)
class Serving:
    """One load point of one model.

    Attributes:
        mode: ``closed`` (a fixed number of requests in flight) or ``open`` (Poisson arrivals).
        completed: requests, over all repeats.
        failed: requests, over all repeats.
        metrics: null where no repeat succeeded.
        raw: the load generator's own files, relative to the report.
    """

    model: str
    mix: str
    mode: str
    concurrency: int | None
    request_rate: float | None
    completed: int
    failed: int
    metrics: ServingMetrics | None
    raw: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offline:
    """Generation without a server.

    Attributes:
        measure: ``throughput`` (all prompts of a mix at once) or ``latency`` (one batch).
        mix: null for latency.
        batch: prompts that are given at once.
        seconds: wall time of one generation.
        prefill_s: time to generate one token; latency only.
        decode_s_per_token: ``(seconds - prefill_s) / (output_tokens - 1)``; latency only.
    """

    model: str
    engine: str
    measure: str
    mix: str | None
    batch: int
    input_tokens: int
    output_tokens: int
    seconds: Spread
    output_tokens_per_s: Spread
    total_tokens_per_s: Spread
    prefill_s: Spread | None = None
    decode_s_per_token: Spread | None = None
    raw: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """What a model takes under one engine.

    Attributes:
        weights_bytes: as stored.
        kv_cache_tokens: that fit into `kv_budget_bytes`, as the engine says; null if it does not.
        kv_bytes_per_token: counted from the config; null where it is not known (see `note`).
        peak_bytes: highest seen, of `peak_of`: ``process RSS`` or ``GPU``.
    """

    model: str
    engine: str
    weights_bytes: int
    kv_cache_tokens: int | None = None
    kv_bytes_per_token: int | None = None
    kv_budget_bytes: int | None = None
    peak_bytes: int | None = None
    peak_of: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Parts:
    """Counted work by part of the model; `kv_cache` is zero where it plays no part."""

    layers: float
    embedding: float
    head: float
    kv_cache: float = 0.0


@dataclass(frozen=True)
class Work:
    """Counted work at the lengths of the report's first mix, decode at batch 1."""

    prefill_flops_per_token: Parts
    decode_bytes_per_token: Parts


@dataclass(frozen=True)
class CeilingPoint:
    """One speedup against the ideal one.

    Attributes:
        what: for people: ``decode, batch 1, vllm``.
        stage: ``prefill``, ``decode``, ``throughput`` or ``serving``.
        ideal: ratio of the counted work of base and pruned.
        share_of_ideal: ``measured.value / ideal``.
    """

    what: str
    stage: str
    engine: str
    batch: int | None
    mix: str | None
    ideal: float
    measured: Ratio | None
    share_of_ideal: float | None


@dataclass(frozen=True)
class Ceiling:
    """How much of what the counted work allows was reached."""

    model: str
    against: str
    work: Work
    base_work: Work
    points: tuple[CeilingPoint, ...] = ()


@dataclass(frozen=True)
class FrontierPoint:
    """One depth; `ratio` is its perplexity over that of the base."""

    layers_removed: int
    removed: tuple[int, ...]
    perplexity: float
    ratio: float
    retained: Estimate | None = None


@dataclass(frozen=True)
class Frontier:
    """Every depth of one nested plan; `recommended` is null where no depth keeps the criterion."""

    max_layers: int
    points: tuple[FrontierPoint, ...]
    criterion: dict[str, Any]
    recommended: int | None
    plan: str


@dataclass(frozen=True)
class Summary:
    """One row per pruned model.

    Attributes:
        speedup: of ``decode``, ``prefill``, ``throughput`` (offline, first engine) and
            ``serving_output_tokens_per_s``; what was not measured is missing.
        retained: mean over the tasks of the first group.
    """

    model: str
    layers_removed: int
    speedup: dict[str, Ratio]
    retained: Estimate | None
    weights_ratio: float
    kv_tokens_ratio: float | None


@dataclass(frozen=True)
class Failure:
    """What did not work, in one line with the end of the log."""

    model: str
    stage: str
    message: str


@dataclass(frozen=True)
class Report:
    """The whole of ``report.json``; ``schema_version`` and ``kind`` are added when written."""

    created: str
    command: tuple[str, ...]
    duration_s: float
    settings: Settings
    environment: Environment
    models: tuple[Model, ...]
    serving: tuple[Serving, ...] = ()
    offline: tuple[Offline, ...] = ()
    memory: tuple[Memory, ...] = ()
    ceiling: tuple[Ceiling, ...] = ()
    accuracy: Accuracy | None = None
    answers: Answers | None = None
    frontier: Frontier | None = None
    summary: tuple[Summary, ...] = ()
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data: dictionaries, lists, numbers, strings."""
        return {"schema_version": SCHEMA_VERSION, "kind": KIND, **plain(self)}


def from_json(document: Mapping[str, Any], *, name: str = "report") -> Report:
    """The report in `document`.

    Args:
        name: how to call it in an error: its file.

    Raises:
        UsageError: it is no report of this version.
    """
    if not isinstance(document, Mapping) or document.get("kind") != KIND:
        raise UsageError(f"{name}: is not a report of `bench`; give its report.json")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{name}: has schema version {brief(version)}, this program reads {SCHEMA_VERSION}; "
            "use the version of prunecomp that wrote it"
        )
    rest = {k: v for k, v in document.items() if k not in {"kind", "schema_version"}}
    report = parse(Report, rest, name, hint=_HINT)
    _check_names(report, name)
    return report


def _check_names(report: Report, name: str) -> None:
    """Refuses rows that speak of a model or a mix that the report does not describe."""
    known = {model.id for model in report.models}
    for what in ("serving", "offline", "memory", "ceiling", "summary"):
        for row in getattr(report, what):
            if row.model not in known:
                raise UsageError(
                    f"{name}: {what} tells of {brief(row.model)}, which is no model of it; {_HINT}"
                )
    mixes = {mix.name for mix in report.settings.mixes}
    for row in report.serving:
        load = {"closed": row.concurrency, "open": row.request_rate}.get(row.mode)
        if row.mix not in mixes:
            raise UsageError(
                f"{name}: serving tells of the mix {brief(row.mix)}, which is not in its settings; "
                f"{_HINT}"
            )
        if load is None:
            raise UsageError(
                f"{name}: serving of the mode {brief(row.mode)} says nothing of its load; {_HINT}"
            )


def read_report(path: Path) -> Report:
    """The report in a file, or in the ``report.json`` of a directory.

    Raises:
        UsageError: there is none that can be read.
    """
    file, document = read_document(path, "report.json", hint=_HINT)
    return from_json(document, name=str(file))
