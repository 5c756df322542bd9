"""What holds of every estimator: one signature, odd input, order that does not matter."""

import dataclasses

import jax
import numpy as np
import pytest

from lpe_jax.estimation.registry import ESTIMATORS, estimate
from lpe_jax.types import Counts, Sums

ALPHA = np.array([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
COMPLIED = np.array([[0, 1, 3, 9, 25, 38], [0, 0, 2, 11, 30, 39], [1, 3, 9, 17, 30, 40]], float)


def drawn(complied=COMPLIED, n=40.0, alpha=ALPHA, seed=0):
    """Counts [P, A] and sums of every rollout [P, N], refused ones included, with plausible log p."""
    rng = np.random.default_rng(seed)
    cells = complied.shape[1]
    counts = Counts(np.broadcast_to(alpha, complied.shape), np.full(complied.shape, n), complied)
    cell = np.repeat(np.arange(cells), int(n))
    index = np.tile(np.arange(int(n)), cells)
    hit = index < complied[:, cell]
    # log p is linear in alpha: what a compliant rollout loses on the way to 1, and a little style.
    slope = np.where(hit, -9.0, 0.5) + rng.normal(size=hit.shape)
    logp = -30 + slope[..., None] * alpha
    shape = hit.shape
    return counts, Sums(
        np.broadcast_to(cell, shape), np.ones(shape), hit, logp, -30 + slope, np.full(shape, -30.0),
        slope + 2 * rng.normal(size=shape), np.full(shape, 6.0),
    )  # fmt: skip


def same(a, b, order=slice(None)):
    for field in ("log10_rate", "low", "high", "identified"):
        np.testing.assert_allclose(getattr(a, field)[order], getattr(b, field), atol=1e-6, err_msg=field)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator(name):
    counts, sums = drawn()
    whole = estimate(name, counts, sums)
    assert whole.log10_rate.shape == whole.identified.shape == (3,) and whole.used.shape == (3, 6)
    assert (np.asarray(whole.rollouts) == 240).all()
    ok = ~np.isnan(whole.log10_rate)
    assert (whole.log10_rate[ok] <= 1e-9).all()
    if ESTIMATORS[name].claims_rate:
        assert (whole.low[ok] <= whole.log10_rate[ok] + 1e-9).all()
        assert (whole.log10_rate[ok] <= whole.high[ok] + 1e-9).all()
    # Prompts in another order.
    order = np.array([2, 0, 1])
    same(whole, estimate(name, *jax.tree.map(lambda x: x[order], (counts, sums))), order)
    # Alphas in another order.
    turn = np.array([3, 0, 5, 1, 4, 2])
    place = np.argsort(turn)
    turned = dataclasses.replace(sums, cell=place[sums.cell], logp=sums.logp[..., turn])
    same(whole, estimate(name, jax.tree.map(lambda x: x[:, turn], counts), turned))
    # Nothing complied, everything complied: an answer, with ends in order, or none claimed.
    for complied in (np.zeros((3, 6)), np.full((3, 6), 40.0)):
        odd = estimate(name, *drawn(complied))
        assert not np.isnan(odd.low).any() and not np.isnan(odd.high).any()
        assert (odd.low <= odd.high).all() and (odd.high <= 1e-9).all()


@pytest.mark.parametrize("name", ["lpe", "line", "bend", "pooled"])
def test_one_prompt_without_sums_and_one_alpha(name):
    single = estimate(name, Counts(np.array([0.5]), np.array([20.0]), np.array([4.0])))
    assert np.shape(single.log10_rate) == () and np.shape(single.used) == (1,)
    assert single.low <= single.high


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"complied": COMPLIED * np.nan}, "complied must be a whole number"),
        ({"complied": COMPLIED - 2}, "complied must be a whole number"),
        ({"complied": COMPLIED + 0.5}, "complied must be a whole number"),
        ({"complied": COMPLIED + 100}, "must not exceed scored"),
        ({"alpha": np.array([[1.0, 0.8, 0.8, 0.4, 0.2, 0.0]] * 3)}, "each alpha must appear once"),
    ],
)
def test_counts_that_cannot_be(wrong, says):
    counts, sums = drawn()
    with pytest.raises(ValueError, match=says):
        estimate("path", dataclasses.replace(counts, **wrong), sums)


def test_names_and_missing_sums():
    counts, _ = drawn()
    with pytest.raises(ValueError, match="no estimator 'magic'"):
        estimate("magic", counts)
    with pytest.raises(ValueError, match="needs the rollouts' sums"):
        estimate("path", counts)
