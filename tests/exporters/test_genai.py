"""`genai_config.json`: with which tokens a text begins and ends, as the files of the source say."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from exporters._genai import ends, runtime_type
from prunecomp.errors import CheckpointError
from tests.families import tiny

MODEL = SimpleNamespace(config=SimpleNamespace(vocab_size=200))
ALL = {"bos_token_id": 2, "eos_token_id": [1, 107], "pad_token_id": 3}


@pytest.fixture
def tokens(tmp_path):
    """``tokens(generation config, config)``: what is told; None leaves the file out."""

    def found(generation, config=None):
        for name, content in (("generation_config.json", generation), ("config.json", config)):
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return ends(tmp_path, MODEL)

    return found


def test_generation_config_comes_first(tokens):
    assert tokens(ALL, {"bos_token_id": 9, "eos_token_id": 1, "pad_token_id": 8}) == ALL


def test_what_it_does_not_name_is_taken_from_config(tokens):
    config = {"bos_token_id": 9, "eos_token_id": 8, "pad_token_id": 7}
    assert tokens({"eos_token_id": [1, 107], "pad_token_id": None}, config) == {
        "bos_token_id": 9, "eos_token_id": [1, 107], "pad_token_id": 7
    }  # fmt: skip
    assert tokens({"eos_token_id": []}, config)["eos_token_id"] == 8


def test_without_generation_config(tokens):
    assert tokens(None, ALL) == ALL


def test_what_neither_names(tokens):
    """The runtime takes 0 for none; a text that begins with nothing begins with its end."""
    assert tokens({}, {}) == dict.fromkeys(ALL, 0)
    found = tokens({"eos_token_id": [5, 6]}, {"pad_token_id": -1})
    assert found == {"bos_token_id": 5, "eos_token_id": [5, 6], "pad_token_id": 5}


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eos_token_id", "</s>"), ("eos_token_id", -1), ("eos_token_id", 200),
        ("eos_token_id", True), ("eos_token_id", 1.5), ("eos_token_id", [1, "x"]),
        ("eos_token_id", {"a": 1}), ("eos_token_id", [[1]]), ("eos_token_id", 2**62),
        ("eos_token_id", ["x" * 5000]), ("bos_token_id", [1]), ("pad_token_id", -7),
    ],
)  # fmt: skip
def test_what_is_no_token_is_named(name, value, where, tokens, tmp_path):
    files = ({name: value}, {}) if where == "generation_config.json" else ({}, {name: value})
    with pytest.raises(CheckpointError) as caught:
        tokens(*files)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / where}: {name} is ")
    assert said.endswith("which is no token of the vocabulary of 200; correct it")
    assert len(said.removeprefix(str(tmp_path))) < 200


@pytest.mark.parametrize("content", ["[1]", "{", "", '"x"', "\udcff"])
def test_a_damaged_generation_config_is_named(content, tmp_path):
    (tmp_path / "generation_config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"generation_config.json: .*restore the file"):
        ends(tmp_path, MODEL)


@pytest.mark.parametrize(("original", "wanted"), [(4096, "phi3"), (16, "decoder")])
def test_the_runtime_is_told_of_a_phi_whose_frequencies_change(original, wanted):
    """At 4097 tokens it reads the text anew for that type, and at no other length."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4, "original_max_position_embeddings": original,
    }  # fmt: skip
    changes = {"rope_parameters": rope, "original_max_position_embeddings": original}
    model = tiny.build("phi3", 0, num_hidden_layers=1, **changes)
    assert runtime_type(model) == wanted


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_other_models_have_no_peculiarities(family):
    assert runtime_type(tiny.build(family, 0, num_hidden_layers=1)) == "decoder"
