"""vLLM loads what `compress` writes, and its greedy tokens are transformers' greedy tokens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import cli

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "tiny-python-lm"
NEW_TOKENS = 12
PROMPTS = [[5, 6, 7, 8, 9, 10], [200, 100, 50]]
# 32 is the smallest head dimension that vLLM's CPU attention takes.
SHAPE = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
MODELS = {
    "llama-with-biases": (
        LlamaForCausalLM,
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True},
    ),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    # vLLM's Qwen2 takes the head dimension from the hidden size.
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3-tied": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
}


def _make(path: Path, name: str) -> Path:
    model_class, config_class, fields = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    model = model_class(config_class(**{**SHAPE, **fields}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.1 + ("norm" in key))
    model.save_pretrained(path)
    return path


def _greedy(model_dir: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
            attention_mask=torch.ones_like(ids), pad_token_id=0,
        )  # fmt: skip
        answers.append(out[0, len(prompt) :].tolist())
    return answers


@pytest.fixture(scope="module")
def compressed(tmp_path_factory) -> dict[str, Path]:
    """The directories that `compress` wrote, by name; folds and depths vary."""
    root = tmp_path_factory.mktemp("served")
    tokens = root / "tokens.safetensors"
    torch.manual_seed(0)
    save_file({"input_ids": torch.randint(0, 256, (4, 32))}, tokens)
    outputs = {}
    for number, name in enumerate(MODELS):
        source = _make(root / f"source-{name}", name)
        outputs[name] = root / name
        options = [
            "--layers",
            str(1 + number % 2),
            "--fold",
            ("downstream", "upstream")[number % 2],
        ]
        assert cli.main(
            ["compress", str(source), "-o", str(outputs[name]), "--calibration", str(tokens),
             "--dtype", "float32", "--quiet", "--protect-last", "2", *options]
        ) == 0  # fmt: skip
    outputs["tiny-python-lm"] = root / "tiny"
    assert cli.main(
        ["compress", str(TINY), "-o", str(outputs["tiny-python-lm"]), "--layers", "4", "--quiet",
         "--samples", "4", "--seq-len", "256", "--evaluation", "none"]
    ) == 0  # fmt: skip
    return outputs


@pytest.mark.vllm
def test_greedy_tokens_equal_those_of_transformers(compressed):
    request = {
        "models": [str(path) for path in compressed.values()],
        "prompts": PROMPTS,
        "new_tokens": NEW_TOKENS,
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_greedy.py"))],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout[done.stdout.index("ANSWER") + len("ANSWER") :])
    expected = {name: _greedy(path) for name, path in compressed.items()}
    assert {name: answers[str(path)] for name, path in compressed.items()} == expected
