"""The statistics, on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prunecomp.calibration.stats import cosine_sums, magnitude_ratio, magnitudes, token_norms
from prunecomp.errors import NumericError
from tests.oracles import stream

# one sample, two tokens, two channels
BEFORE = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
AFTER = torch.tensor([[[4.0, 3.0], [0.0, -2.0]]])


def test_cosine_over_channels():
    """Tokens: (3,4).(4,3)/25 = 0.96 and 0."""
    assert float(cosine_sums(BEFORE, AFTER)) == pytest.approx(0.96)
    assert stream.mean_cosine_over_tokens(BEFORE, AFTER) == pytest.approx(0.48)


def test_cosine_over_the_sequence():
    """Channels: (3,1).(4,0)/(sqrt10*4) and (4,0).(3,-2)/(4*sqrt13)."""
    expected = 12 / (math.sqrt(10) * 4) + 12 / (4 * math.sqrt(13))
    assert float(cosine_sums(BEFORE, AFTER, axis="sequence")) == pytest.approx(expected)
    assert stream.mean_cosine_over_channels(BEFORE, AFTER) == pytest.approx(expected / 2)


def test_magnitude_ratio():
    """Means over tokens: (2, 2) before and (2, 2.5) after; ratios 1 and 1.25."""
    before, after = magnitudes(BEFORE), magnitudes(AFTER)
    assert before.tolist() == [[2.0, 2.0]]
    assert after.tolist() == [[2.0, 2.5]]
    assert magnitude_ratio(before, after) == pytest.approx(1.125)
    assert stream.magnitude_factor(BEFORE, AFTER) == pytest.approx(1.125)


def test_ratio_is_a_mean_of_ratios():
    """Not a ratio of means: samples of 1 -> 2 and 10 -> 10 give 1.5, not 12/11."""
    assert magnitude_ratio(torch.tensor([[1.0], [10.0]]), torch.tensor([[2.0], [10.0]])) == 1.5


def test_dead_channels_have_no_ratio():
    before, after = torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0, 3.0]])
    assert magnitude_ratio(before, after) == 1.5
    with pytest.raises(NumericError, match="zero"):
        magnitude_ratio(torch.zeros(1, 2), after)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(value):
    with pytest.raises(NumericError, match="not finite"):
        magnitude_ratio(torch.tensor([[value]]), torch.ones(1, 1))
    with pytest.raises(NumericError, match="not finite"):
        magnitude_ratio(torch.ones(1, 1), torch.tensor([[value]]))


def test_half_precision_is_accumulated_in_single():
    """The mean of 4096 bf16 ones that alternate with 1/256 more would be lost in bf16."""
    hidden = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    hidden[:, ::2] += 2.0**-7
    assert float(magnitudes(hidden)) == pytest.approx(1 + 2.0**-8, rel=1e-6)


def test_long_and_wide_streams():
    """More than one piece per sample, samples that differ, and a sample alone as among others."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(3, 90, 4000, generator=generator)
    after = before + torch.randn(3, 90, 4000, generator=generator) * torch.tensor(
        [[[0.1]], [[1.0]], [[3.0]]]
    )
    magnitude, norms = magnitudes(after), token_norms(after)
    assert torch.allclose(magnitude, after.abs().mean(dim=1), rtol=1e-5)
    assert torch.allclose(norms, after.norm(dim=2), rtol=1e-5)
    both = torch.cat([before, after]).double()
    x, y = both[:3], both[3:]
    cosines = (x * y).sum(2) / (x.norm(dim=2) * y.norm(dim=2))
    found = cosine_sums(before, after, (token_norms(before), norms))
    assert torch.allclose(found, cosines.sum(1), rtol=1e-6)
    assert torch.equal(cosine_sums(before[1:2], after[1:2]), found[1:2])
    assert torch.equal(magnitudes(after[2:]), magnitude[2:])


@pytest.mark.parametrize("name", ["llama-bias", "qwen3-tied"])
def test_oracle_boundaries(name, tiny_model, tiny_ids):
    """The oracle's own: layer p maps boundary p to p+1, and the last one is not normed."""
    model = tiny_model(name)
    hidden = stream.boundaries(model, tiny_ids)
    own = model(input_ids=tiny_ids, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[0], model.model.embed_tokens(tiny_ids))
    assert torch.equal(own[-1], model.model.norm(hidden[-1]))
    assert not torch.allclose(own[-1], hidden[-1])
    assert torch.equal(model(input_ids=tiny_ids).logits, model.lm_head(own[-1]))
