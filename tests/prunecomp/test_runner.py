"""Budgets and batches change how much is computed, not what comes out."""

from __future__ import annotations

import tempfile
import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode

from prunecomp.calibration import losses
from prunecomp.calibration.cache import ActivationCache, CacheBudget
from prunecomp.calibration.data import CalibrationSet, TextSource
from prunecomp.calibration.detours import Detours, bytes_on_device
from prunecomp.calibration.runner import Runner
from prunecomp.calibration.view import PlannedModel
from prunecomp.calibration.weights import OUTSIDE, Weights
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

    def run(
        name, metric, fold="downstream", *, device="cpu", resident=True, directory=None,
        placement=None, **options,
    ):  # fmt: skip
        checkpoint = Checkpoint(directory or tiny_directory(name))
        model = Counting(
            checkpoint, device=torch.device(device), dtype=torch.float32, resident=resident,
            placement=placement,
        )  # fmt: skip
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
    plain, most, _ = choose("qwen2", metric, fold, cache=CacheBudget(0))
    some, _, _ = choose("qwen2", metric, fold, cache=CacheBudget(3 * BOUNDARY_BYTES))
    full, least, _ = choose("qwen2", metric, fold, cache=CacheBudget(1 << 30))
    assert plain.rounds == some.rounds == full.rounds
    assert least <= most
    if metric in {"ppl", "taylor"}:
        assert least < most
    if fold == "downstream" and metric == "bi":
        # 8 layers once; after each cut only what lies behind it
        cuts = [8 - 1 - number - sum(x < r.removed[0] for x in _left(plain, number))
                for number, r in enumerate(plain.rounds[:-1])]  # fmt: skip
        assert least == 8 + sum(cuts)


@pytest.mark.parametrize("fold", ["downstream", "upstream"])
@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_weights_read_layer_by_layer_change_no_bit(metric, fold, choose):
    """A model that is never in memory as a whole; with tied embeddings and without."""
    name = "llama-tied" if fold == "upstream" else "qwen2"
    whole, passes, _ = choose(name, metric, fold)
    streamed, as_many, runner = choose(name, metric, fold, resident=False)
    assert streamed.rounds == whole.rounds
    assert as_many == passes
    assert all(parameter.is_meta for parameter in runner.model.model.parameters())


def test_the_next_layer_is_made_while_one_runs(choose, monkeypatch):
    """By another thread, so that only a layer with which something begins is waited for."""
    make, elsewhere = Weights._make, []

    def noted(self, groups, part):
        if threading.current_thread() is not threading.main_thread():
            elsewhere.append(part)
        return make(self, groups, part)

    monkeypatch.setattr(Weights, "_make", noted)
    ahead, passes, _ = choose("qwen2", "bi", resident=False)
    layers = [part for part in elsewhere if part != OUTSIDE]
    assert passes - ROUNDS <= len(layers) <= passes
    monkeypatch.setattr(Weights, "prefetch", lambda self, part: None)
    elsewhere.clear()
    plain, _, _ = choose("qwen2", "bi", resident=False)
    assert not elsewhere
    assert plain.rounds == ahead.rounds


@pytest.mark.parametrize("metric", ["bi", "taylor"])
def test_layers_on_other_devices_change_no_bit(metric, choose):
    """Where there is one processor, ``cpu:0`` counts as another device than ``cpu``."""
    elsewhere = dict.fromkeys((1, 2, 5), torch.device("cpu", 0))
    spread, _, runner = choose("qwen2", metric, placement=elsewhere)
    assert spread.rounds == choose("qwen2", metric)[0].rounds
    assert runner.model.weights.device_of(5) == torch.device("cpu", 0)


@pytest.mark.parametrize("metric", ["bi", "ppl"])
def test_scaled_prefix_is_what_scaled_weights_give(metric, choose):
    """With several batches, less is run, and the plan is that of running all again."""
    exact, all_passes, _ = choose("qwen2", metric, "upstream", batch_size=2, exact_prefix=True)
    scaled, passes, _ = choose("qwen2", metric, "upstream", batch_size=2)
    assert [r.removed for r in scaled.rounds] == [r.removed for r in exact.rounds]
    for a, b in zip(scaled.rounds, exact.rounds, strict=True):
        assert a.factor == pytest.approx(b.factor, rel=1e-5)
        assert a.scores == pytest.approx(b.scores, rel=1e-4, abs=1e-6)
    assert passes < all_passes


def test_prefix_that_a_norm_changes_is_run_again(choose, tmp_path):
    """The stream is smaller than the root of the eps, so that a factor changes the norms."""
    model = tiny_models.build("qwen2", rms_norm_eps=1e-2, embedding_std=0.02)
    directory = tiny_models.write(model, tmp_path / "model")
    options = {"fold": "upstream", "batch_size": 2, "directory": directory}
    exact, all_passes, _ = choose("qwen2", "bi", exact_prefix=True, **options)
    found, passes, _ = choose("qwen2", "bi", **options)
    assert found.rounds == exact.rounds
    assert passes > all_passes  # by the check


def test_downstream_fold_leaves_the_prefix_as_it_is(choose):
    """Bit for bit, in what is remembered and in what is run again."""
    plan, _, runner = choose("llama-bias", "bi", "downstream")
    cut = plan.rounds[-1].removed[0] - sum(x < plan.rounds[-1].removed[0] for x in
                                           plan.rounds[0].removed)  # fmt: skip
    base = Runner(
        PlannedModel(runner.model.checkpoint, device=torch.device("cpu"), dtype=torch.float32),
        CalibrationSet(torch.cat(runner._ids), TextSource("t"), 0), progress=runner.progress,
    )  # fmt: skip
    first = min(r.removed[0] for r in plan.rounds)
    for boundary in range(min(cut, first) + 1):
        assert torch.equal(runner.magnitude(boundary), base.magnitude(boundary))
        runner.cache.truncate_after(-1)
        runner._store.states.clear()
        assert torch.equal(runner.magnitude(boundary), base.magnitude(boundary))


def test_candidates_go_only_where_they_have_not_been(choose):
    """In the second round, those in front of the first cut start at it."""
    plan, passes, _ = choose("qwen2", "ppl")
    cuts = [r.removed[0] for r in plan.rounds]
    cut, second = cuts[0], cuts[1] - (cuts[1] > cuts[0])
    stream, candidates = max(7, cut + 1), sum(7 - p for p in range(8))
    again = max(6, second + 1) - cut
    candidates_again = sum(7 - max(cut, p + 1) for p in range(7))
    assert passes == stream + candidates + again + candidates_again


@pytest.mark.parametrize("ways", [0, 2, 7, 20])
def test_candidates_that_share_a_layer_change_no_bit(ways, choose, monkeypatch):
    """From files, a layer is read once for as many as there is memory for."""
    reads = []
    take = Weights._take
    monkeypatch.setattr(Weights, "_take", lambda self, part: reads.append(part) or take(self, part))
    whole, _, _ = choose("qwen2", "ppl")
    budget = CacheBudget((9 + ways) * BOUNDARY_BYTES)
    found, _, _ = choose("qwen2", "ppl", resident=False, cache=budget)
    assert found.rounds == whole.rounds
    if ways >= 8:
        # 8 once for the stream, 7 for all candidates, and of the 7 that are left the same
        assert len([part for part in reads if part >= 0]) <= 1 + 8 + 7 + 7 + 6


@pytest.mark.parametrize("budget", [0, 300, 800, 1300, 2200, 3600, 10_000])
@pytest.mark.parametrize("width", [1, 2])
def test_detours_keep_to_their_budget(width, budget):
    """What is held is what the estimate of memory counts, and within the budget."""
    sizes = {"boundaries": 9, "bytes_per_boundary": 100}
    detours = Detours(**sizes, budget=CacheBudget(budget))
    spans = [range(p, p + width) for p in range(9 - width)]
    put = {}
    for span in spans:
        assert detours.reached(span) == span.stop
        assert detours.get(span) is None
        for boundary in range(span.stop + 1, 9):
            put[span, boundary] = [torch.tensor(float(boundary))]
            detours.put(span, boundary, put[span, boundary])
    held = sum(len(way.held) for way in detours._ways.values()) * 100
    counted = bytes_on_device(**sizes, budget=CacheBudget(budget), width=width)
    assert held == counted <= budget
    assert budget < 10_000 or held == 100 * len(put)
    detours.truncate_after(6)
    detours.scale(2.0)
    for span in spans:
        reached, found = detours.reached(span), detours.get(span)
        assert reached <= max(6, span.stop)
        if found is not None:
            assert float(found[0]) == 2.0 * reached


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
    monkeypatch.setitem(losses.WIDENED_ELEMENTS, "cpu", 3 * 97)
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


class Waits(TorchFunctionMode):
    """Counts the calls that wait for the device, whichever that is."""

    WAIT = frozenset({
        "item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__",
        "nonzero", "unique", "equal", "allclose", "is_nonzero", "masked_select",
    })  # fmt: skip
    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.WAIT or "cpu" in args[1:2]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_nobody_waits_for_the_device_per_batch(metric, budget, choose):
    counts = []
    for batch_size in (1, tiny_models.SAMPLES):
        with Waits() as waits:
            choose("llama-bias", metric, batch_size=batch_size, cache=CacheBudget(budget))
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


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
    cache = ActivationCache(boundaries=9, bytes_per_boundary=100, budget=CacheBudget(budget))
    kept = {}
    for boundary in range(9):
        kept[boundary] = [torch.tensor(float(boundary))]
        cache.put(boundary, kept[boundary])
    held = [b for b in range(9) if cache.nearest(b)[0] == b]
    assert held[0] == 0
    assert len(held) <= max(1, budget // 100)
    assert len(held) == 9 or budget < 900
    for boundary in range(9):
        found, batches = cache.nearest(boundary)
        assert found == max(b for b in held if b <= boundary)
        assert batches is kept[found]
    cache.scale(0.5)
    cache.scale(-4.0)
    assert float(cache.get(0)[0]) == 0.0
    for boundary in held:
        assert float(cache.get(boundary)[0]) == -2.0 * boundary
    cache.truncate_after(3)
    assert cache.nearest(8)[0] == max(b for b in held if b <= 3)
    cache.truncate_after(-1)
    assert cache.nearest(8) is None


def test_cache_uses_the_disk(tmp_path, monkeypatch):
    """What does not fit into memory comes back from a file bit by bit, and leaves nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    cache = ActivationCache(
        boundaries=5, bytes_per_boundary=100, budget=CacheBudget(device=200, disk=300)
    )
    kept = {
        b: [torch.randn(2, 3, 4, generator=generator).bfloat16() for _ in range(2)]
        for b in range(5)
    }
    for boundary, batches in kept.items():
        cache.put(boundary, batches)
    assert cache.get(1) is kept[1]
    for boundary, batches in kept.items():
        found = cache.get(boundary)
        assert all(torch.equal(a, b) for a, b in zip(found, batches, strict=True))
    assert list(tmp_path.iterdir()) == []

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    cache.put(4, kept[4])
    assert cache.get(4) is None
    assert cache.nearest(4)[0] == 3
