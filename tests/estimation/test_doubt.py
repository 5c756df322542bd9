"""LPE's doubt about its own line."""

import dataclasses

import jax
import numpy as np
import pytest

from lpe_jax.estimation import bend
from lpe_jax.estimation.doubt import curvature, doubted, lpe
from lpe_jax.estimation.likelihood import line_likelihood
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.precision import float64
from lpe_jax.types import Counts, Sums

ALPHA = np.linspace(0.8, 0.4, 9)
ROWS = 1024


def rollouts(curve, n, tau, seed):
    """Counts and sums [ROWS] of a path with log P = f: curve gives f, f' and f'' at ALPHA."""
    rng = np.random.default_rng(seed)
    value, slope, turn = curve
    counts = Counts(ALPHA, np.full(9, float(n)), rng.binomial(n, np.exp(value)).astype(float))
    cell = np.repeat(np.arange(9), counts.complied.astype(int))
    real = np.arange(ROWS) < len(cell)
    score = slope[cell] + tau * rng.normal(size=len(cell))
    # Padding to one shape, so that one program serves all tests.
    cell, score = (np.pad(x, (0, ROWS - len(x))) for x in (cell, score))
    none = np.zeros(ROWS)
    return counts, Sums(cell, real * 1.0, real, np.zeros((ROWS, 9)), none, none, score, tau**2 - turn[cell])


def parabola(curvature, at_one=-9.0, slope=-12.0):
    x = ALPHA - 1
    return at_one + slope * x + 0.5 * curvature * x**2, slope + curvature * x, np.full(9, curvature)


def test_curvature_is_measured_without_bias_and_with_its_error():
    """Over 50 draws the mean is right within 4 standard errors (1 in 16,000 by chance), the spread within a third."""
    measure = jax.jit(jax.vmap(lambda counts, sums: curvature(bend.evidence(counts, sums), counts.complied > 0)))
    for true, slope in ((0.0, -17.0), (-20.0, -22.0)):
        drawn = [rollouts(parabola(true, -12.0, slope), 1000, 3.0, seed) for seed in range(50)]
        with float64():
            value, error = jax.device_get(measure(*jax.tree.map(lambda *x: np.stack(x), *drawn)))
        off = value - true
        assert abs(np.mean(off)) < 4 / np.sqrt(len(off)) * np.std(off)
        assert 0.67 < np.std(off) / np.sqrt(np.mean(np.square(error))) < 1.33


def test_the_rate_is_the_posts_and_the_interval_holds_what_curvature_does():
    counts, sums = rollouts(parabola(-25.0, at_one=-10.0, slope=-18.0), 4000, 2.0, 0)
    plain, doubting = LPE().fit(counts), lpe(counts, sums)
    assert doubting.log10_rate == plain.log10_rate
    truth = -10.0 / np.log(10)
    assert not plain.low <= truth <= plain.high
    assert doubting.low <= truth <= doubting.high
    assert doubting.curvature < 0


def test_noise_in_the_scores_refuses_the_line():
    quiet = lpe(*rollouts(parabola(0.0), 400, 1.0, 0))
    loud = lpe(*rollouts(parabola(0.0), 40, 30.0, 0))
    assert quiet.identified and not loud.identified
    assert loud.high - loud.low > quiet.high - quiet.low


def test_without_sums_nothing_is_doubted():
    counts, _ = rollouts(parabola(0.0), 400, 2.0, 0)
    plain, same = LPE().fit(counts), lpe(counts)
    assert (plain.low, plain.high) == (same.low, same.high) and same.identified


def test_an_unclipped_rate_above_one_is_in_its_interval():
    counts = Counts(ALPHA[-4:], np.full(4, 100.0), np.array([5.0, 10, 25, 49]))
    estimate = LPE(alphas=tuple(ALPHA[-4:]), clip=False).fit(
        dataclasses.replace(counts, complied=counts.complied[::-1])
    )
    assert estimate.log10_rate > 0
    none = np.zeros(ROWS)
    nothing = Sums(none.astype(int), none, none > 0, np.zeros((ROWS, 4)), none, none, none, none)
    doubting = doubted(estimate, counts, nothing)
    assert doubting.low <= estimate.log10_rate <= doubting.high


def test_the_likeliest_line_is_doubted_too():
    counts, sums = rollouts(parabola(-25.0, at_one=-10.0, slope=-18.0), 4000, 2.0, 0)
    plain, doubting = line_likelihood(counts), line_likelihood(counts, sums)
    assert doubting.log10_rate == plain.log10_rate
    truth = -10.0 / np.log(10)
    assert not plain.low <= truth <= plain.high
    assert doubting.low <= truth <= doubting.high


@pytest.mark.parametrize("weighted", [False, True])
def test_the_parabola_is_seen_through_the_lines_own_regression(weighted):
    counts, sums = rollouts(parabola(-20.0, -12.0, -22.0), 1000, 3.0, 1)
    plain = LPE(regression="weighted" if weighted else "ols").fit(counts)
    doubting = doubted(plain, counts, sums, weighted=weighted)
    used = np.asarray(plain.used)
    p = ((counts.complied + 0.5) / (counts.scored + 1))[used]
    weight = counts.scored[used] * p / (1 - p) if weighted else np.ones(used.sum())
    _, off = np.polyfit(ALPHA[used] - 1, 0.5 * (ALPHA[used] - 1) ** 2, 1, w=np.sqrt(weight))
    with float64():
        value, error = (float(x) for x in curvature(bend.evidence(counts, sums), plain.used))
    shift, spread = -value * off / np.log(10), 1.959964 * error * abs(off) / np.log(10)
    low = float(plain.log10_rate) + min(shift, 0) - np.hypot(float(plain.log10_rate - plain.low), spread)
    np.testing.assert_allclose(float(doubting.low), low, rtol=1e-5)
