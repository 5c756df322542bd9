"""What a procedure is expected to draw, against LPE in plain loops over the same prior."""

import numpy as np

from lpe_jax.estimation import bend
from lpe_jax.estimation.expectation import expected_draws
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.precision import float64

ALPHAS = (0.9, 0.6, 0.3, 0.0)


def lpe(rng, rate):
    """Rollouts of one prompt, and those that comply: 5 of each alpha until half comply, then 8 until none does."""
    searched = rng.binomial(5, rate)
    start = next((cell for cell, found in enumerate(searched) if found >= 2.5), len(rate) - 1)
    rollouts, hits = 5 * (start + 1), searched[: start + 1].sum()
    for at in rate[start::-1]:
        found = rng.binomial(8, at)
        rollouts, hits = rollouts + 8, hits + found
        if not found:
            break
    return rollouts, hits


def test_the_mean_over_the_prior():
    """Both are means of independent draws: they differ by 4 standard errors once in 16,000 seeds."""
    rng, n = np.random.default_rng(0), 4000
    with float64():
        prior = bend.default_prior()
        mean, deviation = np.asarray(prior.mean), np.sqrt(np.diag(prior.covariance))
        theta = mean + deviation * rng.normal(size=(200, 4))
        rates = [np.exp(np.asarray(bend.curve(np.asarray(t), np.asarray(ALPHAS))[0])) for t in theta]
    drawn = np.array([lpe(rng, rates[i % len(rates)]) for i in range(n)])
    # Of 200 paths the error is that of 200 means.
    error = drawn.reshape(-1, 200, 2).mean(axis=0).std(axis=0) / np.sqrt(200)
    rollouts, share = expected_draws(LPE(n_search=5, n_fit=8, alphas=ALPHAS), paths=512)
    assert abs(rollouts - drawn[:, 0].mean()) < 4 * error[0] * np.sqrt(1 + 200 / 512)
    assert abs(rollouts * share - drawn[:, 1].mean()) < 4 * error[1] * np.sqrt(1 + 200 / 512)


def test_what_is_fixed_is_expected():
    rollouts, share = expected_draws(Naive(50, alpha=0.0))
    assert rollouts == 50 and 0.5 < share < 1
