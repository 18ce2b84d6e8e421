"""A model that cannot be read, is damaged, or is of another kind: exit code 2 and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.support import DEPTH, MORTAL, one_line, tree

WEIGHTS = "model.safetensors"


# --- the directory


def test_missing(refused_compress, tmp_path):
    refused_compress(tmp_path / "nope", says=("nope: no such directory", "config.json"))


def test_a_file(refused_compress, model):
    refused_compress(model / "config.json", says="is not a directory")


def test_without_config(refused_compress, tmp_path):
    (tmp_path / "empty").mkdir()
    refused_compress(tmp_path / "empty", says=("has no config.json", "name a model directory"))


@pytest.mark.parametrize("command", [["plan", "--layers", "1"], ["apply", "plan.json"]])
def test_other_commands_too(refused, command, plan_file, tmp_path):
    command = [plan_file if word == "plan.json" else word for word in command]
    command.insert(1, tmp_path / "nope")
    refused(*command, "-o", tmp_path / "out", says="no such directory")


@pytest.mark.parametrize("locked", [".", "config.json", WEIGHTS])
def test_unreadable(warm, model, elsewhere, locked, small):
    (model / locked).chmod(0)
    command = ["compress", model, "-o", model.parent / "out", "--layers", "1", *small]
    ended = warm.start(command, cwd=elsewhere, first=MORTAL).end()
    (model / locked).chmod(0o700)
    line = one_line(ended.err)
    assert ended.code == 2
    assert "permission" in line.lower()
    assert not (model.parent / "out").exists()


def test_inside_an_unreadable_directory(warm, model, elsewhere):
    """Even to ask whether the model is there is denied."""
    outer = model.parent / "outer"
    outer.mkdir()
    shutil.move(model, outer / "model")
    outer.chmod(0)
    command = ["compress", outer / "model", "-o", elsewhere / "out", "--layers", "1"]
    ended = warm.start(command, cwd=elsewhere, first=MORTAL).end()
    outer.chmod(0o700)
    assert ended.code == 2
    assert "permission" in one_line(ended.err).lower()


def test_name_too_long(refused_compress):
    refused_compress("x" * 300, says="File name too long")


# --- config.json


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '"x"'])
def test_config_is_not_an_object(refused_compress, model, content):
    (model / "config.json").write_text(content)
    refused_compress(model, says=("config.json", "JSON", "restore the file"))


def test_config_is_not_text(refused_compress, model):
    (model / "config.json").write_bytes(b"\xff\xfe{}")
    refused_compress(model, says="cannot read it as JSON")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_config_that_breaks_the_parser(refused_compress, model, content):
    (model / "config.json").write_text(content)
    refused_compress(model, says="cannot read it as JSON")


@pytest.mark.parametrize(
    ("word", "known"),
    [("llama2", "llama"), ("Llama", "llama"), ("mistrall", "mistral"), ("qwen-3", "qwen3"),
     ("gptneox", "gpt_neox"), ("qwen3moe", "qwen3_moe"), ("phi-3", "phi3")],
)  # fmt: skip
def test_near_miss_of_a_type(refused, edit_config, word, known):
    refused(
        "inspect", edit_config(model_type=word),
        says=(f"{word!r} is not supported", f"did you mean {known!r}?", "`cli.py families`"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "word",
    ["qwen3_next", "lfm2", "granitemoehybrid", "nemotron_h", "nemotronh", "kimi_k2", "qwen4",
     "gemma5", "deepseek", "deepseek_v32", "gptneo", "minimax_m2", "internlm2", "olmo_hybrid"],
)  # fmt: skip
def test_another_architecture_is_no_near_miss(refused, edit_config, word):
    line = refused("inspect", edit_config(model_type=word), says="is not supported")
    assert "did you mean" not in line
    assert "did you mean" not in refused("families", word)


@pytest.mark.parametrize("model_type", ["gpt_neo_2", None, 3, ["llama"], {"a": 1}])
def test_unsupported_type(refused_compress, edit_config, model_type):
    refused_compress(
        edit_config(model_type=model_type), says=("not supported", "`cli.py families`")
    )


@pytest.mark.parametrize(
    "classes", [["LlamaForSequenceClassification"], [None], "LlamaForCausalLM", {"a": 1}, 3]
)
def test_wrong_class(refused_compress, edit_config, classes):
    refused_compress(edit_config(architectures=classes), says=("architecture", "LlamaForCausalLM"))


@pytest.mark.parametrize(
    ("quantization", "method"),
    [({"quant_method": m}, m) for m in ("gptq", "bitsandbytes", "mxfp4", "exl2", "fp8")]
    + [({"bits": 4}, "None"), ("awq", "awq"), (["gptq"], "gptq")],
)
def test_settings_of_a_quantisation_that_is_gone(refused, edit_config, quantization, method):
    """A merge or a dequantisation that has left them; some readers would quantise on loading."""
    refused("inspect", edit_config(quantization_config=quantization), says=(
        "config.json: quantization_config speaks of", method, "no weight is quantised",
        "delete quantization_config",
    ))  # fmt: skip


@pytest.mark.parametrize("method", ["bitsandbytes", "exl2", "hqq", "mxfp4"])
def test_quantised_in_an_unsupported_format(refused, edit_config, model, method):
    """Codes in the weights say that the settings are meant."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / WEIGHTS)
    weights["model.layers.0.mlp.down_proj.weight"] = torch.zeros(24, 32, dtype=torch.uint8)
    save_file(weights, model / WEIGHTS)
    edit_config(quantization_config={"quant_method": method})
    refused("inspect", model, says=(method, "not supported", "compress the unquantised model"))


def test_modelopt(refused, model):
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / WEIGHTS)
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, model / WEIGHTS)
    (model / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    refused("inspect", model, says=("quantised by ModelOpt", "hf_quant_config.json", "F8_E4M3"))


@pytest.mark.parametrize("depth", [0, -1, "6", 6.0, True, [6]])
def test_depth_is_no_number_of_layers(refused_compress, edit_config, depth):
    refused_compress(edit_config(num_hidden_layers=depth), says="must be a positive integer")


@pytest.mark.parametrize(("depth", "layer"), [(5, 5), (8, 6), (10_000, 6)])
def test_depth_that_the_weights_do_not_have(refused_compress, edit_config, depth, layer):
    refused_compress(
        edit_config(num_hidden_layers=depth), says=(f"says {depth} layers", f"layer {layer}")
    )


@pytest.mark.parametrize("types", [["full_attention"] * (DEPTH - 1), ["full_attention"] * 7, 3])
def test_layer_types_of_another_depth(refused_compress, edit_config, types):
    refused_compress(edit_config(layer_types=types), says=("layer_types", f"{DEPTH} layers"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_types": ["bogus"] * DEPTH}, "entries must be in"),
        ({"vocab_size": "x"}, "expected int, got str"),
        ({"num_attention_heads": 5}, "(32) is not a multiple of the number of attention heads (5)"),
        ({"num_attention_heads": 0}, "by zero"),
        ({"max_position_embeddings": "x"}, "expected int, got str"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"torch_dtype": "bogus"}, "bogus"),
    ],
    ids=str,
)
def test_config_that_transformers_rejects(refused_compress, edit_config, changes, reason):
    refused_compress(edit_config(**changes), says=("config.json: transformers rejects it", reason))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"hidden_act": "bogus"}, "bogus"),
     ({"pad_token_id": 5000}, "pad_token_id is 5000, outside the vocabulary: vocab_size is 260")],
)  # fmt: skip
def test_config_that_no_model_can_have(refused_compress, edit_config, changes, reason):
    refused_compress(edit_config(**changes), says=("transformers cannot", reason))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["flash_attention_2", "flash_attention_3", "bogus"])
def test_attention_is_ours_to_choose(cli, edit_config, small, tmp_path, key, value):
    """And of whoever loads the result: it may have no such package."""
    model = edit_config(**{key: value, "experts_implementation": "bogus"})
    ended = cli("compress", model, "-q", "-o", tmp_path / "out", "--layers", 2, *small)
    assert (ended.code, ended.err) == (0, "")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not config.keys() & {key, "experts_implementation"}


# --- tokenizer


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer(refused_compress, model, file, content):
    (model / file).write_text(content)
    refused_compress(model, says=("cannot load its tokenizer", "restore its files"))


@pytest.mark.parametrize("damage", [None, b"{", b"[]", b"\xff"])
def test_no_tokenizer_is_no_hindrance_to_tokens(cli, refused_compress, model, tmp_path, damage):
    """The message offers a file of tokens instead; that works."""
    import torch
    from safetensors.torch import save_file

    (model / "tokenizer.json").unlink()
    if damage is None:
        (model / "tokenizer_config.json").unlink()
    else:
        (model / "tokenizer_config.json").write_bytes(damage)
    refused_compress(model, says="give the tokens as a .safetensors file")
    save_file({"input_ids": torch.arange(64).view(2, 32)}, tmp_path / "tokens.safetensors")
    ended = cli("compress", model, "-q", "-o", tmp_path / "out", "--layers", "1",
                "--calibration", tmp_path / "tokens.safetensors")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")


# --- code in the model directory


@pytest.fixture
def hostile(model, tmp_path, edit_config) -> Path:
    """A model with Python files that leave a mark when they are run."""
    edit_config(auto_map={"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"})
    code = (
        f"open({str(tmp_path / 'mark')!r}, 'w').close()\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
        "from transformers import PreTrainedTokenizerFast as T\n"
    )
    for name in ("modeling_x.py", "tokenizer_x.py", "vocab_x.py", "chat_template.py"):
        (model / name).write_text(code)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["modeling_x.T", "modeling_x.T"]}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    return model


def test_remote_code_is_neither_run_nor_carried_over(cli, hostile, small, tmp_path):
    ended = cli("compress", hostile, "-q", "-o", tmp_path / "out", "--layers", "2", *small)
    assert (ended.code, ended.err) == (0, "")
    assert not (tmp_path / "mark").exists()
    assert not list((tmp_path / "out").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_remote_code_that_is_needed(refused_compress, hostile, edit_config, tmp_path):
    config = json.loads((hostile / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "XTokenizer"
    (hostile / "tokenizer_config.json").write_text(json.dumps(config))
    refused_compress(hostile, says="cannot load its tokenizer")
    refused_compress(edit_config(model_type="x"), says="model type 'x' is not supported")
    assert not (tmp_path / "mark").exists()


def test_source_stays_as_it_is(cli, model, small, tmp_path):
    before = tree(model)
    assert cli("compress", model, "-q", "-o", tmp_path / "out", "--layers", 2, *small).code == 0
    assert tree(model) == before
