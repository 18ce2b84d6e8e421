"""ONNX of models whose rotary frequencies change with the length, against transformers.

Configs are spelt as published repositories spell them, old and new.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.exporters.record_onnx import SWITCH
from tests.families import tiny

#: A norm of this token's embedding divides zero by its eps.
ZERO = 5
FACTORS = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 6.0]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Phi-4-mini: three quarters of a head of 8 are rotated
    "longrope": ("phi3", {
        "rope_scaling": {"type": "longrope", **FACTORS}, "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": SWITCH, "rope_theta": 10000.0,
    }),
    "dynamic": ("llama", {
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        "max_position_embeddings": SWITCH,
        # what calls return is not the exporter's business
        "output_hidden_states": True, "output_attentions": True, "return_dict": False,
        "use_cache": False,
    }),
    # eps: below 1e-8, which the optimiser of onnxscript takes for zero
    "alpha": ("hunyuan_v1_dense", {
        "rope_scaling": {
            "type": "dynamic", "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0,
            "mscale": 1.0, "mscale_all_dim": 1.0,
        },
        "rope_theta": 10000.0, "max_position_embeddings": SWITCH, "rms_norm_eps": 1e-12,
    }),
}  # fmt: skip


def write(name: str, directory: Path) -> Path:
    family, published = CASES[name]
    model = tiny.build(family, 0, num_hidden_layers=1)
    model.model.embed_tokens.weight[ZERO] = 0.0
    model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["rope_parameters"]
    (directory / "config.json").write_text(json.dumps(config | published))
    (directory / "generation_config.json").write_text('{"eos_token_id": [7, 90]}')
    return directory


@dataclass(frozen=True)
class Exported:
    model: Path
    graph: Path

    @cached_property
    def session(self) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(self.graph / "model.onnx")

    def torch(self) -> torch.nn.Module:
        """A new one: transformers remembers the longest text that it has seen."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            self.model, return_dict=True, output_hidden_states=False, output_attentions=False,
        ).eval()  # fmt: skip

    def run(self, ids: torch.Tensor, past: dict[str, np.ndarray]) -> np.ndarray:
        """Logits of further tokens; `past` is brought up to date."""
        shape = next(o.shape for o in self.session.get_outputs() if o.name != "logits")
        names = [value.name for value in self.session.get_inputs() if "past" in value.name]
        for name in names:
            past.setdefault(name, np.zeros((len(ids), shape[1], 0, shape[3]), np.float32))
        before = past[names[0]].shape[2]
        total = before + ids.shape[1]
        feed = {
            "input_ids": ids.numpy(),
            "attention_mask": np.ones((len(ids), total), np.int64),
            "position_ids": np.arange(before, total)[None].repeat(len(ids), 0),
        }
        outputs = [value.name for value in self.session.get_outputs()]
        made = dict(zip(outputs, self.session.run(outputs, feed | past), strict=True))
        past.update({name: made[name.replace("past_key_values", "present")] for name in names})
        return made["logits"]

    def greedy(self, ids: torch.Tensor, new: int) -> list[list[int]]:
        past: dict[str, np.ndarray] = {}
        step, made = ids, []
        for _ in range(new):
            step = torch.from_numpy(self.run(step, past)[:, -1:].argmax(-1))
            made.append(step)
        return torch.cat(made, 1).tolist()


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory) -> Exported:
    import cli

    root = tmp_path_factory.mktemp(request.param)
    model = write(request.param, root / "model")
    assert cli.main(["export", str(model), "--format", "onnx", "-o", str(root / "out"), "-q"]) == 0
    return Exported(model, root / "out")


def text(length: int) -> torch.Tensor:
    ids = tiny.tokens(2, length)
    ids[:, 1] = ZERO
    return ids


def close(found: np.ndarray, wanted: torch.Tensor) -> bool:
    return float((torch.from_numpy(found) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("length", [SWITCH - 1, SWITCH, SWITCH + 1, 2 * SWITCH])
def test_a_text_at_once_on_both_sides_of_the_switch(exported, length):
    with torch.no_grad():
        wanted = exported.torch()(input_ids=text(length), use_cache=False).logits
    assert close(exported.run(text(length), {}), wanted)


def test_the_frequencies_do_change(exported):
    """Without which the test above could not fail."""
    module = exported.torch().model.rotary_emb
    before = module.inv_freq.clone()
    module(torch.zeros(1), torch.arange(2 * SWITCH)[None])
    assert float((module.inv_freq - before).abs().max()) > 0.1 * float(before[1:].min())


def test_token_by_token_across_the_switch(exported):
    """As torch's own forward pass does it: keys stay as they were rotated."""
    ids, model, past, cache = text(SWITCH + 4), exported.torch(), {}, None
    for begin, end in ((0, SWITCH - 2), *((n, n + 1) for n in range(SWITCH - 2, SWITCH + 4))):
        with torch.no_grad():
            wanted = model(input_ids=ids[:, begin:end], past_key_values=cache, use_cache=True)
        cache = wanted.past_key_values
        assert close(exported.run(ids[:, begin:end], past), wanted.logits), end


@pytest.mark.parametrize("length", [4, SWITCH + 4], ids=["below", "above"])
def test_greedy_tokens(exported, length):
    wanted = exported.torch().generate(
        text(length), attention_mask=torch.ones(2, length), do_sample=False, max_new_tokens=8,
        eos_token_id=None, pad_token_id=0, use_cache=True,
    )  # fmt: skip
    assert exported.greedy(text(length), 8) == wanted[:, length:].tolist()


def test_the_end_of_text_is_that_of_the_generation_config(exported):
    found = json.loads((exported.graph / "genai_config.json").read_text())["model"]
    assert found["eos_token_id"] == [7, 90]


def test_the_outputs_are_logits_and_cache(exported):
    names = {value.name for value in exported.session.get_outputs()}
    assert names == {"logits", "present.0.key", "present.0.value"}


def test_the_check_looks_at_both_sides(tmp_path, monkeypatch, capsys):
    import cli
    from exporters import _onnx_rope

    monkeypatch.setattr(_onnx_rope, "_frequencies", lambda module, *_: module.original_inv_freq)
    model = write("dynamic", tmp_path / "model")
    code = cli.main(["export", str(model), "--format", "onnx", "-o", str(tmp_path / "out")])
    assert code == 4
    assert "differ by" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
