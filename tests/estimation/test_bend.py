"""The bending path: its derivatives, its likelihood, its fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import statsmodels.api as sm

from lpe_jax.estimation import bend
from lpe_jax.estimation.bend import Evidence, Prior
from lpe_jax.estimation.precision import float64
from lpe_jax.types import Counts, Sums

ALPHA = np.linspace(1.0, 0.0, 11)
THETAS = [(-1.5, 2.1, 0.4, 0.0), (-3.0, 1.0, -2.0, 0.5), (0.3, 2.9, 1.5, -3.0)]


def counts_of(rate, n=200, seed=0):
    scored = np.full(len(rate), float(n))
    return Counts(ALPHA, scored, np.random.default_rng(seed).binomial(n, rate).astype(float))


def evidence_of(rate, tau=5.0, seed=0, slope=None, turn=None):
    """Counts at rates [A] with path scores of the right mean and variance where slope and turn [A] are given."""
    counts = counts_of(rate, seed=seed)
    k = counts.complied
    if slope is None:
        return bend.evidence(counts, None)
    rng = np.random.default_rng(seed + 1)
    cell = np.repeat(np.arange(len(k)), k.astype(int))
    score = slope[cell] + tau * rng.normal(size=len(cell))
    nothing = np.zeros((len(cell), len(k)))
    sums = Sums(
        cell, np.ones(len(cell)), np.ones(len(cell), bool), nothing, nothing[:, 0], nothing[:, 0], score,
        tau**2 - turn[cell],
    )  # fmt: skip
    return bend.evidence(counts, sums)


@pytest.mark.parametrize("theta", THETAS)
def test_the_curve_says_what_theta_says_and_its_derivatives_are_right(theta):
    with float64():
        theta, at = jnp.array(theta), jnp.asarray(ALPHA)
        value, slope, turn = bend.curve(theta, at)
        one = lambda a: bend.curve(theta, a[None])[0][0]  # noqa: E731
        np.testing.assert_allclose(jax.vmap(jax.grad(one))(at), slope, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(one)))(at), turn, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose([value[-1], value[0]], -np.exp(theta[:2]), rtol=1e-10)


def log_posterior(theta, data: Evidence, prior: Prior):
    """The same, written again in NumPy and scipy."""
    m = np.exp(theta[2])
    to_logit = lambda f: -np.log(np.expm1(f / m))  # noqa: E731
    start, end = to_logit(np.exp(theta[0])), to_logit(np.exp(theta[1]))
    eta = start + (end - start) * data.alpha
    sigma = 1 / (1 + np.exp(-eta))
    value = m * np.log(sigma) + theta[3] * data.alpha * (1 - data.alpha)
    slope = m * (end - start) * (1 - sigma) + theta[3] * (1 - 2 * data.alpha)
    turn = -m * (end - start) ** 2 * sigma * (1 - sigma) - 2 * theta[3]
    drawn = np.asarray(data.scored) > 0
    value = np.where(drawn, value, -1.0)
    total = np.sum(data.complied * value + (data.scored - data.complied) * np.log(-np.expm1(value)))
    some = np.flatnonzero(np.asarray(data.hits))
    within = {i: data.square[i] - data.score[i] ** 2 / data.hits[i] for i in some}
    free = sum(data.hits[i] - 1 for i in some) + bend.HITS_OF_EXPECTED
    for i in some:
        k, mean_v, mean = data.hits[i], data.variance[i] / data.hits[i], data.score[i] / data.hits[i]
        scatter = (sum(within.values()) + bend.HITS_OF_EXPECTED * mean_v) / free
        total -= 0.5 * (mean - slope[i]) ** 2 / (scatter / k + bend.SLOPE_DOUBT**2)
        doubt = bend.SLOPE_DOUBT**2
        spread = max(mean_v + turn[i], 0.1 * mean_v) + doubt
        if k > 1:
            freedom = 1 / (1 / (k - 1) + 1 / bend.MOST_FREEDOM)
            total -= 0.5 * freedom * (np.log(spread) + (within[i] / (k - 1) + doubt) / spread)
    away = theta - np.asarray(prior.mean)
    return total - 0.5 * away @ np.linalg.solve(np.asarray(prior.covariance), away)


@pytest.mark.parametrize("scores", [False, True])
def test_the_fit_is_the_mode_that_scipy_finds(scores):
    with float64():
        truth = jnp.array([-2.0, 2.2, 0.7, 0.0])
        value, slope, turn = (np.asarray(x) for x in bend.curve(truth, jnp.asarray(ALPHA)))
        data = evidence_of(np.exp(value), slope=slope if scores else None, turn=turn)
        prior = bend.default_prior(bow=0.5)
        data, prior, fit = jax.device_get((data, prior, bend.fit(data, prior, steps=60)))
    best = scipy.optimize.minimize(
        lambda t: -log_posterior(t, data, prior), np.asarray(prior.mean), method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 20_000, "maxfev": 20_000, "adaptive": True},
    )  # fmt: skip
    np.testing.assert_allclose(fit.theta, best.x, atol=2e-4)


@pytest.mark.parametrize("end", [-2.0, -6.0])
def test_scores_that_do_not_scatter_do_not_break_the_fit(end):
    """An exactly straight path without style: all scores are its slope, and leave no variance to explain."""
    with float64():
        value = np.log(0.9) + (end * np.log(10) - np.log(0.9)) * ALPHA
        slope, turn = np.full(len(ALPHA), value[0] - value[-1]), np.zeros(len(ALPHA))
        data = evidence_of(np.exp(value), tau=0.0, slope=slope, turn=turn)
        fit = bend.fit(data, bend.default_prior())
    # Its slope is believed to SLOPE_DOUBT nats and not more closely, and is off by no more.
    got, error = -np.exp(float(fit.theta[1])), np.exp(float(fit.theta[1])) * float(fit.covariance[1, 1]) ** 0.5
    assert 0.05 < error < 2.0 and abs(got - value[0]) < 2.5 * error


def test_with_one_decision_it_is_logistic_regression():
    """m = 1 and no prior to speak of: statsmodels' binomial GLM with a logit link."""
    rate = 1 / (1 + np.exp(-(0.4 - 5 * ALPHA)))
    counts = counts_of(rate, seed=3)
    known = sm.GLM(
        np.stack([counts.complied, counts.scored - counts.complied], axis=1),
        sm.add_constant(ALPHA),
        family=sm.families.Binomial(),
    ).fit()
    ones = np.ones(2)
    at_one, error = ones @ known.params, np.sqrt(ones @ known.cov_params() @ ones)
    with float64():
        prior = Prior(jnp.array([-2.0, 1.5, 0.0, 0.0]), jnp.diag(jnp.array([1e6, 1e6, 1e-12, 1e-12])))
        fit = jax.device_get(bend.fit(bend.evidence(counts, None), prior, steps=60))
    log_rate = -np.log1p(np.exp(-at_one))
    np.testing.assert_allclose(-np.exp(fit.theta[1]), log_rate, rtol=1e-5)
    # Delta method from the logit to log(-log P).
    by_logit = (1 - np.exp(log_rate)) / log_rate
    np.testing.assert_allclose(np.sqrt(fit.covariance[1, 1]), abs(by_logit) * error, rtol=0.02)


def test_rows_that_are_split_or_padded_say_the_same():
    with float64():
        whole = Sums(*(np.array(x) for x in ([2, 4], [3.0, 1.0], [True, True])), np.zeros((2, 11)), *np.zeros((2, 2)),
                     np.array([1.0, -2.0]), np.array([9.0, 8.0]))  # fmt: skip
        rows = np.array([0, 0, 1, 1])
        split = jax.tree.map(lambda x: x[rows], whole)
        split = Sums(**{**split.__dict__, "count": np.array([1.0, 2.0, 1.0, 0.0])})
        split.path_score[3] = np.nan  # padding
        counts = Counts(ALPHA, np.full(11, 20.0), np.array([0, 0, 3, 0, 1, 0, 0, 0, 0, 0, 0.0]))
        a, b = bend.evidence(counts, whole), bend.evidence(counts, split)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y)
        assert float(a.square[2]) == 3.0 and float(a.variance[4]) == 8.0


def test_the_unrolled_inverse_is_the_inverse():
    a = np.random.default_rng(0).normal(size=(4, 4))
    a = a @ a.T + 0.1 * np.eye(4)
    with float64():
        np.testing.assert_allclose(bend.inverse(jnp.asarray(a)), np.linalg.inv(a), rtol=1e-9)
