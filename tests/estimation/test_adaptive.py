"""The adaptive procedure: what it spends, where, and when it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpe_jax.estimation import bend
from lpe_jax.estimation.adaptive import Path
from lpe_jax.estimation.bend import END
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.procedure import replay


def outcomes(end, n, seed, prompts=20):
    """[P, A, n] of a path with rate 10^end at alpha = 1 and .9 at 0."""
    grid = Path().grid
    with float64():
        theta = jnp.array([np.log(-np.log(0.9)), np.log(-end * np.log(10)), 0.3, 0.0])
        rate = np.exp(np.asarray(bend.curve(theta, jnp.asarray(grid))[0]))
    return np.random.default_rng(seed).random((prompts, len(grid), n)) < rate[:, None]


def test_the_budget_is_spent_and_no_more():
    procedure = Path(budget=130, batch=20)
    state, estimate = replay(procedure, outcomes(-4, 130, 0))
    assert (np.asarray(state.drawn).sum(1) == 130).all()
    assert (np.asarray(estimate.rollouts) == 130).all()
    assert (np.asarray(state.drawn) == np.asarray(state.scored)).all()


def test_rollouts_go_between_what_is_common_and_what_is_never_seen():
    """Rate 1e-6 at 1: hardly anything is spent beside alpha = 1, and most where the rate lies in 0.5 % to 70 %."""
    table = outcomes(-6, 440, 1)
    state, _ = replay(Path(), table)
    drawn, rate = np.asarray(state.drawn), table.mean((0, 2))
    assert drawn[:, Path().grid > 0.9].sum() < 0.15 * drawn.sum()
    assert drawn[:, (rate > 0.005) & (rate < 0.7)].sum() > 0.6 * drawn.sum()


def test_no_alpha_gets_more_than_its_share():
    state, _ = replay(Path(budget=200, share=0.2), outcomes(-5, 200, 1, prompts=5))
    assert np.asarray(state.drawn).max() == 40 and (np.asarray(state.drawn).sum(1) == 200).all()


def test_a_width_stops_early_and_is_kept():
    wide, _ = replay(Path(budget=2000, width=3.0), outcomes(-3, 2000, 2, prompts=6))
    narrow, estimate = replay(Path(budget=2000, width=2.0), outcomes(-3, 2000, 2, prompts=6))
    wide, narrow = (np.asarray(state.drawn).sum(1) for state in (wide, narrow))
    assert (wide < narrow).all() and (narrow < 2000).all()
    np.testing.assert_array_less(np.asarray(estimate.high - estimate.low), 2.05)


def test_gain_is_the_variance_a_little_more_information_removes():
    procedure = Path(batch=1)
    with float64():
        state = procedure.init()
        fit = procedure._fit(state, 0)
        alpha = jnp.asarray(procedure.grid)
        gain = np.asarray(procedure._gain(fit))
        by_theta = np.asarray(jax.jacfwd(lambda t: jnp.stack(bend.curve(t, alpha)))(fit.theta))
        value = np.asarray(bend.curve(fit.theta, alpha)[0])
        covariance = np.asarray(fit.covariance)
    rate = np.exp(value)
    small = 1e-6
    for i in (3, 8, 14):
        height, slope = by_theta[0, i], by_theta[1, i]
        information = rate[i] / (1 - rate[i]) * np.outer(height, height)
        information += rate[i] / procedure.path_variance * np.outer(slope, slope)
        after = np.linalg.inv(np.linalg.inv(covariance) + small * information)
        removed = (covariance[END, END] - after[END, END]) / small
        wasted = 1 + np.trace(covariance @ information)
        np.testing.assert_allclose(gain[i] * wasted, removed, rtol=1e-3)


def test_unscored_rollouts_are_paid_for_and_tell_nothing():
    table = outcomes(-4, 100, 3, prompts=3)
    state, _ = replay(Path(budget=100), table, np.zeros_like(table))
    assert (np.asarray(state.drawn).sum(1) == 100).all() and not np.asarray(state.scored).any()


@pytest.mark.parametrize(
    "wrong", [{"budget": 0}, {"batch": 0}, {"width": -1.0}, {"path_variance": 0.0}, {"spacing": 0.3}, {"share": 0.0}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Path(**wrong)
