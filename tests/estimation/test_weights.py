import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import genpareto

from lpe_jax.estimation import weights
from lpe_jax.estimation.precision import float64

ALL = [weights.ess, weights.tempered_ess, weights.largest_share, weights.pareto_k]


def zhang_stephens(weight, most=weights.MOST_TAIL):
    """Pareto index of a plain list of weights, as the papers write it."""
    weight = np.sort(weight)
    size = min(int(np.ceil(min(0.2 * len(weight), 3 * np.sqrt(len(weight))))), most)
    x = weight[-size:] - weight[-size - 1]
    x = x[x > 0]
    size = len(x)
    if size < weights.LEAST_TAIL:
        return np.nan
    points = 30 + int(np.sqrt(size))
    theta = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    theta = theta / (3 * x[int(size / 4 + 0.5) - 1]) + 1 / x[-1]
    k = np.array([np.mean(np.log1p(-t * x)) for t in theta])
    profile = size * (np.log(-theta / k) - k - 1)
    belief = np.array([1 / np.sum(np.exp(profile - p)) for p in profile])
    return (size * np.mean(np.log1p(-np.sum(theta * belief) * x)) + 5) / (size + 10)


def rows(seed, n, spread=1.5, most=4):
    rng = np.random.default_rng(seed)
    return spread * rng.standard_normal(n) - 300, rng.integers(0, most, n)


@pytest.mark.parametrize("seed", range(4))
def test_against_lists_of_weights(seed):
    log_weight, count = rows(seed, 150)
    w = np.repeat(np.exp(log_weight + 300), count)
    np.testing.assert_allclose(weights.ess(log_weight, count), w.sum() ** 2 / (w**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(weights.largest_share(log_weight, count), w.max() / w.sum(), rtol=1e-12)
    np.testing.assert_allclose(weights.pareto_k(log_weight, count), zhang_stephens(w), rtol=1e-9)
    pi = np.sqrt(w) / np.sqrt(w).sum()
    tempered = np.exp(-np.sum(pi * np.log(pi)) - 3.5 * (pi @ np.log(pi) ** 2 - (pi @ np.log(pi)) ** 2))
    np.testing.assert_allclose(weights.tempered_ess(log_weight, count), tempered, rtol=1e-9)


@pytest.mark.parametrize("n", [10, 30, 200, 2000, 20000])
def test_pareto_k_at_any_size(n):
    w = np.random.default_rng(n).pareto(2.0, n) + 1
    np.testing.assert_allclose(weights.pareto_k(np.log(w), np.ones(n)), zhang_stephens(w), rtol=1e-8)


@pytest.mark.parametrize("k", [-0.2, 0.3, 0.7, 1.2])
def test_pareto_k_recovers_the_index_of_a_pareto_tail(k):
    # 40 samples of 20,000, each with an error of about (1 + k) / sqrt(256): five standard errors of the mean, and the
    # pull towards 1/2, at most 10 / 266 of the way.
    w = genpareto.rvs(k, size=(40, 20_000), random_state=0)
    with float64():
        found = np.asarray(jax.jit(jax.vmap(weights.pareto_k))(np.log(w), np.ones(w.shape)))
    assert abs(np.mean(found) - k) < 5 * (1 + k) / 16 / np.sqrt(40) + abs(k - 0.5) * 10 / 266


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 1.5])
def test_tempered_ess_expects_the_size_of_log_normal_weights(spread):
    # n exp(-s²); the mean over 400 samples of 1,000, in log, to 0.1: more than five standard errors.
    log_weight = spread * np.random.default_rng(1).standard_normal((400, 1000))
    with float64():
        found = np.asarray(jax.vmap(weights.tempered_ess)(log_weight, np.ones(log_weight.shape)))
    assert abs(np.mean(np.log(found)) - (np.log(1000) - spread**2)) < 0.1


def test_tempered_ess_sees_a_missed_tail_where_ess_does_not():
    # Expected: 300 exp(-9), far below 1. The weights drawn say dozens at best.
    log_weight = 3.0 * np.random.default_rng(2).standard_normal((200, 300))
    with float64():
        drawn = np.asarray(jax.vmap(weights.ess)(log_weight, np.ones(log_weight.shape)))
        expected = np.asarray(jax.vmap(weights.tempered_ess)(log_weight, np.ones(log_weight.shape)))
    assert np.mean(drawn > 10) > 0.2 and np.mean(expected > 10) == 0


def test_equal_weights():
    log_weight, count = np.full(7, -900.0), np.array([3, 1, 0, 5, 0, 2, 9])
    np.testing.assert_allclose(
        [weights.ess(log_weight, count), weights.tempered_ess(log_weight, count)], 20, rtol=1e-12
    )
    np.testing.assert_allclose(weights.largest_share(log_weight, count), 1 / 20, rtol=1e-12)
    assert np.isnan(weights.pareto_k(log_weight, count))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_no_weights(n):
    log_weight, count = np.full(n, np.nan), np.zeros(n)
    assert weights.ess(log_weight, count) == weights.tempered_ess(log_weight, count) == 0
    assert np.isnan(weights.largest_share(log_weight, count)) and np.isnan(weights.pareto_k(log_weight, count))


def test_a_weight_of_zero_adds_nothing():
    log_weight, count = rows(3, 60)
    more = np.append(log_weight, -np.inf), np.append(count, 8)
    for function in ALL[:3]:
        np.testing.assert_allclose(function(*more), function(log_weight, count), rtol=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-700, 700))
def test_only_the_multiset_of_rollouts_matters(seed, shift):
    log_weight, count = rows(seed, 40)
    rng = np.random.default_rng(seed)
    part = rng.integers(0, count + 1)
    split = np.concatenate([log_weight + shift, log_weight + shift, np.full(20, np.nan)])
    parts = np.concatenate([part, count - part, np.zeros(20, int)])
    order = rng.permutation(len(split))
    for function in ALL:
        np.testing.assert_allclose(function(split[order], parts[order]), function(log_weight, count), rtol=1e-6)
