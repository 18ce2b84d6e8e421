"""What the model reads, from the command line: what windows begin with, and conversations."""

from __future__ import annotations

import json

import pytest

from tests.prunecomp import made_tokenizers
from tests.prunecomp.made_tokenizers import CHAT_TEMPLATE, IDS, VOCABULARY

BOS = IDS["<bos>"]


@pytest.fixture
def model(tmp_path):
    """A tiny model whose tokenizer puts a BOS in front, and an end behind."""
    from tests.oracles import tiny_models

    made = tiny_models.build("llama-bias", vocab_size=VOCABULARY)
    tiny_models.write(made, tmp_path / "model")
    return made_tokenizers.write(
        tmp_path / "model", front=["<bos>"], behind=["<eos>"], chat_template=CHAT_TEMPLATE
    )


@pytest.fixture
def plan(cli, model, small, tmp_path):
    """``plan(*options)``: the plan file's content."""

    def run(*options, text=small):
        ended = cli("plan", model, "-o", tmp_path / "plan.json", "--overwrite", "--layers", 2,
                    "--evaluation", "none", *text, *options)  # fmt: skip
        assert ended.code == 0, ended.err
        return json.loads((tmp_path / "plan.json").read_text()), ended

    return run


def test_prefix_is_in_the_plan_and_a_replay_is_exact(plan, tmp_path):
    saved = tmp_path / "tokens.safetensors"
    found, ended = plan("--save-tokens", saved)
    assert (found["calibration"]["bos"], found["calibration"]["prefix"]) == ("auto", [BOS])
    assert f"each beginning with token {BOS}" in ended.err
    again, _ = plan(text=["--calibration", saved])
    assert again["rounds"] == found["rounds"]
    assert again["calibration"]["prefix"] == [BOS]
    assert again["calibration"]["sha256"] == found["calibration"]["sha256"]


def test_bos_none_is_what_published_code_does(plan, tmp_path, model):
    """Every token counts, and the choice is that of the published procedure on the same tokens."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from bench.naive import prune

    saved = tmp_path / "tokens.safetensors"
    found, _ = plan("--bos", "none", "--save-tokens", saved)
    assert found["calibration"]["prefix"] == []
    ids = load_file(saved)["input_ids"].long()
    assert not (ids == BOS).any()
    source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).requires_grad_(False)
    cuts = prune(source, ids, "bi", 2)
    assert [list(c.removed) for c in cuts] == [r["removed"] for r in found["rounds"]]
    factors = [r["factor"] for r in found["rounds"]]
    assert [c.factor for c in cuts] == pytest.approx(factors, rel=1e-4)
    auto, _ = plan()
    assert auto["rounds"] != found["rounds"]


def test_evaluation_begins_with_it_too(plan, text, tmp_path, model):
    import torch
    from transformers import AutoModelForCausalLM

    from prunecomp.calibration.data import TextSource, load_tokens

    found, _ = plan("--evaluation", text)
    tokens = load_tokens(
        TextSource(str(text)), tokenizer_dir=model, vocab_size=VOCABULARY, samples=64, seq_len=32
    )
    labels = tokens.input_ids.clone()
    assert (labels[:, 0] == BOS).all()
    labels[:, 0] = -100
    source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        loss = source(input_ids=tokens.input_ids, labels=labels).loss
    (base,) = (v["base"] for k, v in found["perplexity"].items() if k.startswith("evaluation"))
    assert base == pytest.approx(float(loss.exp()), rel=1e-4)


def test_conversations(plan, tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "!"}]}
        for i in range(30)
    ]
    file = tmp_path / "chat.JSONL"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, ended = plan(text=["--calibration", file, "--samples", 3, "--seq-len", 60])
    assert found["calibration"]["options"]["chat"] == "messages"
    assert "note: chat: " in ended.err
    assert "padding, which counts nowhere" in ended.err


def test_a_dry_run_tells(cli, model, small, tmp_path):
    ended = cli("plan", model, "-o", tmp_path / "p.json", "--layers", 1, *small, "--dry-run",
                "--json")  # fmt: skip
    assert json.loads(ended.out)["calibration"]["prefix"] == [BOS]


def test_an_old_plan_is_read(plan, cli, model, tmp_path):
    found, _ = plan("--bos", "none")
    for key in ("bos", "prefix"):
        del found["calibration"][key]
    (tmp_path / "old.json").write_text(json.dumps(found))
    ended = cli("apply", model, tmp_path / "old.json", "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "out" / "prunecomp.json").read_text())
    assert written["plan"]["calibration"]["prefix"] == []


@pytest.mark.parametrize("prefix", ["x", [1.5], ["a"], 3, {"a": 1}])
def test_a_damaged_prefix(prefix, plan, cli, model, tmp_path):
    found, _ = plan()
    found["calibration"]["prefix"] = prefix
    (tmp_path / "bad.json").write_text(json.dumps(found))
    ended = cli("apply", model, tmp_path / "bad.json", "-o", tmp_path / "out")
    assert ended.code == 2
    assert "bad.json: malformed plan" in ended.err


def test_a_tokenizer_without_a_bos(refused, model, small, tmp_path):
    made_tokenizers.write(model, bos_token=None)
    refused("plan", model, "-q", "-o", tmp_path / "p.json", "--layers", 1, *small, "--bos", "each",
            says=("--bos each", "has no BOS token", "leave --bos away"))  # fmt: skip
