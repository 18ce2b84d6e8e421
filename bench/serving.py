"""One load point: what vLLM's load generator is asked, and what its measurements come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.conditions import Slo
from bench.quantities import Percentiles, Spread
from bench.schema import Serving, ServingMetrics
from bench.server import Server
from bench.statistics import percentiles, spread
from bench.workload import Point

#: What is kept of the load generator's file; the texts that were generated are not.
_DROPPED = ("generated_texts",)


def load_arguments(
    point: Point,
    server: Server,
    *,
    tokenizer: Path,
    prompts: int,
    seed: int,
    slo: Slo,
    result: Path,
) -> list[str]:
    """The arguments of ``vllm bench serve`` for one repeat of a load point.

    Args:
        prompts: how many requests.
        seed: of prompts and arrival times; the same for all models.
        result: the file that it writes.
    """
    mix = point.mix
    lengths = (
        ["--dataset-name", "random", "--random-input-len", str(mix.input_tokens),
         "--random-output-len", str(mix.output_tokens)]
        if mix.prompt_file is None else
        ["--dataset-name", "custom", "--dataset-path", mix.prompt_file, "--custom-output-len",
         str(mix.output_tokens), "--skip-chat-template", "--disable-shuffle"]
    )  # fmt: skip
    load = (
        ["--request-rate", "inf", "--max-concurrency", str(point.concurrency)]
        if point.mode == "closed" else
        ["--request-rate", f"{point.request_rate:.6g}", "--burstiness", "1.0"]
    )  # fmt: skip
    goals = {"ttft": slo.ttft_ms, "tpot": slo.tpot_ms, "e2el": slo.e2el_ms}
    goodput = [f"{name}:{value:g}" for name, value in goals.items() if value is not None]
    return [
        "--backend", "vllm", "--base-url", server.url, "--endpoint", "/v1/completions",
        "--model", server.model, "--tokenizer", str(tokenizer), *lengths,
        "--num-prompts", str(prompts), "--seed", str(seed), *load, "--ignore-eos",
        "--temperature", "0", "--percentile-metrics", "ttft,tpot,itl,e2el",
        "--metric-percentiles", "50,90,99", *(["--goodput", *goodput] if goodput else []),
        "--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-result", "--save-detailed",
        "--result-dir", str(result.parent), "--result-filename", result.name,
    ]  # fmt: skip


def kept(document: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the load generator's file."""
    return {key: value for key, value in document.items() if key not in _DROPPED}


@dataclass(frozen=True)
class Requests:
    """The requests of one repeat that were answered.

    With t0 when a request is sent, t1 ... tn when its n tokens arrive: TTFT is t1 - t0, ITL the
    single t(i+1) - t(i), TPOT (tn - t1) / (n - 1), E2EL tn - t0.
    """

    ttft_ms: list[float]
    tpot_ms: list[float]
    itl_ms: list[float]
    e2el_ms: list[float]
    input_tokens: int
    output_tokens: int
    good: int
    failed: int
    duration_s: float

    @property
    def completed(self) -> int:
        return len(self.ttft_ms)


def requests_of(document: Mapping[str, Any], slo: Slo) -> Requests:
    """The load generator's file, from its samples rather than its summary."""
    ttft, tpot, itl, e2el, good, tokens = [], [], [], [], 0, [0, 0]
    columns = ("ttfts", "itls", "input_lens", "output_lens", "errors")
    for first, gaps, given, made, error in zip(*(document[c] for c in columns), strict=True):
        if error or not made:
            continue
        rest = sum(gaps)
        per_token = rest / (made - 1) if made > 1 else 0.0
        ttft.append(1000 * first)
        itl += [1000 * gap for gap in gaps]
        e2el.append(1000 * (first + rest))
        if made > 1:
            tpot.append(1000 * per_token)
        goals = ((slo.ttft_ms, first), (slo.tpot_ms, per_token), (slo.e2el_ms, first + rest))
        good += all(goal is None or 1000 * value <= goal for goal, value in goals)
        tokens = [tokens[0] + given, tokens[1] + made]
    return Requests(
        ttft, tpot, itl, e2el, *tokens, good=good, failed=len(document["errors"]) - len(ttft),
        duration_s=document["duration"],
    )  # fmt: skip


def _rates(runs: Sequence[Requests | None], counted: str) -> Spread:
    found = spread([
        (sum(getattr(r, name) for name in counted.split("+")) / r.duration_s)
        if r is not None and r.completed else None
        for r in runs
    ])  # fmt: skip
    assert found is not None
    return found


def _percentiles(runs: Sequence[Requests | None], name: str) -> Percentiles | None:
    return percentiles([getattr(r, name) if r is not None else [] for r in runs])


def serving_of(
    model: str, point: Point, documents: Sequence[Mapping[str, Any] | None], slo: Slo,
    raw: Sequence[str],
) -> Serving:  # fmt: skip
    """All repeats of one load point of one model.

    Args:
        documents: by repeat; None where it failed.
    """
    runs = [requests_of(d, slo) if d is not None else None for d in documents]
    done = [r for r in runs if r is not None]
    metrics = None
    if any(r.completed for r in done):
        limits = (slo.ttft_ms, slo.tpot_ms, slo.e2el_ms)
        metrics = ServingMetrics(
            *(_percentiles(runs, f"{name}_ms") for name in ("ttft", "tpot", "itl", "e2el")),
            requests_per_s=_rates(runs, "completed"),
            output_tokens_per_s=_rates(runs, "output_tokens"),
            total_tokens_per_s=_rates(runs, "input_tokens+output_tokens"),
            goodput_requests_per_s=None if limits == (None,) * 3 else _rates(runs, "good"),
        )
    return Serving(
        model=model, mix=point.mix.name, mode=point.mode, concurrency=point.concurrency,
        request_rate=point.request_rate, completed=sum(r.completed for r in done),
        failed=sum(r.failed for r in done), metrics=metrics, raw=tuple(raw),
    )  # fmt: skip
