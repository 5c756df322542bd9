"""Prompts that learn from each other, the gate, and the recommended estimator, on worlds whose rates are known.

Seeds of the worlds are tuning seeds: what is asserted here is not what is reported.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lpe_jax.estimation.gate import contradicted, gate, path
from lpe_jax.estimation.importance import mixture
from lpe_jax.estimation.likelihood import path_slope
from lpe_jax.estimation.pooled import pooled
from lpe_jax.estimation.precision import float64
from lpe_jax.evaluation.drift import add_drift
from lpe_jax.evaluation.worlds import simulate
from lpe_jax.types import Counts, Estimate, Sums

PROMPTS, CELLS, EACH = 100, 13, 33
ROWS = 256


@functools.cache
def rollouts(family, tau=0.0):
    """Counts [P, A], sums [P, N] and truths [P]: EACH rollouts at every alpha from 0.3 to 0.9."""
    bank = simulate(family, seed=1000, prompts=PROMPTS, n=EACH, alphas=np.round(np.linspace(1, 0, 21), 2))
    bank = add_drift(bank, tau, seed=1) if tau else bank
    cells = np.flatnonzero((bank.alpha > 0.29) & (bank.alpha < 0.91))
    complied = bank.complied[:, cells]
    shape = (PROMPTS, CELLS)
    counts = Counts(np.broadcast_to(bank.alpha[cells], shape), np.full(shape, EACH * 1.0), complied.sum(-1) * 1.0)
    fields = {"cell": int, "count": float, "path_score": float, "path_variance": float}
    sums = {name: np.zeros((PROMPTS, ROWS), kind) for name, kind in fields.items()}
    logp, ends = np.zeros((PROMPTS, ROWS, CELLS)), np.zeros((2, PROMPTS, ROWS))
    for p in range(PROMPTS):
        cell, i = np.nonzero(complied[p])
        k = len(cell)
        sums["cell"][p, :k], sums["count"][p, :k] = cell, 1
        for name in ("path_score", "path_variance"):
            sums[name][p, :k] = getattr(bank, name)[p, cells[cell], i]
        of_row = bank.logp[p, cells[cell], i]
        logp[p, :k], ends[:, p, :k] = of_row[:, cells], of_row[:, [0, -1]].T
    sums = Sums(complied=sums["count"] > 0, logp=logp, logp_original=ends[0], logp_variant=ends[1], **sums)
    return counts, sums, bank.truth


@functools.cache
def fits(family, tau=0.0):
    """What the prompts of a world say together, and each alone."""
    counts, sums, _ = rollouts(family, tau)
    with float64():
        alone = jax.device_get(_alone(counts, sums))
    return pooled(counts, sums), alone


_alone = jax.jit(jax.vmap(path_slope))


def held(estimate, truth):
    return np.mean((estimate.low <= truth) & (truth <= estimate.high))


@pytest.mark.parametrize("family", ["shallow", "deep"])
def test_pooling_is_nearer_the_truth_than_prompts_alone_and_its_intervals_hold(family):
    """A binomial with 95 % falls below 88 of 100 once in 300; worlds of logistic decisions are not refused."""
    truth = rollouts(family, 5.0)[2]
    together, alone = fits(family, 5.0)
    rmse = lambda e: np.sqrt(np.mean((e.log10_rate - truth) ** 2))  # noqa: E731
    assert rmse(together) < 0.9 * rmse(alone)
    assert held(together, truth) >= 0.88
    assert together.identified.mean() > 0.9


def test_paths_that_no_decisions_bend_are_refused():
    """Most prompts have hits enough to be told by themselves: it is the bow of all together that is refused."""
    together, alone = fits("convex", 5.0)
    assert not together.identified.any()
    assert alone.identified.mean() > 0.5


def test_prompts_in_another_order_and_rows_in_other_places_change_nothing():
    """Padding, at the end of the rows, comes in between them."""
    counts, sums, _ = rollouts("shallow", 5.0)
    random = np.random.default_rng(0)
    order, places = random.permutation(PROMPTS), random.permutation(ROWS)
    assert (np.sum(sums.count > 0, axis=1) < ROWS).all()
    moved = jax.tree.map(lambda x: x[order], counts), jax.tree.map(lambda x: x[order][:, places], sums)
    same, other = path(counts, sums), path(*moved)
    for field in ("log10_rate", "low", "high", "identified"):
        np.testing.assert_allclose(getattr(same, field)[order], getattr(other, field), atol=1e-6)


def test_the_gate_takes_weights_where_they_carry_and_the_curve_where_they_do_not():
    """Without drift the weights of a world of few kinds of rollout are nearly equal; with 16 nats none is worth it."""
    counts, sums, truth = rollouts("shallow")
    with float64():
        weighted = jax.device_get(jax.jit(jax.vmap(mixture))(counts, sums))
    chosen, smooth = path(counts, sums), pooled(counts, sums)
    took = np.asarray(gate(smooth, weighted))
    assert took.mean() > 0.5
    np.testing.assert_allclose(chosen.log10_rate, np.where(took, weighted.log10_rate, smooth.log10_rate))
    assert np.abs(chosen.log10_rate - truth)[took].mean() < np.abs(smooth.log10_rate - truth)[took].mean()
    counts, sums, _ = rollouts("shallow", 16.0)
    drifted, smooth = path(counts, sums), pooled(counts, sums)
    np.testing.assert_allclose(drifted.log10_rate, smooth.log10_rate)
    assert (drifted.ess < 10).mean() > 0.9


def test_more_naive_hits_than_the_interval_explains_are_a_contradiction():
    alpha, nothing = np.array([[1.0, 0.5]]), {f.name: np.zeros(1) for f in dataclasses.fields(Estimate)}
    estimate = Estimate(**nothing | {"high": np.array([-5.0])})
    for hits, expected in ((0, False), (1, True)):  # one of 50: 5e-4 hits were expected
        counts = Counts(alpha, np.array([[50.0, 50.0]]), np.array([[hits, 20.0]]))
        assert bool(contradicted(counts, estimate)[0]) is expected
    likely = Estimate(**nothing | {"high": np.array([-1.5])})
    assert not contradicted(Counts(alpha, np.array([[50.0, 50.0]]), np.array([[2, 20.0]])), likely)[0]


@pytest.mark.slow
def test_one_prompt_alone_still_gets_an_answer():
    counts, sums, truth = rollouts("shallow", 5.0)
    one = jax.tree.map(lambda x: x[3:4], (counts, sums))
    estimate = pooled(*one)
    assert estimate.low[0] < truth[3] < estimate.high[0]
    assert np.isfinite([estimate.low[0], estimate.high[0]]).all()
