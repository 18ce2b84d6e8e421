"""Budgets and batches change how much is computed, not what comes out."""

from __future__ import annotations

import pytest
import torch

from prunecomp.calibration import losses
from prunecomp.calibration.cache import ActivationCache
from prunecomp.calibration.data import CalibrationSet, TextSource
from prunecomp.calibration.runner import Runner
from prunecomp.calibration.view import PlannedModel
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.compensators import COMPENSATORS
from prunecomp.metrics import METRICS
from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
from prunecomp.selection import select
from tests.oracles import tiny_models
from tests.oracles.stream import boundaries, loss
from tests.oracles.surgery import by_hand

BOUNDARY_BYTES = tiny_models.SAMPLES * tiny_models.TOKENS * 32 * 4
ROUNDS = 2
METRIC_NAMES = ["bi", "cl", "mag", "ppl", "taylor"]


class Counting(PlannedModel):
    """Counts layer passes."""

    passes = 0

    def run_layer(self, original, hidden):
        self.passes += 1
        return super().run_layer(original, hidden)


@pytest.fixture
def choose(tiny_directory, tiny_ids, quiet):
    """``choose(name, metric, fold, **Runner arguments)``: (plan, layer passes, runner)."""

    def run(name, metric, fold="downstream", *, device="cpu", **options):
        checkpoint = Checkpoint(tiny_directory(name))
        model = Counting(checkpoint, device=torch.device(device), dtype=torch.float32)
        runner = Runner(
            model, CalibrationSet(tiny_ids, TextSource("t"), 0), progress=quiet, **options
        )
        strategy = "one-shot" if metric == "cl" else "iterative"
        plan = PrunePlan(
            SourceModel(name, checkpoint.family.model_type, checkpoint.num_hidden_layers, {}),
            Recipe(metric, strategy, "magnitude", fold, ROUNDS, 0, 0, "float32", device),
            CalibrationRecord("t", *tiny_ids.shape, 0, ""),
        )
        plan = select(plan, runner, METRICS.get(metric), COMPENSATORS.get("magnitude"))
        return plan, model.passes, runner

    return run


@pytest.mark.parametrize("fold", ["downstream", "upstream"])
@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_cache_budget_changes_no_bit(metric, fold, choose):
    plain, most, _ = choose("qwen2", metric, fold, cache_bytes=0)
    some, _, _ = choose("qwen2", metric, fold, cache_bytes=3 * BOUNDARY_BYTES)
    full, least, _ = choose("qwen2", metric, fold, cache_bytes=1 << 30)
    assert plain.rounds == some.rounds == full.rounds
    assert least <= most
    if metric in {"ppl", "taylor"}:
        assert least < most
    if fold == "downstream" and metric == "bi":
        # 8 layers once; after each cut only what lies behind it
        cuts = [8 - 1 - number - sum(x < r.removed[0] for x in _left(plain, number))
                for number, r in enumerate(plain.rounds[:-1])]  # fmt: skip
        assert least == 8 + sum(cuts)


def _left(plan, rounds: int) -> list[int]:
    gone = {layer for r in plan.rounds[:rounds] for layer in r.removed}
    return [i for i in range(plan.source.num_hidden_layers) if i not in gone]


@pytest.mark.parametrize("metric", ["bi", "cl", "ppl", "taylor"])
def test_batch_size_does_not_change_the_choice(metric, choose):
    whole, _, _ = choose("llama-bias", metric)
    for size in (1, 4) if metric == "bi" else (4,):  # 4 leaves a smaller last batch
        split, _, _ = choose("llama-bias", metric, batch_size=size)
        assert [r.removed for r in split.rounds] == [r.removed for r in whole.rounds]
        for a, b in zip(split.rounds, whole.rounds, strict=True):
            assert a.factor == pytest.approx(b.factor, rel=1e-5)
            assert a.scores == pytest.approx(b.scores, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("metric", ["ppl", "taylor"])
def test_slicing_of_logits_changes_nothing(metric, choose, monkeypatch):
    whole, _, _ = choose("llama-tied", metric)
    monkeypatch.setattr(losses, "LOGIT_ELEMENTS", {"cpu": 4 * 97 * tiny_models.SAMPLES})
    monkeypatch.setattr(losses, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(losses, "_CACHED_ELEMENTS", 3 * 97)
    sliced, _, _ = choose("llama-tied", metric)
    assert [r.removed for r in sliced.rounds] == [r.removed for r in whole.rounds]
    for a, b in zip(sliced.rounds, whole.rounds, strict=True):
        assert a.scores == pytest.approx(b.scores, rel=1e-5)


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_boundaries_and_loss_are_those_of_transformers(name, choose, tiny_model, tiny_ids, device):
    """Layer by layer, before and after cuts; windows and rotary tables come out of the model."""
    bound = {"cpu": 1e-5, "cuda": 1e-4}[device]
    plan, _, runner = choose(name, "bi", device=device)
    model = by_hand(tiny_model(name), [(r.removed, r.factor) for r in plan.rounds], "downstream")
    expected = boundaries(model, tiny_ids)
    for boundary, hidden in enumerate(expected):
        magnitude = hidden.abs().mean(dim=1)
        assert torch.allclose(runner.magnitude(boundary), magnitude, rtol=bound, atol=bound)
    assert runner.loss() == pytest.approx(loss(model, tiny_ids), rel=bound)


@pytest.mark.gpu
def test_cuda_chooses_as_the_cpu_does(choose):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for metric in METRIC_NAMES:
        on_cpu, _, _ = choose("llama-bias", metric)
        on_cuda, _, _ = choose("llama-bias", metric, device="cuda")
        assert [r.removed for r in on_cpu.rounds] == [r.removed for r in on_cuda.rounds]
        for a, b in zip(on_cpu.rounds, on_cuda.rounds, strict=True):
            assert a.factor == pytest.approx(b.factor, rel=1e-4)


@pytest.mark.parametrize("budget", [0, 1, 100, 250, 399, 400, 900, 10_000])
def test_activation_cache_keeps_to_its_budget(budget):
    """Boundary 0 is always held; the others only as far as they fit."""
    cache = ActivationCache(boundaries=9, bytes_per_boundary=100, budget=budget)
    kept = {}
    for boundary in range(9):
        kept[boundary] = [torch.tensor(boundary)]
        cache.put(boundary, kept[boundary])
    held = [b for b in range(9) if cache.nearest(b)[0] == b]
    assert held[0] == 0
    assert len(held) <= max(1, budget // 100)
    assert len(held) == 9 or budget < 900
    for boundary in range(9):
        found, batches = cache.nearest(boundary)
        assert found == max(b for b in held if b <= boundary)
        assert batches is kept[found]
    cache.truncate_after(3)
    assert cache.nearest(8)[0] == max(b for b in held if b <= 3)
    cache.truncate_after(-1)
    assert cache.nearest(8) is None
