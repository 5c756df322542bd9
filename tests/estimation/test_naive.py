import numpy as np
import pytest

from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import replay


def outcomes(hits, n, size=None):
    return (np.arange(size or n) < hits)[None]


def test_rate_and_interval():
    state, estimate = replay(Naive(100), outcomes(3, 100, size=120))
    assert estimate.rollouts == 100 and bool(estimate.used[0]) and not estimate.fallback
    np.testing.assert_allclose(estimate.log10_rate, np.log10(0.03), rtol=1e-12)
    np.testing.assert_allclose([estimate.low, estimate.high], clopper_pearson_log10(3, 100), rtol=1e-12)
    counts = Naive(100).counts(state)
    assert (counts.alpha, counts.scored, counts.complied) == (1.0, 100, 3)


def test_no_hit():
    estimate = replay(Naive(1000), outcomes(0, 1000))[1]
    assert estimate.log10_rate == estimate.low == -np.inf
    np.testing.assert_allclose(estimate.high, np.log10(0.0036820836), atol=1e-6)


def test_unscored_rollouts_are_paid_for_but_not_counted():
    scored = np.ones((1, 100), bool)
    scored[0, :50] = False
    estimate = replay(Naive(100), outcomes(60, 100), scored)[1]
    assert estimate.rollouts == 100
    np.testing.assert_allclose(estimate.log10_rate, np.log10(10 / 50), rtol=1e-12)
    estimate = replay(Naive(100), outcomes(60, 100), np.zeros((1, 100), bool))[1]
    assert np.isnan(estimate.log10_rate) and estimate.low == -np.inf and estimate.high == 0


def test_by_hand_in_a_float32_session():
    naive = Naive(7)
    state = naive.init()
    draw = naive.next(state)
    assert (int(draw.cell), int(draw.n)) == (0, 7)
    state = naive.update(state, draw, 7, 2)
    assert int(naive.next(state).n) == 0
    np.testing.assert_allclose(naive.estimate(state).log10_rate, np.log10(2 / 7), rtol=1e-12)


def test_n_must_be_positive():
    with pytest.raises(ValueError, match="n must be at least 1"):
        Naive(0)
