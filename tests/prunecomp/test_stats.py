"""The statistics, on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prunecomp.calibration.stats import channel_magnitude, cosine_sum, magnitude_ratio
from prunecomp.errors import NumericError
from tests.oracles import stream

# one sample, two tokens, two channels
BEFORE = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
AFTER = torch.tensor([[[4.0, 3.0], [0.0, -2.0]]])


def test_cosine_over_channels():
    """Tokens: (3,4).(4,3)/25 = 0.96 and 0."""
    assert float(cosine_sum(BEFORE, AFTER)) == pytest.approx(0.96)
    assert stream.mean_cosine_over_tokens(BEFORE, AFTER) == pytest.approx(0.48)


def test_cosine_over_the_sequence():
    """Channels: (3,1).(4,0)/(sqrt10*4) and (4,0).(3,-2)/(4*sqrt13)."""
    expected = 12 / (math.sqrt(10) * 4) + 12 / (4 * math.sqrt(13))
    assert float(cosine_sum(BEFORE, AFTER, axis="sequence")) == pytest.approx(expected)
    assert stream.mean_cosine_over_channels(BEFORE, AFTER) == pytest.approx(expected / 2)


def test_magnitude_ratio():
    """Means over tokens: (2, 2) before and (2, 2.5) after; ratios 1 and 1.25."""
    before, after = channel_magnitude(BEFORE), channel_magnitude(AFTER)
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
    assert float(channel_magnitude(hidden)) == pytest.approx(1 + 2.0**-8, rel=1e-6)


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
