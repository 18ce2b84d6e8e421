"""The trained models of `examples`: that they are what is stated, and what is chosen on text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunecomp.calibration.data import TextSource, load_tokens
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.pipeline import PlanRequest, make_plan
from prunecomp.progress import Progress
from tests.oracles.prune import prune

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = {
    "tiny-python-lm": {"model_type": "llama", "num_hidden_layers": 16, "tied": False},
    "tiny-python-lm-qwen3": {"model_type": "qwen3", "num_hidden_layers": 8, "tied": True},
}


def tokens(directory: Path, samples: int, length: int, *, held_out: bool) -> torch.Tensor:
    return load_tokens(
        TextSource("python-stdlib", "text"), samples=samples, seq_len=length, seed=0,
        tokenizer_dir=directory, vocab_size=4096, max_seq_len=1024, held_out=held_out,
    ).input_ids  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def trained(request):
    return EXAMPLES / request.param, MODELS[request.param]


def test_files(trained):
    directory, shape = trained
    checkpoint = Checkpoint(directory)
    assert checkpoint.family.model_type == shape["model_type"]
    assert checkpoint.num_hidden_layers == shape["num_hidden_layers"]
    assert checkpoint.tied == shape["tied"]
    assert sum(f.stat().st_size for f in directory.iterdir()) < 32e6
    assert {spec.dtype for spec in checkpoint.index.values()} == {"BF16"}


def test_held_out_perplexity_is_about_what_the_readme_states(trained):
    """On a sample of the held-out text, so not to the digit."""
    directory, _ = trained
    stated = re.search(
        r"held-out perplexity.*?\*\*([\d.]+)\*\*", (directory / "README.md").read_text()
    )
    runs = json.loads((directory / "training.json").read_text())["runs"]
    assert float(stated[1]) == pytest.approx(runs[-1]["held_out_perplexity"], abs=0.01)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = tokens(directory, 24, 512, held_out=True)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss.exp()) == pytest.approx(float(stated[1]), rel=0.35)


@pytest.mark.parametrize("metric", ["bi", "ppl"])
def test_choice_is_that_of_the_naive_loop(trained, metric, tmp_path):
    from safetensors.torch import save_file

    directory, _ = trained
    ids = tokens(directory, 4, 96, held_out=False)
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    plan = make_plan(
        Checkpoint(directory),
        PlanRequest(layers=1, metric=metric, dtype="float32",
                    calibration=str(tmp_path / "ids.safetensors")),
        name="trained", progress=Progress(quiet=True),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    expected = prune(
        model.eval().requires_grad_(False), ids, metric=metric, strategy="iterative",
        compensation="magnitude", count=1, protect=(0, 0),
    )  # fmt: skip
    (ours,), (oracle,) = plan.rounds, expected
    # The text differs between versions of Python, so two layers may by chance be as good.
    spread = max(oracle.scores.values()) - min(oracle.scores.values())
    assert oracle.scores[ours.removed[0]] <= min(oracle.scores.values()) + 1e-4 * spread
    assert ours.scores == pytest.approx(oracle.scores, abs=1e-4 * spread)
    if ours.removed == oracle.removed:
        assert ours.factor == pytest.approx(oracle.factor, rel=1e-4)
