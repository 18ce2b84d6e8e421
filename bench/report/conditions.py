"""Sections on the conditions: settings, environment and exact commands."""

from __future__ import annotations

import shlex

from bench.report.content import Part, Section, Table
from bench.report.format import NOT_MEASURED, listed, number, size
from bench.schema import Report

SWEEP = "doubled until that added less than 10 % to the base's requests/s"


def settings(report: Report) -> Section:
    """What was asked for."""
    s = report.settings
    cache = "vLLM's own choice" if s.kv_cache_bytes is None else size(s.kv_cache_bytes)
    mixes = (
        f"{m.name} ({m.prompt_file or f'{m.input_tokens} tokens'} in, {m.output_tokens} out, "
        f"{m.prompts} prompts)"
        for m in s.mixes
    )
    rows = [
        ("request mixes", listed(mixes)),
        ("concurrency, closed loop", listed(s.concurrency) if s.concurrency else SWEEP),
        ("request rates, open loop", f"{listed(map(number, s.request_rates))} ({s.rates_from})"),
        ("offline batches", listed(s.batches)),
        ("repeats, after warm-up runs", f"{s.repeats}, after {s.warmup}"),
        ("servers", s.servers + (f" ({s.servers_why})" if s.servers_why else "")),
        ("KV cache", cache),
        ("prefix caching", "on" if s.prefix_caching else "off"),
        ("offline engines", listed(s.engines)),
        ("engine arguments", shlex.join(s.engine_args) or "none"),
        ("tensor, pipeline parallel", f"{s.tensor_parallel_size}, {s.pipeline_parallel_size}"),
        ("tasks", listed(s.tasks)),
        ("samples per task", "all" if s.limit is None else number(s.limit)),
        ("seed", str(s.seed)),
        ("stages left out", listed(s.skipped)),
    ]
    return Section("settings", "Settings", [Part(table=Table(("setting", "value"), rows, 2))])


def environment(report: Report) -> Section:
    """Where it ran, and how to run it again."""
    e = report.environment
    gpu = "none" if e.gpu is None else f"{e.gpu_count} x {e.gpu}"
    commit = e.git.commit or "not known"
    rows = [
        ("device", e.device),
        ("GPU", gpu),
        ("driver, CUDA", f"{e.driver or 'none'}, {e.cuda or 'none'}"),
        ("CPU", f"{e.cpu}, {e.cores} cores"),
        ("memory", size(e.memory_bytes)),
        ("Python", e.python),
        ("platform", e.platform),
        ("commit", commit + (" with changes" if e.git.dirty else "")),
        *((name, version) for name, version in sorted(e.versions.items())),
    ]
    models = [(m.id, m.path, m.model_type, size(m.weights_bytes)) for m in report.models]
    return Section(
        "environment", "Environment and commands",
        [
            Part(table=Table(("what", "value"), rows, 2)),
            Part("Models", table=Table(("model", "path", "type", "weights"), models, 3)),
            Part("Command of this report", code=[shlex.join(report.command) or NOT_MEASURED]),
            Part("Commands that it ran", code=list(e.commands) or ["none"]),
        ],
    )  # fmt: skip
