"""Designs: what rollouts tell, and how many more would settle a rate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpe_jax.estimation import bend, design
from lpe_jax.estimation.bend import END
from lpe_jax.estimation.precision import float64
from lpe_jax.types import Counts

ALPHA = np.linspace(1.0, 0.0, 21)


def fit_of(counts):
    return bend.fit(bend.evidence(counts, None), bend.default_prior())


def some_counts(n=20.0, end=-4.0, seed=0):
    with float64():
        theta = jnp.array([np.log(-np.log(0.9)), np.log(-end * np.log(10)), 0.3, 0.0])
        rate = np.exp(np.asarray(bend.curve(theta, jnp.asarray(ALPHA))[0]))
    return Counts(ALPHA, np.full(21, n), np.random.default_rng(seed).binomial(int(n), rate).astype(float))


@pytest.mark.parametrize("judge", [(1.0, 0.0), (0.8, 0.03)])
def test_gain_is_the_variance_a_little_more_information_removes(judge):
    prior = bend.default_prior()
    with float64():
        fit = bend.finish(bend.point_at(prior.mean, bend.evidence(Counts(ALPHA, 0 * ALPHA, 0 * ALPHA), None)), prior)
        gain = np.asarray(jax.jit(lambda f: design.gain(f, jnp.asarray(ALPHA), 1, 60.0, judge))(fit))

        def path(theta):  # log of what the judge calls compliant, and its slope, written again
            f, slope, _ = bend.curve(theta, jnp.asarray(ALPHA))
            said = judge[1] + (judge[0] - judge[1]) * jnp.exp(f)
            return jnp.stack([jnp.log(said), (judge[0] - judge[1]) * jnp.exp(f) * slope / said])

        value, by_theta = (np.asarray(x) for x in jax.jit(lambda t: (path(t), jax.jacfwd(path)(t)))(fit.theta))
        covariance = np.asarray(fit.covariance)
    rate, small = np.exp(value[0]), 1e-6
    for i in (3, 8, 14):
        height, slope = by_theta[0, i], by_theta[1, i]
        information = rate[i] / (1 - rate[i]) * np.outer(height, height) + rate[i] / 60.0 * np.outer(slope, slope)
        after = np.linalg.inv(np.linalg.inv(covariance) + small * information)
        removed = (covariance[END, END] - after[END, END]) / small
        np.testing.assert_allclose(gain[i] * (1 + np.trace(covariance @ information)), removed, rtol=1e-3)


def test_what_settling_asks_for_would_settle_it():
    """So many more rollouts at that alpha, complying as the fit says, with scores as informative as the fit believes:
    a slope is never known better than SLOPE_DOUBT. A seventh fewer would not do."""
    counts = some_counts()
    alpha, n = (float(x) for x in design.settling(counts, 0.4))
    assert 0 < alpha < 1 and np.abs(ALPHA - alpha).min() < 1e-9
    with float64():
        fit = fit_of(counts)
        weight, direction = (np.asarray(x)[:, 0] for x in design.information(fit, jnp.asarray([alpha])))
        for share, settled in ((1.0, True), (0.85, False)):
            height, slope = share * n * weight
            slope = 1.0 / (1.0 / slope + bend.SLOPE_DOUBT**2)
            precision = np.linalg.inv(fit.covariance)
            precision = precision + height * np.outer(direction[0], direction[0])
            precision = precision + slope * np.outer(direction[1], direction[1])
            variance = np.linalg.inv(precision)[END, END]
            width = float(design.decades(dataclasses.replace(fit, covariance=jnp.eye(4) * variance)))
            assert (width <= 0.4) == settled
        assert float(design.decades(fit)) > 0.4


def test_nothing_more_is_needed_where_it_is_settled_and_more_where_rates_are_rarer():
    _, none = design.settling(some_counts(n=20_000.0), 2.0)
    assert float(none) == 0.0
    needed = [float(design.settling(some_counts(end=end), 0.5)[1]) for end in (-2.0, -4.0, -7.0)]
    assert needed == sorted(needed) and needed[0] < needed[-1] < np.inf


def test_what_no_rollouts_could_settle_is_infinite():
    _, n = design.settling(some_counts(), 1e-9)
    assert float(n) == np.inf
