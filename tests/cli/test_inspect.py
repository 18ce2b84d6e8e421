"""What `inspect` tells of a model before anything is loaded."""

from __future__ import annotations

import json
import sys

import pytest

from bench.compress_speed import printed_and_peak
from tests.cli.support import DEPTH, REPOSITORY


@pytest.fixture
def inspected(cli, small):
    """``inspected(model, ...)``: the document."""

    def run(model, *options) -> dict:
        ended = cli("inspect", model, *small, *options, "--json")
        assert (ended.code, ended.err) == (0, "")
        return json.loads(ended.out)

    return run


def test_facts(inspected, model):
    found = inspected(model)
    assert found["model_type"] == "llama"
    assert found["num_hidden_layers"] == DEPTH
    assert found["bytes_by_dtype"] == {"BF16": found["weight_bytes"]}
    assert found["weight_bytes"] == 2 * found["parameters"]
    assert found["quantised"] is None
    assert found["removable"]["layers"] == list(range(DEPTH))
    assert found["removable"]["at_most"] == DEPTH - 1
    assert found["config_fields"] == ["num_hidden_layers"]


def test_tensors_that_would_be_scaled(inspected, model):
    """Behind the first layer, and before the last one, with what starts the stream."""
    found = inspected(model)["folds"]
    writers = dict.fromkeys(["self_attn.o_proj.weight", "mlp.down_proj.weight"], DEPTH - 1)
    assert found["downstream"]["layers"] == writers
    assert found["downstream"]["outside"] == {}
    assert found["upstream"]["layers"] == writers
    assert found["upstream"]["outside"] == {"model.embed_tokens.weight": 1}


def test_what_is_told_is_what_is_written(inspected, cli, model, small, tmp_path):
    """As many tensors are changed by a cut at the end as are told."""
    told = inspected(model)["folds"]["upstream"]
    options = ["--layers", 1, "--fold", "upstream", "--protect-first", DEPTH - 1]
    assert cli("compress", model, "-q", "-o", tmp_path / "out", *options, *small).code == 0
    manifest = json.loads((tmp_path / "out" / "prunecomp.json").read_text())
    assert manifest["edited_tensors"] == sum({**told["layers"], **told["outside"]}.values())


def test_tied_head(inspected, edit_config):
    found = inspected(edit_config(tie_word_embeddings=True))
    assert found["tied_head"]
    assert found["head_in_files"]
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert set(found["folds"]["upstream"]["outside"]) == outside


def test_quantised(cli, tmp_path):
    """The scales are told, and that the weights are computed from what the files hold."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.families import tiny

    tiny.build("llama", 0).to(torch.bfloat16).save_pretrained(tmp_path / "fp8")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    projections = [name for name in tensors if "_proj." in name]
    for name in projections:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(-(-rows // 16), -(-columns // 16))
    save_file(tensors, tmp_path / "fp8" / "model.safetensors", metadata={"format": "pt"})
    tokens = tmp_path / "tokens.safetensors"  # this model has no tokenizer
    save_file({"input_ids": torch.arange(64).view(2, 32)}, tokens)
    ended = cli("inspect", tmp_path / "fp8", "--calibration", tokens, "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert found["quantised"] == "fp8"
    assert set(found["folds"]["downstream"]["layers"]) == {
        "self_attn.o_proj.weight_scale_inv", "mlp.down_proj.weight_scale_inv",
    }  # fmt: skip
    assert found["parameters"] == sum(
        tensor.numel() for name, tensor in tensors.items() if not name.endswith("scale_inv")
    )


@pytest.mark.parametrize(
    ("options", "layers", "why"),
    [
        (["--metric", "mag"], [], "--metric mag spares them"),
        (["--metric", "mag", "--protect-first", "0"], [0, 1, 2, 3], ""),
        (["--protect-first", "2", "--protect-last", "1"], [2, 3, 4], ""),
    ],
)
def test_protected_layers(inspected, model, options, layers, why):
    found = inspected(model, *options)["removable"]
    assert found["layers"] == layers
    assert found["at_most"] == len(layers)
    assert why in found["protected_reason"]


def test_runs_and_layers_that_are_dropped(cli, tmp_path):
    from tests.families import tiny

    tiny.build("gpt_oss", 0).save_pretrained(tmp_path / "gpt_oss")
    ended = cli("inspect", tmp_path / "gpt_oss")
    assert (ended.code, ended.err) == (0, "")
    assert "0-5 may go, at most 4, in runs of 2 (vLLM gives every second layer" in ended.out
    assert "mlp.experts.down_proj_bias" in ended.out


def test_to_read(cli, model, small):
    ended = cli("inspect", "../model", *small)
    assert (ended.code, ended.err) == (0, "")
    assert "layers        0-5 may go, at most 5" in ended.out
    assert "              ".join(["", "     5 x self_attn.o_proj.weight"]) in ended.out
    assert "4 x 32 tokens of" in " ".join(ended.out.split())
    assert max(map(len, ended.out.splitlines())) <= 100 + len(small[1])  # a path is not broken


def test_no_weights_are_read(inspected, model, monkeypatch):
    from prunecomp.checkpoint.reader import Checkpoint

    def read(*arguments):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Checkpoint, "__getitem__", read)
    assert inspected(model)["memory"]["bytes"] > 0


def test_without_a_tokenizer(cli, refused, model, small):
    """What cannot be read is told; the rest is for a text of the size that was asked for."""
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    ended = cli("inspect", model, "--samples", 4, "--seq-len", 32, "--json")
    assert (ended.code, ended.err) == (0, "")
    memory = json.loads(ended.out)["memory"]
    assert "tokenizer" in memory["text"]["unreadable"]
    assert (memory["text"]["samples"], memory["text"]["seq_len"]) == (4, 32)
    assert memory["bytes"] == sum(memory["parts"].values())
    refused("inspect", model, *small, says="tokenizer")


def test_memory_follows_what_is_asked_for(inspected, model):
    few, many = inspected(model), inspected(model, "--samples", "160")
    cache = [found["memory"]["parts"]["activation cache"] for found in (few, many)]
    assert cache == [n * 32 * 32 * 2 * (DEPTH + 1) for n in (4, 160)]
    wide = inspected(model, "--dtype", "float32")["memory"]["parts"]
    assert wide["weights"] == 2 * few["memory"]["parts"]["weights"]
    assert "gradients" in inspected(model, "--metric", "taylor")["memory"]["moments"]


def test_a_tied_head_counts_once(inspected, text_model):
    """Although it is looked up for the embeddings, and multiplied for the losses."""
    found = inspected(text_model, "--metric", "ppl", "--dtype", "float32")
    assert found["tied_head"]
    assert found["memory"]["parts"]["weights"] == 4 * found["parameters"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metric", "bii"], "did you mean 'bi'"),
        (["--device", "gpu"], "use auto, cpu or cuda"),
        (["--dtype", "bf16"], "choose from auto"),
        (["--samples", "0"], "give larger --samples"),
        (["--seq-len", "-5"], "give larger --samples or --seq-len"),
        (["--seq-len", "65"], "context of 64"),
        (["--calibration", "nope.txt"], "nope.txt"),
    ],
)
def test_wrong_options(refused, model, options, says):
    refused("inspect", model, *options, says=says)


def test_wrong_models(refused, model, edit_config, tmp_path):
    refused("inspect", tmp_path / "nope", says="no such directory")
    refused("inspect", model / "config.json", says="is not a directory")
    refused("inspect", edit_config(model_type="jamba"), says="follows from their number")
    refused("inspect", edit_config(model_type="llama", num_attention_heads=0), says="config")
    (model / "model.safetensors").write_bytes(b"x")
    refused("inspect", edit_config(num_attention_heads=4), says="damaged safetensors file")


def test_without_network(warm, elsewhere):
    from tests.cli.test_talk import OFFLINE

    ended = warm.start(["inspect", "owner-x/name-y"], cwd=elsewhere, first=OFFLINE).end()
    assert (ended.code, ended.out) == (2, "")
    assert "and the network" in ended.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts as Linux does")
def test_memory_is_what_compress_then_uses(tmp_path):
    """Within a fifth, of which the interpreter and its libraries are less than three quarters."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=32000, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    save_file({"input_ids": torch.randint(32000, (8, 512))}, tmp_path / "tokens.safetensors")
    options = [tmp_path / "model", "--calibration", tmp_path / "tokens.safetensors",
               "--device", "cpu"]  # fmt: skip

    def run(*arguments) -> tuple[str, int]:
        command = [str(REPOSITORY / "cli.py"), *map(str, arguments)]
        return printed_and_peak(command, threads=1, what=arguments[0])

    told = json.loads(run("inspect", *options, "--json")[0])["memory"]
    _, used = run("compress", *options, "--layers", "1", "-q", "-o", tmp_path / "out")
    assert told["parts"]["interpreter, libraries, text"] < used * 3 / 4
    assert told["bytes"] == pytest.approx(used, rel=0.2)


def test_memory_counts_the_text(inspected, model, tmp_path):
    """A line is in memory as a whole while it is read; a large file of short ones is not."""
    moments = []
    for name, lines in (("short", 50_000), ("long", 1)):
        text = "def f(x):\n    return x + 1\n" * (1_500_000 // lines)
        file = tmp_path / f"{name}.jsonl"
        file.write_text((json.dumps({"text": text}) + "\n") * lines)
        found = inspected(model, "--calibration", file)["memory"]
        assert found["text"]["prefix"] == []
        moments.append(found["moments"]["reading"])
        size = file.stat().st_size
    assert size > 40_000_000
    assert moments[1] - moments[0] > 2 * size
