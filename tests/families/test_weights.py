"""Weights that are read part by part are those that from_pretrained loads, in every family."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunecomp.calibration.view import PlannedModel
from prunecomp.checkpoint.reader import Checkpoint
from tests.families import tiny

CPU = torch.device("cpu")


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", tiny.cases(), ids=lambda c: f"{c[0]}-{c[1]}")
def test_parameters_are_those_of_from_pretrained(case, tmp_path):
    """Values, dtypes, ties and buffers, of float32 files in bfloat16; all at once, and by parts."""
    tiny.build(*case).save_pretrained(tmp_path)
    checkpoint, dtype = Checkpoint(tmp_path), torch.bfloat16
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    resident = PlannedModel(checkpoint, device=CPU, dtype=dtype)
    same(dict(resident.model.state_dict()), dict(expected.state_dict()))
    same(dict(resident.model.named_buffers()), dict(expected.named_buffers()))
    assert len(list(resident.model.parameters())) == len(list(expected.parameters()))
    streamed = PlannedModel(checkpoint, device=CPU, dtype=dtype, resident=False)
    layer_path = checkpoint.layers_path
    for number, layer in enumerate(streamed.model.get_submodule(layer_path)):
        stock = expected.get_submodule(f"{layer_path}.{number}")
        with streamed.loaded(number):
            same(dict(layer.state_dict()), dict(stock.state_dict()))
        assert all(parameter.is_meta for parameter in layer.parameters())
    with streamed.outside():
        found = {n: v for n, v in streamed.model.state_dict().items() if not v.is_meta}
    assert {n for n in expected.state_dict() if not n.startswith(layer_path)} <= found.keys()
    same(found, {n: v for n, v in expected.state_dict().items() if n in found})
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"return_dict": False}),
        ("llama", {"output_hidden_states": True, "output_attentions": True, "use_cache": False}),
        ("mixtral", {"output_router_logits": True}),
    ],
    ids=["tuples", "states", "router"],
)
def test_what_calls_return_does_not_depend_on_the_config(family, changes, tmp_path):
    tiny.build(family, 0).save_pretrained(tmp_path)
    ids, found = tiny.tokens(), []
    for extra in ({}, changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | extra))
        model = PlannedModel(Checkpoint(tmp_path), device=CPU, dtype=torch.float32)
        hidden = model.embed(ids)
        for layer in model.live:
            hidden = model.run_layer(layer, hidden)
        made = model.model(input_ids=ids)
        found.append((model.logits(hidden, ids), made.logits, sorted(made)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2] == ["logits", "past_key_values"]
