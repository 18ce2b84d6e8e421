"""Against numpy, by hand, and against a bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import statistics as s
from bench.quantities import Estimate

FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, min_size=1, max_size=40), st.floats(0, 100))
def test_percentile_is_numpys(values, q):
    assert s.percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-9, abs=1e-9)


def test_no_values_have_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        s.percentile([], 50)
    assert s.spread([None, None]) is None
    assert s.percentiles([[], []]) is None


def test_spread_leaves_out_failed_repeats_and_keeps_their_place():
    found = s.spread([3.0, None, 1.0, 8.0])
    assert (found.median, found.low, found.high) == (3.0, 1.0, 8.0)
    assert found.samples == (3.0, None, 1.0, 8.0)


def test_percentiles_are_of_repeats_then_the_median():
    repeats = [list(range(101)), [], [2.0 * v for v in range(101)], [3.0 * v for v in range(101)]]
    found = s.percentiles(repeats)
    assert (found.p50, found.p90, found.p99) == (100.0, 180.0, 198.0)
    assert (found.mean, found.low, found.high) == (100.0, 50.0, 150.0)
    assert found.samples == (50.0, None, 100.0, 150.0)


def test_a_speedup_is_paired():
    """The machine gets three times slower from repeat to repeat; the ratio does not see it."""
    base, pruned = [1.0, 3.0, 9.0, None], [0.8, 2.4, 7.2, 1.0]
    found = s.speedup(base, pruned, rate=False)
    assert (found.value, found.low, found.high) == pytest.approx((1.25, 1.25, 1.25))
    assert found.n == 3
    rates = s.speedup([10.0, 20.0], [11.0, 26.0], rate=True)
    assert (rates.value, rates.low, rates.high, rates.n) == pytest.approx((1.2, 1.1, 1.3, 2))
    assert s.speedup([None], [1.0], rate=False) is None


def test_retained_in_closed_form():
    """2 x 2 outcomes; the numerator's variance by hand, covariance included."""
    base = [1, 1, 1, 1, 0, 0, 1, 1]
    pruned = [1, 1, 0, 1, 0, 1, 1, 0]
    b, p = np.array(base, float), np.array(pruned, float)
    r, c = p.mean() / b.mean(), np.cov(p, b, ddof=1)
    expected = math.sqrt((c[0, 0] + r * r * c[1, 1] - 2 * r * c[0, 1]) / len(b)) / b.mean()
    found = s.retained(base, pruned)
    assert found.value == pytest.approx(5 / 6)
    assert found.stderr == pytest.approx(expected)


def test_retained_agrees_with_a_bootstrap():
    draw = np.random.default_rng(0)
    base = (draw.random(600) < 0.6).astype(float)
    pruned = np.where(draw.random(600) < 0.8, base, draw.random(600) < 0.4).astype(float)
    picks = draw.integers(0, 600, (4000, 600))
    ratios = pruned[picks].mean(1) / base[picks].mean(1)
    found = s.retained(base.tolist(), pruned.tolist())
    assert found.value == pytest.approx(pruned.mean() / base.mean())
    assert found.stderr == pytest.approx(ratios.std(), rel=0.05)


def test_what_is_the_same_is_retained_for_certain():
    assert s.retained([1, 0, 1], [1, 0, 1]) == Estimate(1.0, 0.0)
    assert s.retained([0, 0], [1, 0]) is None
    assert s.retained([2.0], [1.0]) == Estimate(0.5, None)
    with pytest.raises(ValueError, match="2 samples of the base, 1 of"):
        s.retained([1, 1], [1])


def test_mean_of_estimates():
    assert s.mean_of([]) is None
    found = s.mean_of([Estimate(0.8, 0.03), Estimate(1.0, 0.04)])
    assert (found.value, found.stderr) == pytest.approx((0.9, 0.025))
    assert s.mean_of([Estimate(0.8, 0.03), Estimate(1.0, None)]) == Estimate(0.9, None)
