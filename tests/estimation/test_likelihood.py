"""One prompt by likelihood: the line against statsmodels, and what the bending path makes of odd counts."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from lpe_jax.estimation.likelihood import bend_likelihood, line_likelihood, path_slope
from lpe_jax.types import Counts, Sums

ALPHA = np.linspace(0.95, 0.4, 12)


def line(intercept, slope, n=1000):
    rate = 10 ** (intercept + slope * (ALPHA - 1))
    return Counts(ALPHA, np.full(12, float(n)), np.round(n * rate))


@pytest.mark.filterwarnings("ignore:.*does not respect the domain")
def test_the_line_is_the_binomial_glm_with_a_log_link():
    rng = np.random.default_rng(1)
    counts = Counts(ALPHA, np.full(12, 400.0), rng.binomial(400, 10 ** (-3 - 4.4 * (ALPHA - 1))).astype(float))
    estimate = line_likelihood(counts)
    known = sm.GLM(
        np.stack([counts.complied, counts.scored - counts.complied], axis=1),
        sm.add_constant(ALPHA - 1),
        family=sm.families.Binomial(sm.families.links.Log()),
    ).fit(start_params=np.array([-6.0, -9.0]))
    assert np.all(estimate.used) and (counts.complied == 0).any()
    np.testing.assert_allclose(estimate.log10_rate, known.params[0] / np.log(10), atol=1e-4)
    np.testing.assert_allclose(estimate.slope, known.params[1] / np.log(10), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(-6, -1.2), st.floats(-9, -2))
def test_an_exact_line_returns_its_line(intercept, slope):
    n = 1e9  # so that rounding to whole counts does not show
    counts = line(intercept, max(slope, (np.log10(0.4) - intercept) / (ALPHA.min() - 1)), n)
    slope = max(slope, (np.log10(0.4) - intercept) / (ALPHA.min() - 1))
    estimate = line_likelihood(counts)
    np.testing.assert_allclose([estimate.log10_rate, estimate.slope], [intercept, slope], atol=2e-3)


def test_more_of_the_same_narrows_the_interval_and_moves_nothing():
    counts = line(-4, -6, 1000)
    one = line_likelihood(counts)
    ten = line_likelihood(Counts(ALPHA, 10 * counts.scored, 10 * counts.complied))
    np.testing.assert_allclose(one.log10_rate, ten.log10_rate, atol=1e-4)
    assert ten.high - ten.low < 0.5 * (one.high - one.low)


def test_common_alphas_are_left_out_of_the_line():
    scored = np.full(12, 100.0)
    counts = Counts(ALPHA, scored, np.array([0, 1, 1, 2, 4, 6, 10, 18, 30, 60, 80, 95.0]))
    estimate = line_likelihood(counts)
    assert list(estimate.used) == [True] * 9 + [False] * 3


@pytest.mark.parametrize("estimator", [line_likelihood, bend_likelihood])
def test_odd_counts(estimator):
    """Nothing, everything, one alpha: an interval that holds what is possible, and no claim where there is none."""
    nothing = estimator(Counts(ALPHA, np.full(12, 50.0), np.zeros(12)))
    assert not nothing.identified and nothing.high < -1 and np.isfinite(nothing.high)
    everything = estimator(Counts(ALPHA, np.full(12, 50.0), np.full(12, 50.0)))
    assert everything.high > -0.05 and everything.log10_rate > -0.5
    single = estimator(Counts(ALPHA, np.where(ALPHA == 0.95, 50.0, 0), np.where(ALPHA == 0.95, 5.0, 0)))
    assert single.low <= single.log10_rate <= single.high <= 0 and single.high - single.low > 0.5


def test_slopes_narrow_the_interval():
    """The same counts with path scores of the right mean: the slope is known, the rate is known better."""
    counts = Counts(ALPHA, np.full(12, 50.0), np.array([0, 0, 0, 1, 2, 3, 5, 9, 14, 20, 27, 33.0]))
    cell = np.repeat(np.arange(12), counts.complied.astype(int))
    n, score = len(cell), -14.0 + 7 * np.random.default_rng(0).normal(size=len(cell))
    sums = Sums(
        cell, np.ones(n), np.ones(n, bool), np.zeros((n, 12)), np.zeros(n), np.zeros(n), score, np.full(n, 55.0)
    )
    without, with_slopes = bend_likelihood(counts), path_slope(counts, sums)
    assert with_slopes.high - with_slopes.low < 0.75 * (without.high - without.low)
    assert without.low < with_slopes.log10_rate < without.high
