"""What the check of a graph says where a comparison has nothing to compare; no export is needed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from exporters._onnx_check import Difference, _difference, _torch_logits
from exporters._onnx_graph import _small_terms_stay
from prunecomp.errors import VerificationError
from tests.exporters.record_onnx import write_model


def test_logits_that_are_all_zero():
    assert Difference(0.0, 0.0, 0.0).relative == 0.0
    assert Difference(0.0, 1e-9, 0.0).relative == math.inf
    assert Difference(0.5, 0.25, 2.0).relative == 0.25


def test_what_is_no_number():
    nan, infinite = torch.tensor([1.0, math.nan]), torch.tensor([3.0, -math.inf])
    with pytest.raises(VerificationError, match="torch itself gives logits that are NaN"):
        _difference(torch.ones(2), nan)
    with pytest.raises(VerificationError, match="ONNX Runtime gives logits that are not finite"):
        _difference(nan, torch.ones(2))
    assert _difference(torch.tensor([2.0, -math.inf]), infinite) == (1.0, 3.0)


def test_a_model_that_transformers_does_not_run():
    def reference(**inputs):
        raise UnboundLocalError("cannot access local variable 'long_inv_freq'")

    with pytest.raises(VerificationError, match=r"does not run the model \(cannot access"):
        _torch_logits(reference, input_ids=torch.ones(1, 1))


@pytest.mark.parametrize(("term", "wanted"), [(1e-20, 0.0), (0.0, math.nan)])
def test_the_optimiser_keeps_what_prevents_zero_by_zero(term, wanted):
    """DeepSeek-V3 divides the scores of a router by their sum and 1e-20."""
    import onnxruntime

    class Share(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (x.sum(-1, keepdim=True) + term)

    with _small_terms_stay():
        program = torch.onnx.export(Share(), (torch.zeros(1, 4),), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 4), np.float32)})
    np.testing.assert_array_equal(found, np.full((1, 4), wanted, np.float32))


def test_a_trace_that_fails_is_told_on_one_short_line(tmp_path, monkeypatch, capsys):
    from transformers.exporters.exporter_onnx import OnnxExporter

    import cli

    def fails(*args, **kwargs):
        raise RuntimeError("guard " * 500 + "\n" + "graph():\n    %x\n" * 100)

    monkeypatch.setattr(OnnxExporter, "export", fails)
    model = write_model("llama", tmp_path / "model", 1)
    capsys.readouterr()
    assert cli.main(["export", str(model), "--format", "onnx", "-o", str(tmp_path / "out"), "-q"])
    said = capsys.readouterr().err
    assert said.startswith("error: llama: transformers' exporter cannot trace it (guard guard")
    assert said.count("\n") == 1
    assert len(said) < 300
    assert not (tmp_path / "out").exists()
