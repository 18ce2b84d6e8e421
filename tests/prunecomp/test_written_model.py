"""What is written, loaded by stock transformers, against the original cut and scaled by hand."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.oracles import tiny_models
from tests.oracles.surgery import by_hand

FIRST = [((0,), 1.7)]
MIDDLE = [((3, 4), 1.25)]
LAST = [((7,), 1.4)]
#: 2 and 4 are neighbours once 3 is gone; a factor below one; both ends.
SEVERAL = [((3,), 1.3), ((2, 4), 0.8), ((0,), 1.6), ((7,), 1.2)]
CUTS = {"first": FIRST, "middle": MIDDLE, "last": LAST, "several": SEVERAL}


@pytest.fixture(scope="module")
def result(tiny_directory, written):
    """``result(name, cuts, fold)``: (directory, model that transformers loads), once each."""
    done = {}

    def get(name, cuts, fold="downstream"):
        if (name, cuts, fold) not in done:
            directory = written(tiny_directory(name), CUTS[cuts], fold)
            done[name, cuts, fold] = directory, load(directory)
        return done[name, cuts, fold]

    return get


def load(directory):
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    for kind, keys in info.items():
        assert not keys, kind
    return model.eval()


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def assert_close(ours, expected, bound=2e-5):
    """Relative to the size of the logits; fp32 sums in another order."""
    assert float((ours - expected).abs().max() / expected.abs().max()) < bound


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_logits_downstream(name, cuts, tiny_model, tiny_ids, result):
    _, model = result(name, cuts)
    expected = by_hand(tiny_model(name), CUTS[cuts], "downstream")
    assert_close(logits(model, tiny_ids), logits(expected, tiny_ids))


@pytest.mark.parametrize("cuts", ["last", "several"])
@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_logits_upstream(name, cuts, tiny_model, tiny_ids, result):
    """Tied heads too: by hand the head gets its own, unscaled weight; the package keeps the tie."""
    _, model = result(name, cuts, "upstream")
    expected = by_hand(tiny_model(name), CUTS[cuts], "upstream")
    assert_close(logits(model, tiny_ids), logits(expected, tiny_ids))
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tied == (name in tiny_models.TIED)
    assert model.config.tie_word_embeddings == (name in tiny_models.TIED)


def test_factors_are_visible_in_the_logits(tiny_model, tiny_ids):
    """Otherwise the two tests above would pass without any scaling."""
    for name in tiny_models.NAMES:
        plain = [(removed, 1.0) for removed, _ in SEVERAL]
        with_factors = logits(by_hand(tiny_model(name), SEVERAL, "explicit"), tiny_ids)
        without = logits(by_hand(tiny_model(name), plain, "explicit"), tiny_ids)
        assert float((with_factors - without).norm() / without.norm()) > 0.02


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_config(name, tiny_directory, result):
    source = json.loads((tiny_directory(name) / "config.json").read_text())
    config = json.loads((result(name, "several")[0] / "config.json").read_text())
    kept = [1, 5, 6]
    expected = dict(source, num_hidden_layers=3)
    if "layer_types" in source:
        expected["layer_types"] = [source["layer_types"][i] for i in kept]
    if "max_window_layers" in source:
        expected["max_window_layers"] = sum(i < source["max_window_layers"] for i in kept)
    assert config == expected
    assert list(config) == list(source)


def test_config_fields_that_the_tiny_models_have(tiny_directory):
    """So that the test above checks what it says."""
    for name in ("qwen2", "qwen3-tied"):
        config = json.loads((tiny_directory(name) / "config.json").read_text())
        assert len(set(config["layer_types"])) == 2
        assert 0 < config["max_window_layers"] < config["num_hidden_layers"]


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3-tied"])
def test_layers_keep_their_window(name, tiny_model, result):
    _, model = result(name, "several")
    for position, original in enumerate([1, 5, 6]):
        ours = model.model.layers[position].self_attn
        theirs = tiny_model(name).model.layers[original].self_attn
        assert ours.layer_idx == position
        assert getattr(ours, "sliding_window", None) == getattr(theirs, "sliding_window", None)
    assert model.config.sliding_window == tiny_model(name).config.sliding_window


def test_layer_types_that_the_config_leaves_out(tiny_ids, written, tmp_path):
    """Older Qwen2 configs have only max_window_layers; the pattern must not start anew."""
    original = tiny_models.build("qwen2", layer_types=None)
    directory = tiny_models.write(original, tmp_path / "source")
    config = json.loads((directory / "config.json").read_text())
    del config["layer_types"]
    (directory / "config.json").write_text(json.dumps(config))
    output = written(directory, FIRST)
    assert_close(
        logits(load(output), tiny_ids), logits(by_hand(original, FIRST, "downstream"), tiny_ids)
    )
    config = json.loads((output / "config.json").read_text())
    assert config["layer_types"] == ["full_attention"] * 2 + ["sliding_attention"] * 5
    assert config["max_window_layers"] == 2


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_greedy_generation(name, tiny_model, tiny_ids, result):
    """With the cache, without it, and by hand: full passes and argmax. Longer than the windows."""
    _, model = result(name, "several")
    prompt, new = tiny_ids[:3, :5], 12
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(prompt, use_cache=True, **options)
    uncached = model.generate(prompt, use_cache=False, **options)
    reference, expected = by_hand(tiny_model(name), SEVERAL, "downstream"), prompt
    for _ in range(new):
        following = logits(reference, expected)[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, following], dim=1)
    assert cached.tolist() == expected.tolist()
    assert uncached.tolist() == expected.tolist()


def test_tied_head_repeated_in_the_file(tiny_model, tiny_ids, written, tmp_path):
    """Some tied checkpoints hold ``lm_head.weight`` as well; both folds must keep logits right."""
    from safetensors.torch import load_file, save_file

    directory = tiny_models.write(tiny_model("llama-tied"), tmp_path / "source")
    tensors = load_file(directory / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for fold in ("downstream", "upstream"):
        expected = logits(by_hand(tiny_model("llama-tied"), SEVERAL, fold), tiny_ids)
        assert_close(logits(load(written(directory, SEVERAL, fold)), tiny_ids), expected)


def test_files_beside_the_weights(tiny_directory, text_model, written, tmp_path):
    """Tokenizer, chat template and generation config come along; code and other weights do not."""
    source = shutil.copytree(text_model, tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "LICENSE").write_text("yes")
    for name in ("modeling_other.py", "pytorch_model.bin", "optimizer.pt"):
        (source / name).write_text("no")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_other.Other"}
    config["unknown_key"] = {"kept": True}
    (source / "config.json").write_text(json.dumps(config))
    output = written(source, MIDDLE)
    names = {path.name for path in output.iterdir()}
    carried = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"}
    assert carried | {"chat_template.jinja"} <= names
    for name in (*carried, "chat_template.jinja"):
        assert (output / name).read_bytes() == (source / name).read_bytes()
    made = {"config.json", "model.safetensors", "README.md", "prunecomp.json"}
    assert names == carried | {"chat_template.jinja"} | made
    result = json.loads((output / "config.json").read_text())
    assert "auto_map" not in result
    assert result["unknown_key"] == {"kept": True}
