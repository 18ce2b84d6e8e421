"""vLLM's kernels, which round activations, agree with what the written files stand for."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.pipeline import apply_plan
from tests.families import tiny
from tests.families.test_conformance import QUIET, plan_for, reload
from tests.oracles import quantised

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def log_probabilities(directory, ids):
    with torch.no_grad():
        logits = reload(directory)(ids).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize("name", ["ct-int8-w8a8", "gptq-4", "awq"])
def test_vllm_agrees(name, tmp_path, monkeypatch, record_property):
    """In bfloat16, which its integer kernels need on a CPU; the factors show far more clearly."""
    monkeypatch.setattr(quantised, "GROUP", 32)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    model = tiny.build("llama", 0, **sizes, rms_norm_eps=1e-6)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    scheme = quantised.schemes()[name]()
    quantised.quantise_directory(tmp_path / "model", scheme)
    checkpoint = Checkpoint(tmp_path / "model")
    for output, factor in (("out", 0.25), ("wrong", 1.0)):
        plan = plan_for(checkpoint, "downstream", [([2, 3], factor)])
        apply_plan(checkpoint, plan, tmp_path / output, progress=QUIET)
        quantised.decode_directory(tmp_path / output, scheme, tmp_path / f"{output}-dense")
    ids = tiny.tokens(4, 24)
    request = {"model": str(tmp_path / "out"), "prompts": ids.tolist()}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "vllm_logprobs.py"], input=json.dumps(request),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.tensor(json.loads(done.stdout.rpartition("ANSWER")[2]))
    right = (found - log_probabilities(tmp_path / "out-dense", ids)).abs().mean()
    wrong = (found - log_probabilities(tmp_path / "wrong-dense", ids)).abs().mean()
    record_property("mean differences, with and without the factor", (float(right), float(wrong)))
    assert right < 0.06
    assert wrong > 5 * right
