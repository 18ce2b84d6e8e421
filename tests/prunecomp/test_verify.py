"""The check before a directory appears: it must notice what would not load as planned."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import VerificationError
from prunecomp.verify import check_written

ROUNDS = [((0,), 1.2), ((3,), 1.1)]
KEPT = (1, 2, 4, 5, 6, 7)


@pytest.fixture
def result(tiny_directory, written):
    """(source, written directory) of the Qwen2 with mixed windows, and a way to spoil it."""
    return Checkpoint(tiny_directory("qwen2")), written(tiny_directory("qwen2"), ROUNDS)


def spoil_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_passes(result):
    source, directory = result
    assert check_written(source, directory, KEPT) == [
        "headers", "tensors-fit-config", "layers-keep-their-attributes",
    ]  # fmt: skip


def test_layer_types_of_the_wrong_layers(result):
    """As they would be if the list was cut at its end instead of at the removed layers."""
    source, directory = result
    spoil_config(directory, layer_types=source.config["layer_types"][: len(KEPT)])
    with pytest.raises(VerificationError, match=r"layer 1 would change .* layer 0: .*sliding"):
        check_written(source, directory, KEPT)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 5}, {"intermediate_size": 40}, {"model_type": "gpt2"}]
)
def test_config_that_does_not_fit_the_weights(changes, result):
    source, directory = result
    spoil_config(directory, **changes)
    with pytest.raises(VerificationError):
        check_written(source, directory, KEPT)


def test_weights_that_do_not_fit_the_config(result):
    source, directory = result
    file = directory / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.2.mlp.down_proj.weight"
    for broken in ({}, {name: tensors[name][:, :-1].contiguous()}):
        save_file({n: t for n, t in tensors.items() if n != name} | broken, file)
        with pytest.raises(VerificationError, match=name):
            check_written(source, directory, KEPT)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(VerificationError, match="damaged"):
        check_written(source, directory, KEPT)
