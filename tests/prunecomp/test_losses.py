"""Losses by pieces against torch's cross entropy in float64."""

from types import SimpleNamespace

import pytest
import torch

from prunecomp.calibration.losses import sample_losses

VOCABULARY = 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 200.0])  # exp(200) is no float32
def test_losses_are_those_of_torch_in_float64(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 300, VOCABULARY, generator=generator) * scale).to(dtype)
    logits[:, :, 7] = -torch.inf  # as models have it that mask a part of the vocabulary
    ids = torch.randint(8, VOCABULARY, (3, 300), generator=generator)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    model = SimpleNamespace(vocabulary=VOCABULARY, logits=lambda hidden, _: hidden.clone())
    found = sample_losses(model, logits, ids)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected.view(3, -1).sum(dim=1), rtol=1e-6)
