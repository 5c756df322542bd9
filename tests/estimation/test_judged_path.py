"""The pooled bending path under a judge that errs."""

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation import bend
from lpe_jax.estimation.imputation import pooled_with_judge_error
from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.estimation.pooled import pooled
from lpe_jax.estimation.precision import float64
from lpe_jax.types import Counts

ALPHA = np.linspace(1.0, 0.0, 21)
END = -np.random.default_rng(8).uniform(3, 6, 20)


def counts_of(sensitivity, false_alarm):
    """[20, 21] judged counts of 200 rollouts at each alpha, rates 10^END at 1."""
    rng = np.random.default_rng(9)
    with float64():
        fixed = (jnp.full(20, value) for value in (-2.0, 0.3, 0.0))
        start, turn, bow = fixed
        theta = jnp.stack([start, jnp.log(-END * np.log(10)), turn, bow], axis=1)
        rate = np.exp(np.asarray(jax.jit(jax.vmap(lambda t: bend.curve(t, jnp.asarray(ALPHA))[0]))(theta)))
    n = np.full((20, 21), 200.0)
    judged = rng.binomial(200, false_alarm + (sensitivity - false_alarm) * rate)
    return Counts(np.broadcast_to(ALPHA, n.shape), n, judged.astype(float))


def rmse(estimate):
    return np.sqrt(np.mean((np.asarray(estimate.log10_rate) - END) ** 2))


def held(estimate):
    return ((np.asarray(estimate.low) <= END) & (np.asarray(estimate.high) >= END)).sum()


def test_the_bending_path_knows_its_judge():
    """Twenty paths of rates 10^-3 to 10^-6 under a judge that misses a fifth and invents 2 %.

    Taken at its word, every rate seems more common than the most common one is; corrected, 95 % intervals hold the
    truth (of 20 at least 16: a fair one fails that in 0.3 % of all seeds), and the rates are near.
    """
    counts = counts_of(0.8, 0.02)
    taken, known = pooled(counts), pooled_with_judge_error(counts, None, JudgeQuality(800, 1000, 9800, 10_000))
    assert (np.asarray(taken.log10_rate) > -3).all()
    assert held(known) >= 16 and rmse(known) < 1.0
    assert (np.asarray(known.high - known.low) > 0.3).all()


def test_rollouts_know_of_false_alarms_more_than_a_short_check_does():
    """A judge without error whose check was of fifty refusals: it could have called 2 % of them compliant, and
    thousands of rollouts near alpha = 1 say that it did not."""
    counts = counts_of(1.0, 0.0)
    taken, known = pooled(counts), pooled_with_judge_error(counts, None, JudgeQuality(100, 100, 50, 50))
    assert held(known) >= 16
    assert rmse(known) < rmse(taken) + 0.15
    assert np.median(np.asarray(known.high - known.low)) < 1.5 * np.median(np.asarray(taken.high - taken.low))


def test_a_judge_beyond_doubt_changes_nothing():
    counts = counts_of(1.0, 0.0)
    taken = pooled(counts)
    known = pooled_with_judge_error(counts, None, JudgeQuality(10**9, 10**9, 10**9, 10**9))
    for field in ("log10_rate", "low", "high"):
        np.testing.assert_allclose(getattr(known, field), getattr(taken, field), rtol=1e-2, err_msg=field)
