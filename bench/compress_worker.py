"""One measurement of `bench.compress_speed`, in a process of its own: prints one JSON line."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.naive import prune
from prunecomp.calibration.allocation import prepare
from prunecomp.calibration.data import CalibrationSet, TextSource, load_tokens
from prunecomp.calibration.streams import default_batch
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.compensators import COMPENSATORS
from prunecomp.device import DTYPES
from prunecomp.machine import open_model
from prunecomp.metrics import METRICS
from prunecomp.pipeline import PlanRequest, empty_plan, resolve_recipe
from prunecomp.progress import Progress
from prunecomp.selection import select

#: Seconds: a naive run or one of ours that takes less is repeated.
SHORT_S = 15.0


def strength(layer: int, depth: int) -> float:
    """How much a layer of the made model writes.

    Least at 72 % of the depth, so that layers go in about the order published for Llama-3-8B.
    """
    return 0.25 + 6.0 * (layer / depth - 0.72) ** 2


def make_model(case: dict[str, Any], directory: Path) -> None:
    """Writes a random Llama of the case's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    d, depth = case["hidden_size"], case["layers"]
    config = LlamaConfig(
        hidden_size=d, intermediate_size=d * 7 // 2 // 64 * 64, num_hidden_layers=depth,
        num_attention_heads=d // 64, num_key_value_heads=max(1, d // 256),
        vocab_size=case["vocab_size"], max_position_embeddings=max(2048, case["seq_len"]),
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 1.0)
        for number, layer in enumerate(model.model.layers):
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.mul_(strength(number, depth) * 4)
    model.to(torch.bfloat16).save_pretrained(directory)


def _tokens(case: dict[str, Any], checkpoint: Checkpoint) -> torch.Tensor:
    """[samples, tokens] of the calibration named, or random ones; as published, without a BOS."""
    if case["calibration"]:
        return load_tokens(
            TextSource(case["calibration"]), tokenizer_dir=checkpoint.path,
            vocab_size=checkpoint.config["vocab_size"],
            samples=case["samples"], seq_len=case["seq_len"], bos="none",
        ).input_ids  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    shape = case["samples"], case["seq_len"]
    return torch.randint(checkpoint.config["vocab_size"], shape, generator=generator)


def _clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def plain(model, ids: torch.Tensor, case: dict[str, Any]) -> dict[str, Any]:
    """One forward with logits over all samples, alone and in batches; the fastest of these."""
    model(input_ids=ids[:1], use_cache=False)
    ours = default_batch(torch.device(case["device"]).type, ids.shape[1])
    sizes = {1, min(len(ids), ours), min(len(ids), 8)}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(3):
        for size, each in times.items():
            start = _clock(case["device"])
            for batch in ids.split(size):
                model(input_ids=batch, use_cache=False)
            each.append(_clock(case["device"]) - start)
    fastest = min(statistics.median(each) for each in times.values())
    return {"time_s": fastest, "by_batch_size_s": times}


def ours(checkpoint: Checkpoint, ids: torch.Tensor, case: dict[str, Any]) -> dict[str, Any]:
    """Runner and selection, as `make_plan` runs them, without loading and perplexities."""
    prepare()
    quiet = Progress(quiet=True)
    request = PlanRequest(
        layers=case["remove"], metric=case["metric"], dtype=case["dtype"], device=case["device"]
    )
    recipe = resolve_recipe(checkpoint, request, quiet)
    tokens = CalibrationSet(ids, TextSource("made"), 0)
    plan = empty_plan(checkpoint, recipe, request, tokens, name="made")
    opened = open_model(checkpoint, request, recipe, (tokens, None), quiet)
    start = _clock(case["device"])
    runner = opened.runner(tokens)
    plan = select(plan, runner, METRICS.get(case["metric"]), COMPENSATORS.get(recipe.compensation))
    found = {"time_s": _clock(case["device"]) - start}
    cuts = [{"removed": list(r.removed), "factor": r.factor} for r in plan.rounds]
    return {**found, "cuts": cuts}


def stock(case: dict[str, Any], dtype: str):
    """The model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=DTYPES[dtype])
    return model.eval().requires_grad_(False).to(case["device"])


def naive(ids: torch.Tensor, case: dict[str, Any]) -> dict[str, Any]:
    """The published procedure, on a model of its own, for it is pruned in place."""
    if case["metric"] == "taylor":
        case = {**case, "device": "cpu", "dtype": "float32"}
    model, ids = stock(case, case["dtype"]), ids.to(case["device"])
    start = _clock(case["device"])
    cuts = prune(model, ids, case["metric"], case["remove"])
    found = {"time_s": _clock(case["device"]) - start}
    return {**found, "cuts": [{"removed": list(c.removed), "factor": c.factor} for c in cuts]}


def repeated(once: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is short is done up to three times, as `plain` is, and the median told."""
    found = once()
    times = [found["time_s"]]
    while len(times) < 3 and sum(times) < SHORT_S:
        times.append(once()["time_s"])
    return {**found, "time_s": statistics.median(times), "times_s": times}


def run(kind: str, case: dict[str, Any]) -> dict[str, Any]:
    """One measurement."""
    torch.set_num_threads(case["threads"])
    checkpoint = Checkpoint(Path(case["model"]))
    case["remove"] = case["remove"] or checkpoint.num_hidden_layers // 4
    ids = _tokens(case, checkpoint)
    if kind == "plain":
        return plain(stock(case, case["dtype"]), ids.to(case["device"]), case)
    return repeated(lambda: ours(checkpoint, ids, case) if kind == "ours" else naive(ids, case))


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    if sys.argv[1] == "make":
        make_model(settings, Path(settings["model"]))
    else:
        print(json.dumps(run(sys.argv[1], settings)))
