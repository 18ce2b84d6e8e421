"""Statistics at boundaries and inside layers, against full matrices of transformers' own passes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunecomp.calibration.counted import Counted
from prunecomp.calibration.data import CalibrationSet, TextSource
from prunecomp.calibration.runner import Runner
from prunecomp.calibration.sites import Between, Boundary, Original, WriterInput
from prunecomp.calibration.statistics import Cosines, Gram, Magnitudes, PairwiseSum
from prunecomp.calibration.view import PlannedModel
from prunecomp.checkpoint.reader import Checkpoint, TensorFiles
from prunecomp.errors import UnsupportedModelError
from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
from prunecomp.progress import Progress
from prunecomp.rounds import PruneRound, RemoveSpan, Scale
from tests.families import tiny

#: Family and variant; the module that an ordinary writer input is read by in transformers.
FAMILIES = {
    "llama": (0, ("self_attn.o_proj", "mlp.down_proj")),
    "gemma3_text": (0, ("post_attention_layernorm", "post_feedforward_layernorm")),
    "gpt2": (0, ("attn.c_proj", "mlp.c_proj")),
    "mixtral": (0, ("self_attn.o_proj",)),
    "falcon": (0, ("self_attention.dense", "mlp.dense_4h_to_h")),
}
SAMPLES, LAYER = 5, 3


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, stock model, its directory, tokens)."""
    directory = tmp_path_factory.mktemp(request.param) / "model"
    model = made(request.param, FAMILIES[request.param][0], directory)
    return request.param, model, directory, tiny.tokens(SAMPLES)


def made(name: str, variant: int, directory: Path):
    """The stock model as it is loaded from `directory`, with the eps of its config."""
    tiny.build(name, variant).save_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def runner_of(directory, ids, *, resident=True, batch_size=2, dtype=torch.float32, **options):
    model = PlannedModel(
        Checkpoint(Path(directory)), device=torch.device("cpu"), dtype=dtype, resident=resident
    )
    tokens = CalibrationSet(ids, TextSource("t"), 0)
    return Runner(model, tokens, progress=Progress(quiet=True), batch_size=batch_size, **options)


@torch.no_grad()
def caught(model, ids, path: str, *, output: bool = False) -> torch.Tensor:
    """What the module at `path` reads (or writes) in a pass of the whole model: [all tokens, d]."""
    found = []
    module = model.get_submodule(path)
    if output:
        handle = module.register_forward_hook(
            lambda _, args, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
    else:
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: found.append((*args, *kwargs.values())[0]), with_kwargs=True
        )
    with handle:
        model(input_ids=ids, use_cache=False)
    return found[0].reshape(ids.numel(), -1).double()


def layers_path(name: str) -> str:
    return "transformer.h" if name in {"gpt2", "falcon"} else "model.layers"


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_gram_matrices(family, resident):
    """Of a boundary, of what each writer reads, and of both together."""
    name, model, directory, ids = family
    runner = runner_of(directory, ids, resident=resident)
    path, (_, modules) = f"{layers_path(name)}.{LAYER}", FAMILIES[name]
    stream = caught(model, ids, path)
    behind = caught(model, ids, path, output=True)
    (found,) = runner.measure([Gram(Boundary(LAYER))])
    assert found.dtype == torch.float64
    assert torch.allclose(found, stream.T @ stream, rtol=1e-5, atol=1e-4)
    for module in modules:
        site = WriterInput(LAYER, f"{module}.weight")
        assert site.writer in runner.model.writers(LAYER)
        read = caught(model, ids, f"{path}.{module}")
        gram, cross, later = runner.measure(
            [Gram(site), Gram(site, Boundary(LAYER)), Gram(site, Boundary(LAYER + 1))]
        )
        assert torch.allclose(gram, read.T @ read, rtol=1e-5, atol=1e-4)
        assert torch.allclose(cross, read.T @ stream, rtol=1e-5, atol=1e-4)
        assert torch.allclose(later, read.T @ behind, rtol=1e-5, atol=1e-4)


def test_stream_between_the_sub_blocks(family):
    """Layer input plus what attention adds; parallel blocks have none, and say so."""
    name, model, directory, ids = family
    runner, site = runner_of(directory, ids), Between(LAYER)
    if name == "falcon":
        with pytest.raises(UnsupportedModelError, match="no stream between attention and MLP"):
            runner.measure([Gram(site)])
        assert torch.isfinite(runner.magnitude(LAYER + 1)).all()  # nothing half-done is left
        return
    path = f"{layers_path(name)}.{LAYER}"
    writer = {"gemma3_text": "post_attention_layernorm", "gpt2": "attn"}.get(name, "self_attn")
    between = caught(model, ids, path) + caught(model, ids, f"{path}.{writer}", output=True)
    (found,) = runner.measure([Gram(site)])
    assert torch.allclose(found, between.T @ between, rtol=1e-5, atol=1e-4)
    magnitude = between.abs().view(SAMPLES, -1, between.shape[1]).mean(dim=1).float()
    assert torch.allclose(runner.measure([Magnitudes(site)])[0], magnitude, rtol=1e-4)


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_falcon_generations(variant, tmp_path):
    """Two are parallel, with a norm for each sub-block or one for both; the third is not."""
    model = made("falcon", variant, tmp_path)
    ids = tiny.tokens(SAMPLES)
    runner = runner_of(tmp_path, ids)
    if variant < 2:
        with pytest.raises(UnsupportedModelError):
            runner.measure([Gram(Between(LAYER))])
    else:
        path = f"transformer.h.{LAYER}"
        stream = caught(model, ids, f"{path}.post_attention_layernorm")
        (found,) = runner.measure([Gram(Between(LAYER))])
        assert torch.allclose(found, stream.T @ stream, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@torch.no_grad()
def test_experts(name, tmp_path):
    """What each expert's down projection reads, of the tokens that are routed to it.

    By hand: from the router's own choice, with the expert's own matrices.
    """
    model = made(name, 0, tmp_path)
    ids = tiny.tokens(SAMPLES)
    runner = runner_of(tmp_path, ids)
    (writer,) = (w for w in runner.model.writers(LAYER) if "experts" in w and "bias" not in w)
    experts = model.model.layers[LAYER].mlp.experts
    calls = []
    with experts.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((*args, *kwargs.values())), with_kwargs=True
    ):
        model(input_ids=ids, use_cache=False)
    stream, chosen = calls[0][0].reshape(ids.numel(), -1), calls[0][1].view(ids.numel(), -1)
    for expert in range(4):
        x = stream[(chosen == expert).any(dim=1)]
        if name == "mixtral":
            gate, up = (x @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            inner = torch.nn.functional.silu(gate) * up
        else:
            both = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            gate, up = both[..., ::2].clamp(max=7.0), both[..., 1::2].clamp(-7.0, 7.0)
            inner = (up + 1) * gate * torch.sigmoid(gate * 1.702)
        expected = inner.double().T @ inner.double()
        (found,) = runner.measure([Gram(WriterInput(LAYER, writer, expert))])
        assert expected.abs().max() > 0
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def wanted():
    return [
        Gram(Boundary(2)), Gram(WriterInput(1, "mlp.down_proj.weight")), Gram(Between(2)),
        Gram(WriterInput(1, "mlp.down_proj.weight"), Boundary(2)), Magnitudes(Boundary(3)),
        Cosines(Boundary(1), Boundary(3)), Gram(Boundary(0), Boundary(4)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(directory, tokens)."""
    directory = tmp_path_factory.mktemp("llama") / "model"
    tiny.build("llama", 0).save_pretrained(directory)
    return directory, tiny.tokens(SAMPLES)


def test_batches_and_residence_change_no_bit(llama):
    """Sums over samples have an order of their own."""
    directory, ids = llama
    plain = runner_of(directory, ids, batch_size=1).measure(wanted())
    for options in ({"resident": False}, {"batch_size": 1}):
        again = runner_of(directory, ids, **{"batch_size": 1, **options}).measure(wanted())
        assert all(torch.equal(x, y) for x, y in zip(plain, again, strict=True))
    one_by_one = runner_of(directory, ids, batch_size=1)
    for statistic, value in zip(wanted(), plain, strict=True):
        assert torch.equal(one_by_one.measure([statistic])[0], value)


PROCESS = """
import sys, torch
sys.path[:0] = [{root!r}]
from prunecomp import distributed
from tests.prunecomp import test_statistics as t
torch.set_num_threads(1)
with distributed.joined() as group:
    runner = t.runner_of({directory!r}, t.tiny.tokens(t.SAMPLES), batch_size=1, group=group)
    found = runner.measure(t.wanted()) + runner.measure_beside(t.beside())
    torch.save(found, {out!r} + str(group.rank))
"""


def beside():
    return [Gram(Original(Boundary(3)), Boundary(3)), Gram(Original(Between(1)), Boundary(4))]


def test_two_processes_change_no_bit(llama, tmp_path):
    """Under torchrun with gloo; 5 samples, so that the shares differ. Every process knows all."""
    directory, ids = llama
    script, out, root = tmp_path / "main.py", str(tmp_path / "found"), Path(__file__).parents[2]
    script.write_text(PROCESS.format(root=str(root), directory=str(directory), out=out))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [sys.executable, *launch], env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=root,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runner = runner_of(directory, ids, batch_size=1)
    one = runner.measure(wanted()) + runner.measure_beside(beside())
    for rank in (0, 1):
        for x, y in zip(one, torch.load(f"{out}{rank}"), strict=True):
            assert torch.equal(x, y)


def test_tokens_that_do_not_count(llama):
    """A prefix and padding enter nothing, whatever is read."""
    directory, ids = llama
    mask = torch.ones(ids.shape, dtype=torch.bool)
    mask[:, :2] = False
    mask[1, 9:] = mask[3, 7:] = False
    runner = runner_of(directory, ids)
    runner._counted = [Counted(2, part[:, 2:]) for part in mask.split(2)]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    stream = caught(model, ids, "model.layers.2")[mask.flatten()]
    read = caught(model, ids, "model.layers.1.mlp.down_proj")[mask.flatten()]
    found = runner.measure([Gram(Boundary(2)), Gram(WriterInput(1, "mlp.down_proj.weight"))])
    assert torch.allclose(found[0], stream.T @ stream, rtol=1e-5, atol=1e-4)
    assert torch.allclose(found[1], read.T @ read, rtol=1e-5, atol=1e-4)


def test_pairwise_sum_is_one_order():
    """Any shares of neighbouring samples, in whichever order they come, give the same bits."""
    generator = torch.Generator().manual_seed(0)
    values = (
        torch.randn(37, 3, generator=generator, dtype=torch.float64)
        * torch.logspace(0, 9, 37)[:, None].double()
    )
    whole = PairwiseSum()
    for sample, value in enumerate(values):
        whole.add(sample, value)
        assert len(whole.nodes) <= (sample + 1).bit_length()
    assert torch.allclose(whole.total(), values.sum(dim=0), rtol=1e-12)
    for cuts in ([0, 5, 37], [0, 1, 2, 36, 37], [0, 16, 32, 37]):
        parts = []
        for first, last in itertools.pairwise(cuts):
            parts.append(PairwiseSum())
            for sample in range(first, last):
                parts[-1].add(sample, values[sample])
        for order in (parts, parts[::-1]):
            total = PairwiseSum()
            for part in order:
                total.join(part)
            assert torch.equal(total.total(), whole.total())


# --- cuts


def plan_of(directory, *rounds, fold="downstream"):
    checkpoint = Checkpoint(directory)
    return PrunePlan(
        SourceModel("t", "llama", checkpoint.num_hidden_layers, {}),
        Recipe("bi", "iterative", "magnitude", fold, len(rounds), 0, 0, "float32", "cpu"),
        CalibrationRecord("t", SAMPLES, 14, 0, ""),
        tuple(PruneRound(RemoveSpan((layer,)), Scale(factor), {}) for layer, factor in rounds),
    )


@pytest.mark.parametrize("fold", ["downstream", "upstream"])
def test_a_cut_leaves_what_is_in_front_of_it(fold, llama):
    """Known values are kept, multiplied by their power of a factor that is folded upstream."""
    directory, ids = llama
    runner = runner_of(directory, ids)
    runner.measure([*wanted(), Gram(Boundary(5))])
    plan = plan_of(directory, (3, 1.5), fold=fold)
    runner.advance(plan)
    kept = set(runner._store.states)
    assert Gram(Boundary(2)) in kept
    assert not {Gram(Boundary(5)), Gram(Boundary(0), Boundary(4))} & kept
    fresh = runner_of(directory, ids)
    fresh.advance(plan)
    for statistic in (*kept, *wanted()):
        ours, theirs = runner.measure([statistic])[0], fresh.measure([statistic])[0]
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3), statistic


# --- two models at once


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("fold", ["downstream", "upstream"])
def test_lockstep(fold, resident, llama, monkeypatch):
    """Both streams are those of two models on their own; each layer's tensors are read once."""
    directory, ids = llama
    plan = plan_of(directory, (2, 1.3), (3, 1.2), fold=fold)
    runner = runner_of(directory, ids, resident=resident)
    runner.advance(plan_of(directory, (2, 1.3), fold=fold))
    runner.advance(plan)
    original, pruned = (runner_of(directory, ids) for _ in range(2))
    pruned.advance(plan)
    theirs = dict(original.boundaries())
    own = dict(pruned.boundaries())
    reads: list[str] = []
    read = TensorFiles.__call__
    monkeypatch.setattr(TensorFiles, "__call__", lambda s, key: reads.append(key) or read(s, key))
    for step in runner.lockstep():
        assert all(map(torch.equal, step.original.behind, theirs[step.layer + 1]))
        if step.layer in plan.kept:
            position = plan.kept.index(step.layer)
            assert all(map(torch.equal, step.pruned.before, own[position]))
            assert all(map(torch.equal, step.pruned.behind, own[position + 1]))
        else:
            assert step.pruned is None
    layers = [key for key in reads if ".layers." in key]
    assert len(layers) == len(set(layers))
    assert resident or len(layers) == 9 * tiny.DEPTH
    monkeypatch.undo()
    assert runner.loss() == pytest.approx(pruned.loss(), rel=1e-6)  # the edits are in place again

    x, y = (
        torch.cat(list(found[n])).flatten(0, 1).double() for found, n in ((theirs, 5), (own, 3))
    )
    (cross,) = runner.measure_beside([Gram(Original(Boundary(5)), Boundary(3))])
    assert torch.allclose(cross, x.T @ y, rtol=1e-6, atol=1e-6)
    site = WriterInput(2, "mlp.down_proj.weight")
    (cross,) = runner.measure_beside([Gram(site, Original(Boundary(5)))])
    (alone,) = pruned.measure([Gram(site)])
    (gram,) = runner.measure_beside([Gram(site)])
    assert torch.allclose(gram, alone, rtol=1e-9)
    assert cross.shape == (48, 32)


def test_what_two_models_share_is_run_once(llama, monkeypatch):
    """Up to the first layer that differs there is one stream."""
    directory, ids = llama
    runner, passes = runner_of(directory, ids, batch_size=SAMPLES), []
    runner.advance(plan_of(directory, (3, 1.3)))
    run = PlannedModel.run_layer
    monkeypatch.setattr(
        PlannedModel, "run_layer", lambda s, layer, h: passes.append(layer) or run(s, layer, h)
    )
    for _ in runner.lockstep():
        pass
    assert passes == [0, 1, 2, 3, 4, 4, 5, 5]
