"""Scales of activations: those of inputs that a fold scales go along, all others stay.

The oracle rounds the inputs of every linear layer to FP8 with the scales of the files, as a server
does. Factors are powers of two, so that nothing rounds differently by chance.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.families import FAMILIES
from prunecomp.pipeline import apply_plan
from tests.families import tiny
from tests.families.test_conformance import (
    QUIET,
    assert_close,
    factors_of,
    folds_of,
    plan_for,
    reload,
    skipping,
)
from tests.oracles import quantised

ROUNDS = [([4], 2.0), ([1], 0.5)]


def with_rounded_inputs(directory, scheme, target):
    """The model that the files stand for, whose linear layers round what they read."""
    quantised.decode_directory(directory, scheme, target)
    model = reload(target)
    stored = load_file(directory / "model.safetensors")
    for name, scale in stored.items():
        if name.endswith(".input_scale"):
            module = model.get_submodule(name.removesuffix(".input_scale"))

            def round_input(module, args, scale=scale):
                (x,) = args
                codes = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
                return (codes.float() * scale,)

            module.register_forward_pre_hook(round_input)
    return model


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_inputs_are_rounded_as_before(family, tmp_path):
    """In OLMo 2, projections read the scaled stream itself; in a Llama, a norm is between."""
    tiny.build(family, 0).save_pretrained(tmp_path / "model")
    scheme = quantised.schemes()["ct-fp8-tensor-static"]()
    quantised.quantise_directory(tmp_path / "model", scheme)
    model = with_rounded_inputs(tmp_path / "model", scheme, tmp_path / "dense")
    checkpoint, ids = Checkpoint(tmp_path / "model"), tiny.tokens()
    with torch.no_grad(), skipping(model, FAMILIES.get(family), factors_of(ROUNDS)):
        expected = model(ids).logits
    for fold in folds_of(checkpoint):
        apply_plan(checkpoint, plan_for(checkpoint, fold, ROUNDS), tmp_path / fold, progress=QUIET)
        pruned = with_rounded_inputs(tmp_path / fold, scheme, tmp_path / f"{fold}-dense")
        with torch.no_grad():
            assert_close(pruned(ids).logits, expected)
        before, after = (
            load_file(d / "model.safetensors") for d in (tmp_path / "model", tmp_path / fold)
        )
        changed = any(
            not torch.equal(after[n], before[n]) for n in after if n.endswith("input_scale")
        )
        assert changed == (family == "olmo2")


def test_other_scales(tmp_path):
    """Keys and values stay as they were; an output scale goes with the output of a writer."""
    tiny.build("llama", 0).save_pretrained(tmp_path / "model")
    quantised.quantise_directory(tmp_path / "model", quantised.schemes()["ct-int8-w8a8"]())
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    lasts = ("self_attn.k_scale", "self_attn.v_scale", "self_attn.k_proj.output_scale",
             "mlp.down_proj.output_scale", "mlp.down_proj.output_zero_point")  # fmt: skip
    for layer in range(tiny.DEPTH):
        for last in lasts:
            dtype = torch.int8 if last.endswith("point") else torch.float32
            tensors[f"model.layers.{layer}.{last}"] = torch.full((1,), 3).to(dtype)
    save_file(tensors, file)
    checkpoint = Checkpoint(tmp_path / "model")
    assert not any("output_" in n or "k_scale" in n for n in checkpoint.dense)
    plan = plan_for(checkpoint, "downstream", [([2], 2.0)])
    apply_plan(checkpoint, plan, tmp_path / "out", progress=QUIET)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for layer in range(tiny.DEPTH - 1):
        found = [float(written[f"model.layers.{layer}.{last}"]) for last in lasts]
        assert found == [3, 3, 3, 3 if layer < 2 else 1.5, 3]
