"""Reports made up for tests: a full one, a small one, and one where nearly everything failed."""

from __future__ import annotations

import random
from dataclasses import replace

from bench.conditions import Environment, Git, Message, Mix, Settings, Slo
from bench.qualities import (
    Accuracy,
    Answer,
    Answers,
    MeanRetained,
    Perplexity,
    Question,
    Retained,
    TaskResult,
)
from bench.quantities import Estimate, Percentiles, Spread
from bench.schema import (
    Ceiling,
    CeilingPoint,
    Failure,
    Frontier,
    FrontierPoint,
    Memory,
    Model,
    Offline,
    Parts,
    Report,
    Serving,
    ServingMetrics,
    Summary,
    Work,
)
from bench.statistics import speedup, spread

DEPTH = 16
REMOVED = {"base": 0, "minus-2": 2, "minus-4": 4, "minus-6": 6}
ORDER = (12, 3, 14, 7, 10, 4)
FACTORS = (1.0412, 1.0631, 1.0298, 1.0877, 1.0523, 1.1014)
PERPLEXITY = {0: 16.378, 1: 16.902, 2: 17.618, 3: 18.744, 4: 20.937, 5: 23.1, 6: 26.664}
MIXES = (Mix("prefill-heavy", 512, 16, 32), Mix("decode-heavy", 32, 256, 32),
         Mix("balanced", 128, 128, 32))  # fmt: skip
TASKS = {"next-line": 0.71, "close-bracket": 0.64, "name": 0.58}
REPEATS = 3
PROMPTS = (
    (Message("user", "What is the capital of France?"),),
    (Message("system", "Be short."), Message("user", "Write\na list.")),
    (Message("user", "Why is the sky blue?"),),
)


def _plan(rounds: int) -> dict | None:
    if not rounds:
        return None
    rng = random.Random(5)
    left, cuts = list(range(DEPTH)), []
    for layer, factor in list(zip(ORDER, FACTORS, strict=True))[:rounds]:
        scores = {i: 17 + len(cuts) * 1.5 + 8 * rng.random() + 300 * (i == 0) for i in left}
        scores[layer] = min(scores.values()) - 0.3
        left.remove(layer)
        cuts.append({"removed": [layer], "factor": factor,
                     "scores": {str(i): s for i, s in scores.items()}})  # fmt: skip
    return {
        "schema_version": 1,
        "source": {"name": "tiny", "model_type": "llama", "num_hidden_layers": DEPTH,
                   "sha256": {}, "on_hub": False},
        "recipe": {"metric": "ppl", "strategy": "iterative", "compensation": "magnitude",
                   "fold": "downstream", "num_removed": rounds, "protect_first": 0,
                   "protect_last": 0, "dtype": "float32", "device": "cpu", "options": {}},
        "calibration": {"source": "python-stdlib", "samples": 16, "seq_len": 512, "seed": 0,
                        "sha256": "0", "options": {}},
        "rounds": cuts,
        "perplexity": {"python-stdlib held out": {"base": PERPLEXITY[0],
                                                  "pruned": PERPLEXITY[rounds]}},
        "versions": {},
    }  # fmt: skip


def _cost(removed: int) -> float:
    """Time of a decode step against the base: the head and embedding stay."""
    return (0.12 + 0.88 * (DEPTH - removed) / DEPTH) * (1 + 0.004 * removed)


class _Noise:
    """Repeats of a value, with a spread of some per cent."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def samples(self, value: float) -> list[float]:
        return [value * (1 + 0.02 * self._rng.uniform(-1, 1)) for _ in range(REPEATS)]

    def spread(self, value: float) -> Spread:
        return spread(self.samples(value))

    def percentiles(self, p50: float, p90: float, p99: float) -> Percentiles:
        found = self.spread(p50)
        return Percentiles(found.median, p90, p99, 1.1 * p50, found.low, found.high, found.samples)


def _metrics(noise: _Noise, mix: Mix, cost: float, busy: float, tokens: float) -> ServingMetrics:
    """Of a server whose queue grows as `busy` nears one."""
    wait = 1 / (1.02 - min(busy, 1.0))
    step, first = 4.1 * cost * (1 + 1.2 * busy), 0.11 * mix.input_tokens * cost
    ttft, whole = first + 3 * wait, first + 3 * wait + step * mix.output_tokens
    rate = tokens / mix.output_tokens
    return ServingMetrics(
        ttft_ms=noise.percentiles(ttft, 1.6 * ttft, 2.4 * ttft + 4 * wait),
        tpot_ms=noise.percentiles(step, 1.1 * step, 1.3 * step),
        itl_ms=noise.percentiles(0.98 * step, 1.15 * step, 1.9 * step),
        e2el_ms=noise.percentiles(whole, 1.1 * whole, 1.3 * whole),
        requests_per_s=noise.spread(rate),
        output_tokens_per_s=noise.spread(tokens),
        total_tokens_per_s=noise.spread(rate * (mix.input_tokens + mix.output_tokens)),
        goodput_requests_per_s=noise.spread(rate * (1 if busy < 0.85 else 0.7)),
    )


def _serving(settings: Settings) -> list[Serving]:
    noise, rows = _Noise(1), []
    for mix in settings.mixes:
        for model, removed in REMOVED.items():
            cost = _cost(removed)
            for c in settings.concurrency:
                busy, tokens = min(0.95, c / 18), 1000 / (4.1 * cost) * c / (1 + 0.09 * c)
                rows.append(Serving(model, mix.name, "closed", c, None, 32 * REPEATS, 0,
                                    _metrics(noise, mix, cost, busy, tokens)))  # fmt: skip
            for rate in settings.request_rates:
                busy = min(0.99, rate * cost / settings.request_rates[-1])
                rows.append(Serving(model, mix.name, "open", None, rate, 32 * REPEATS, 0,
                                    _metrics(noise, mix, cost, busy, rate * mix.output_tokens),
                                    (f"raw/serving/{model}-{rate}.json",)))  # fmt: skip
    return rows


def _offline() -> list[Offline]:
    noise, rows = _Noise(2), []
    for engine, slow in (("vllm", 1.0), ("transformers", 6.0)):
        for model, removed in REMOVED.items():
            cost = slow * _cost(removed)
            rows.append(Offline(model, engine, "throughput", "balanced", 32, 128, 128,
                                noise.spread(2.4 * cost), noise.spread(1700 / cost),
                                noise.spread(3400 / cost)))  # fmt: skip
            for batch in (1, 8):
                time = cost * (1 + 0.06 * batch)
                rows.append(Offline(model, engine, "latency", None, batch, 128, 128,
                                    noise.spread(0.55 * time), noise.spread(230 * batch / time),
                                    noise.spread(460 * batch / time),
                                    noise.spread(0.021 * time * batch),
                                    noise.spread(0.0041 * time)))  # fmt: skip
    return rows


def _ratio(rows: list[Offline], model: str, measure: str, field: str, *, rate: bool, batch: int):
    base, pruned = (
        next(getattr(r, field) for r in rows
             if (r.model, r.engine, r.measure, r.batch) == (m, "vllm", measure, batch))
        for m in ("base", model)
    )  # fmt: skip
    return speedup(base.samples, pruned.samples, rate=rate)


def _ceiling_and_summary(rows: list[Offline]) -> tuple[list[Ceiling], list[Summary]]:
    noise, ceilings, summaries = _Noise(3), [], []
    for model, removed in list(REMOVED.items())[1:]:
        best = 1 / (0.12 + 0.88 * (DEPTH - removed) / DEPTH)
        whole = (DEPTH - removed) / DEPTH
        ratios = {
            "decode": _ratio(rows, model, "latency", "decode_s_per_token", rate=False, batch=1),
            "prefill": _ratio(rows, model, "latency", "prefill_s", rate=False, batch=1),
            "throughput": _ratio(rows, model, "throughput", "output_tokens_per_s", rate=True,
                                 batch=32),
            "serving_output_tokens_per_s": speedup(
                noise.samples(900), noise.samples(900 / _cost(removed)), rate=True),
        }  # fmt: skip
        batch_8 = _ratio(rows, model, "latency", "decode_s_per_token", rate=False, batch=8)
        points = [
            CeilingPoint(what, stage, "vllm", batch, None, best, found, found.value / best)
            for what, stage, batch, found in (
                ("decode, batch 8, vllm", "decode", 8, batch_8),
                ("decode, batch 1, vllm", "decode", 1, ratios["decode"]),
                ("prefill, batch 1, vllm", "prefill", 1, ratios["prefill"]),
                ("throughput, balanced, vllm", "throughput", 32, ratios["throughput"]),
            )
        ]
        base_work, work = (
            Work(Parts(15.2e6 * k, 0, 2.1e6), Parts(30.4e6 * k, 512, 4.2e6, 2e5 * k))
            for k in (1, whole)
        )
        ceilings.append(Ceiling(model, "base", work, base_work, tuple(points)))
        kept = 1 - 0.004 * removed**2
        summaries.append(Summary(model, removed, ratios, Estimate(kept, 0.012 + 0.002 * removed),
                                 0.14 + 0.86 * whole, DEPTH / (DEPTH - removed)))  # fmt: skip
    return ceilings, summaries


def _accuracy() -> Accuracy:
    results, kept, perplexities = [], [], []
    for model, removed in REMOVED.items():
        perplexities.append(Perplexity(model, "python-stdlib held out", PERPLEXITY[removed], 16384))
        for number, (task, value) in enumerate(TASKS.items()):
            share = 1 - 0.004 * removed**2 - 0.01 * number * bool(removed)
            results.append(TaskResult(model, task, "quick", "acc", value * share, 0.031, 220, 0.25))
            if removed:
                kept.append(Retained(model, task, "quick", share, 0.02 + 0.003 * removed))
    means = [MeanRetained(m, "quick", 1 - 0.004 * k**2, 0.012 + 0.002 * k)
             for m, k in REMOVED.items() if k]  # fmt: skip
    return Accuracy("hf", 0, tuple(results), tuple(kept), tuple(means), tuple(perplexities))


def _frontier() -> Frontier:
    points = tuple(
        FrontierPoint(k, tuple(sorted(ORDER[:k])), value, value / PERPLEXITY[0],
                      Estimate(1 - 0.004 * k**2, 0.012 + 0.002 * k) if k else None)
        for k, value in PERPLEXITY.items()
    )  # fmt: skip
    return Frontier(6, points, {"max_ppl_increase": 0.2}, 3, "plan.json")


def _answers(models: tuple[str, ...] = tuple(REMOVED)) -> Answers:
    """The deeper the cut, the longer a model talks; one says nothing, one is cut off."""
    text = "Paris, | <b>the</b> city\n\n- of `love`"
    questions = tuple(
        Question(prompt, tuple(
            Answer(m, "" if (m, i) == ("base", 2) else f"{i}: {text * (1 + REMOVED[m])}",
                   10 * (1 + REMOVED[m]), m != "minus-6")
            for m in models
        ))
        for i, prompt in enumerate(PROMPTS)
    )  # fmt: skip
    return Answers(True, 64, questions)


def full() -> Report:
    """Base and three pruned models, three mixes, closed and open load, everything measured."""
    settings = Settings(
        seed=0, repeats=REPEATS, warmup=1, mixes=MIXES, concurrency=(1, 2, 4, 8, 16),
        request_rates=(1.5, 3.0, 4.5, 5.4), slo=Slo(ttft_ms=200.0, tpot_ms=10.0),
        engines=("vllm", "transformers"), engine_args=("--dtype", "float32"),
        tensor_parallel_size=1, pipeline_parallel_size=1, tasks=("quick",),
        rates_from="0.25, 0.5, 0.75 and 0.9 of the base's 6 requests/s", batches=(1, 8),
        servers_why="the models fit into memory together", kv_cache_bytes=10**9,
        answers=PROMPTS,
    )  # fmt: skip
    offline = _offline()
    ceilings, summaries = _ceiling_and_summary(offline)
    models = tuple(
        Model(model, f"runs/bench/{model}", "pruned" if k else "base", "llama", DEPTH - k, k,
              tuple(sorted(ORDER[:k])), 9_200_000 - 500_000 * k, 18_400_000 - 10**6 * k, _plan(k))
        for model, k in REMOVED.items()
    )  # fmt: skip
    return Report(
        created="2026-11-22T10:00:00Z",
        command=("cli.py", "bench", "runs/bench/base", "runs/bench/minus-4", "--output", "out dir"),
        duration_s=612.4, settings=settings,
        environment=Environment(
            "cpu", None, 0, "AMD EPYC 9R14", 2, 16 * 10**9, None, None, "3.11.7", "Linux-6.1",
            {"vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.19.0"},
            Git("8ef5461c0ffee", False), ("python -m vllm.entrypoints.openai.api_server ...",),
        ),
        models=models, serving=tuple(_serving(settings)), offline=tuple(offline),
        memory=tuple(
            Memory(m.id, "vllm", m.weights_bytes, 10**9 // (512 * m.num_hidden_layers),
                   512 * m.num_hidden_layers, 10**9, 1_900_000_000, "process RSS")
            for m in models
        ),
        ceiling=tuple(ceilings), accuracy=_accuracy(), answers=_answers(), frontier=_frontier(),
        summary=tuple(summaries),
        warnings=("only short tasks were run; long chains of reasoning suffer first",),
    )  # fmt: skip


def minimal() -> Report:
    """Base and one pruned model, closed-loop serving only, one repeat."""
    report = full()
    settings = replace(
        report.settings, mixes=MIXES[2:], concurrency=(4,), request_rates=(), repeats=1,
        skipped=("offline", "accuracy"), tasks=(), batches=(),
    )  # fmt: skip
    models = tuple(replace(m, plan=None) for m in report.models if m.id in ("base", "minus-4"))
    keep = {m.id for m in models}
    return replace(
        report, settings=settings, models=models, offline=(), memory=(), ceiling=(), warnings=(),
        accuracy=None, answers=_answers(("base", "minus-4")), frontier=None,
        serving=tuple(s for s in report.serving if s.model in keep and s.mix == "balanced"
                      and s.concurrency == 4),
        summary=tuple(
            replace(s, retained=None, kv_tokens_ratio=None, speedup={
                "serving_output_tokens_per_s": s.speedup["serving_output_tokens_per_s"]})
            for s in report.summary if s.model in keep
        ),
    )  # fmt: skip


def degenerate() -> Report:
    """A pruned model that did not run: nothing was measured of it, and little of the base."""
    report = minimal()
    failed = Failure("minus-4", "serving", "vLLM ended with code 1: ValueError: head size 24 <no>")
    return replace(
        report,
        serving=tuple(replace(s, metrics=None, completed=0, failed=32) for s in report.serving),
        summary=tuple(replace(s, speedup={}) for s in report.summary), failures=(failed,),
        accuracy=Accuracy("hf", None), answers=_answers(("base",)),
        memory=(Memory("base", "vllm", 18_400_000, note="vLLM did not say"),),
        settings=replace(report.settings, skipped=()),
    )  # fmt: skip
