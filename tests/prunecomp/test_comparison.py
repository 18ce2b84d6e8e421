"""A written model is run beside its source: no false alarms, and what is missing is found.

That every writer of every family is missed is tested in tests/families/test_account.py; that
models that are right pass, wherever a test applies a plan.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunecomp import comparison, rewrite
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.comparison import compare_with_source
from prunecomp.errors import VerificationError
from prunecomp.fold import compile_edits
from prunecomp.pipeline import apply_plan
from tests.families import tiny
from tests.families.test_conformance import QUIET, folds_of, plan_for

ROUNDS = [([3], 1.3), ([1], 0.7)]
FOLDS = ("downstream", "upstream")


def saved(model, directory, dtype=torch.float32):
    model.to(dtype).save_pretrained(directory)
    return Checkpoint(directory)


def written(source, fold, output, rounds=ROUNDS):
    plan = plan_for(source, fold, rounds)
    apply_plan(source, plan, output, compare=False, progress=QUIET)
    return Checkpoint(output), plan


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [1e-5, 1.0])
def test_an_eps_that_matters_is_no_fault(tmp_path, fold, dtype, eps):
    """It makes a fold inexact, in logits that are off by more than any tolerance here."""
    source = saved(tiny.build("llama", 0), tmp_path / "m", dtype)
    config = {**source.config, "rms_norm_eps": eps}
    (source.path / "config.json").write_text(json.dumps(config))
    source = Checkpoint(source.path)
    result, plan = written(source, fold, tmp_path / "out")
    found = compare_with_source(source, result, plan, progress=QUIET)
    assert found.layers < {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("factor", [1e-3, 40.0])
@pytest.mark.parametrize("name", ["llama", "olmo2", "qwen3_moe"])
def test_any_factor(tmp_path, name, fold, factor):
    source = saved(tiny.build(name, 0), tmp_path / "m", torch.bfloat16)
    if fold in folds_of(source):
        result, plan = written(source, fold, tmp_path / "out", [([2], factor), ([4], factor)])
        compare_with_source(source, result, plan, progress=QUIET)


def test_a_factor_that_the_dtype_cannot_hold_is_found(tmp_path):
    """``(1 + w) / 1600 - 1`` in bfloat16 is -1: the final norm of the tied model gives nothing."""
    source = saved(tiny.build("gemma2", 0), tmp_path / "m", torch.bfloat16)
    result, plan = written(source, "upstream", tmp_path / "out", [([2], 40.0), ([4], 40.0)])
    with pytest.raises(VerificationError, match=r"the logits differ by 1 .* --fold downstream"):
        compare_with_source(source, result, plan, progress=QUIET)


def change(directory, edit):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize(
    ("name", "by", "says"),
    [
        ("model.layers.1.self_attn.o_proj.weight", 1.1, "layer 1 (layer 2 of the source)"),
        ("model.layers.3.mlp.down_proj.weight", 0.95, "layer 3 (layer 5 of the source)"),
        ("model.layers.0.self_attn.v_proj.weight", 1.1, "layer 0 (layer 0 of the source)"),
        ("model.embed_tokens.weight", 1.05, "the embeddings"),
        ("lm_head.weight", 1.05, "the logits"),
    ],
)
def test_what_is_off_is_named(tmp_path, fold, name, by, says):
    source = saved(tiny.build("llama", 0), tmp_path / "m", torch.bfloat16)
    result, plan = written(source, fold, tmp_path / "out")
    change(result.path, lambda tensors: tensors[name].mul_(by))
    with pytest.raises(VerificationError, match="skipped") as caught:
        compare_with_source(source, result, plan, progress=QUIET)
    assert says in str(caught.value)


def test_layers_in_another_order_are_found(tmp_path):
    source = saved(tiny.build("llama", 0), tmp_path / "m")
    result, plan = written(source, "downstream", tmp_path / "out")

    def swap(tensors):
        for name in [n for n in tensors if ".layers.0." in n]:
            other = name.replace(".layers.0.", ".layers.1.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    change(result.path, swap)
    with pytest.raises(VerificationError, match="layer 0"):
        compare_with_source(source, result, plan, progress=QUIET)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("name", ["qwen3_moe", "mamba"])
def test_without_memory_for_float32(tmp_path, monkeypatch, name, fold):
    """Layers are computed as they are stored: less is seen, and there is no false alarm."""
    source = saved(tiny.build(name, 0), tmp_path / "m", torch.bfloat16)
    result, plan = written(source, fold, tmp_path / "out")
    found = compare_with_source(source, result, plan, limit=1, progress=QUIET)
    assert found.computed == "bfloat16"
    writer = next(w for w in source.family.writers if "o_proj" in w or "out_proj" in w)
    change(result.path, lambda t: t[source.family.tensor_name(2, writer)].mul_(1.3))
    with pytest.raises(VerificationError, match="layer 2"):
        compare_with_source(source, result, plan, limit=1, progress=QUIET)


@pytest.mark.parametrize("fold", FOLDS)
def test_a_compiler_that_forgets_a_writer_writes_nothing(tmp_path, monkeypatch, fold):
    """What apply does by itself; the comparison does not ask which tensors were edited."""
    source = saved(tiny.build("llama", 0), tmp_path / "m")

    def forgetful(plan, family, names, **options):
        left = tuple(w for w in family.writers if "down_proj" not in w)
        return compile_edits(plan, dataclasses.replace(family, writers=left), names, **options)

    monkeypatch.setattr(rewrite, "compile_edits", forgetful)
    plan = plan_for(source, fold, ROUNDS)
    with pytest.raises(VerificationError, match="--no-check"):
        apply_plan(source, plan, tmp_path / "out", progress=QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    apply_plan(source, plan, tmp_path / "out", compare=False, progress=QUIET)


def test_one_layer_of_one_model_at_a_time(tmp_path, monkeypatch):
    source = saved(tiny.build("llama", 0), tmp_path / "m")
    result, plan = written(source, "downstream", tmp_path / "out")
    loaded: list[tuple[str, int]] = []
    most = [0]
    real = comparison._Side.loaded

    def counting(self, number):
        import contextlib

        @contextlib.contextmanager
        def block():
            loaded.append((str(self.checkpoint.path), number))
            most[0] = max(most[0], len(set(loaded)))
            with real(self, number):
                yield
            loaded.pop()

        return block()

    monkeypatch.setattr(comparison._Side, "loaded", counting)
    compare_with_source(source, result, plan, progress=QUIET)
    assert most == [1]
