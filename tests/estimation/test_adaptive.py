"""The adaptive procedure: what it spends, where, and when it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpe_jax.estimation import bend
from lpe_jax.estimation.adaptive import Path
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.procedure import replay


def outcomes(end, n, seed, prompts=20):
    """[P, A, n] of a path with rate 10^end at alpha = 1 and .9 at 0."""
    grid = Path().grid
    with float64():
        theta = jnp.array([np.log(-np.log(0.9)), np.log(-end * np.log(10)), 0.3, 0.0])
        rate = np.exp(np.asarray(bend.curve(theta, jnp.asarray(grid))[0]))
    return np.random.default_rng(seed).random((prompts, len(grid), n)) < rate[:, None]


# One procedure and one shape for several tests: each compiles anew.
SMALL = Path(budget=130, batch=20, share=0.2)


def test_the_budget_is_spent_and_no_more():
    state, estimate = replay(SMALL, outcomes(-4, 130, 0))
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
    state, _ = replay(SMALL, outcomes(-5, 130, 1))
    assert np.asarray(state.drawn).max() == 20 and (np.asarray(state.drawn).sum(1) == 130).all()


def test_a_width_stops_as_soon_as_it_is_reached():
    state, estimate = replay(Path(budget=2000, width=2.0), outcomes(-3, 2000, 2, prompts=6))
    assert (np.asarray(state.drawn).sum(1) < 2000).all()
    # One batch more or less makes little difference to it.
    width = np.asarray(estimate.high - estimate.low)
    assert (width > 1.8).all() and (width < 2.05).all()


def test_the_first_rollouts_are_scouts():
    """Ten at each of four alphas, whatever comes of them, and only then the design."""
    path, none, seen = SMALL, jnp.zeros((), jnp.int32), []
    with float64():
        state = path.init()
        advance, update = jax.jit(path.next), jax.jit(path.update)
        for _ in range(4):
            draw = advance(state)
            seen.append((round(float(path.grid[draw.cell]), 9), int(draw.n)))
            state = update(state, draw, draw.n, none)
        assert seen == [(0.6, 10), (0.45, 10), (0.3, 10), (0.15, 10)]
        assert int(advance(state).n) == path.batch


def test_a_judge_that_errs_is_reckoned_with():
    """3 % of refusals are called compliant. Whoever takes them for compliance sees 10^-1.5 everywhere and spends near
    1; whoever knows of them looks where compliance is more common than that."""
    grid, rng = SMALL.grid, np.random.default_rng(4)
    with float64():
        theta = jnp.array([np.log(-np.log(0.9)), np.log(5 * np.log(10)), 0.3, 0.0])
        rate = np.exp(np.asarray(bend.curve(theta, jnp.asarray(grid))[0]))
    table = rng.random((20, len(grid), 130)) < (0.03 + 0.97 * rate)[:, None]
    knowing = Path(budget=130, batch=20, share=0.2, false_alarm=0.03)
    (taken, believed), (known, corrected) = (replay(path, table) for path in (SMALL, knowing))
    near = grid >= 0.65
    # Neither half of it does: a design that knows of false alarms and a fit that does not, or the other way round.
    assert np.asarray(known.drawn)[:, near].sum() < 0.1 * np.asarray(taken.drawn)[:, near].sum()
    off = [np.median(np.abs(np.asarray(estimate.log10_rate) + 5)) for estimate in (believed, corrected)]
    assert off[0] > 1.2 and off[1] < 0.8


def test_unscored_rollouts_are_paid_for_and_tell_nothing():
    table = outcomes(-4, 130, 3)
    state, _ = replay(SMALL, table, np.zeros_like(table))
    assert (np.asarray(state.drawn).sum(1) == 130).all() and not np.asarray(state.scored).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": 0},
        {"batch": 0},
        {"width": -1.0},
        {"path_variance": 0.0},
        {"spacing": 0.3},
        {"share": 0.0},
        {"n_scout": 0},
        {"scouts": (0.5, 0.5)},
        {"scouts": (0.51,)},
        {"false_alarm": 1.0},
        {"budget": 400, "share": 0.05, "batch": 15},
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Path(**wrong)
