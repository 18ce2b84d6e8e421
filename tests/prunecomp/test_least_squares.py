"""The scalar of least squares, against the formula as it is written."""

from __future__ import annotations

import json

import pytest
import torch

from prunecomp.calibration.counted import Counted
from prunecomp.compensators import COMPENSATORS
from prunecomp.compensators.base import Context
from prunecomp.errors import NumericError
from tests.families import tiny
from tests.oracles import tiny_models
from tests.oracles.stream import boundaries
from tests.prunecomp.test_statistics import runner_of


def formula(x: torch.Tensor, h: torch.Tensor) -> float:
    """Over tokens [tokens, d], of which the 0.1 % longest are left out."""
    x, h = x.double(), h.double()
    kept = torch.tensor(sorted(range(len(x)), key=lambda t: float(x[t].norm()))
                        [: len(x) - len(x) // 1000])  # fmt: skip
    above = below = 0.0
    for t in kept.tolist():
        weight = 1 / float(x[t] @ x[t])
        above += weight * float(x[t] @ h[t])
        below += weight * float(x[t] @ x[t])
    return above / below


@pytest.mark.parametrize("span", [(0, 1), (3, 5), (7, 8)])
@pytest.mark.parametrize("name", ["llama-bias", "qwen3-tied"])
def test_formula(name, span, tiny_model, tiny_directory, tiny_ids):
    """The first token of each window is left out."""
    runner = runner_of(tiny_directory(name), tiny_ids)
    found = COMPENSATORS.get("least-squares").repair(Context(runner, None, *span))
    x, h = (boundaries(tiny_model(name), tiny_ids)[p][:, 1:].flatten(0, 1) for p in span)
    assert found.factor == pytest.approx(formula(x, h), rel=1e-5)
    plain = COMPENSATORS.get("magnitude").repair(Context(runner, None, *span))
    assert found.factor != pytest.approx(plain.factor, rel=1e-3)


def test_long_tokens_are_left_out(tmp_path):
    """2400 tokens, two of which are far longer than all others and would decide."""
    model = tiny.build("llama", 0, num_hidden_layers=2)
    ids = torch.randint(2, 96, (60, 41), generator=torch.Generator().manual_seed(1))
    ids[7, 5] = ids[30, 9] = 1
    with torch.no_grad():
        model.model.embed_tokens.weight[1] *= 1e3
    model.save_pretrained(tmp_path)
    runner = runner_of(tmp_path, ids, batch_size=16)
    found = COMPENSATORS.get("least-squares").repair(Context(runner, None, 0, 2)).factor
    streams = dict(runner.boundaries())
    x, h = (torch.cat(list(streams[p]))[:, 1:].flatten(0, 1) for p in (0, 2))
    assert found == pytest.approx(formula(x, h), rel=1e-6)
    everything = (x * h).double().sum(1) / (x * x).double().sum(1)
    assert found != pytest.approx(float(everything.mean()), rel=5e-6)


def test_prefix_and_padding(tiny_model, tiny_directory, tiny_ids):
    """A prefix counts nowhere, so the token behind it is an ordinary one."""
    mask = torch.ones(tiny_ids.shape, dtype=torch.bool)
    mask[:, :1] = False
    mask[1, 6:] = False
    runner = runner_of(tiny_directory("llama-bias"), tiny_ids)
    runner._counted = [Counted(1, part[:, 1:]) for part in mask.split(2)]
    found = COMPENSATORS.get("least-squares").repair(Context(runner, None, 2, 3))
    x, h = (boundaries(tiny_model("llama-bias"), tiny_ids)[p][mask] for p in (2, 3))
    assert found.factor == pytest.approx(formula(x, h), rel=1e-5)


def test_streams_that_have_nothing_in_common(tmp_path):
    """A layer that turns the stream around has no factor."""
    model = tiny_models.build("llama-bias")
    with torch.no_grad():
        layer = model.model.layers[3]
        layer.mlp.down_proj.bias.fill_(0.0)
    tiny_models.write(model, tmp_path / "model")
    runner = runner_of(tmp_path / "model", tiny_models.tokens())
    for boundary, batches in runner.boundaries():
        runner.cache.put(boundary, [-h if boundary == 4 else h for h in batches])
    with pytest.raises(NumericError, match="nothing in common; use --compensation none"):
        COMPENSATORS.get("least-squares").repair(Context(runner, None, 3, 4))


def test_command_line(text_model, tiny_tokens, tmp_path, capsys):
    """By its name with a hyphen, in help and plan."""
    import cli

    common = ["-q", "--layers", "2", "--calibration", str(tiny_tokens)]
    path = tmp_path / "plan.json"
    code = cli.main(
        ["plan", str(text_model), *common, "--compensation", "least-squares", "-o", str(path)]
    )
    assert code == 0
    plan = json.loads(path.read_text())
    assert plan["recipe"]["compensation"] == "least-squares"
    assert all(r["factor"] != 1.0 for r in plan["rounds"])
    assert cli.main(["plan", str(text_model), *common, "--compensation", "least_squares", "-o",
                     str(tmp_path / "x.json")]) == 2  # fmt: skip
    assert "least-squares" in capsys.readouterr().err
