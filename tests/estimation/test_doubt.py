"""LPE's doubt about its own line."""

import numpy as np

from lpe_jax.estimation import bend
from lpe_jax.estimation.doubt import curvature, lpe
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.precision import float64
from lpe_jax.types import Counts, Sums

ALPHA = np.linspace(0.8, 0.4, 9)


def rollouts(curve, n, tau, seed):
    """Counts and sums of a path with log P = f: curve gives f, f' and f'' at ALPHA."""
    rng = np.random.default_rng(seed)
    value, slope, turn = curve
    counts = Counts(ALPHA, np.full(9, float(n)), rng.binomial(n, np.exp(value)).astype(float))
    cell = np.repeat(np.arange(9), counts.complied.astype(int))
    k, one = len(cell), np.zeros(len(cell))
    score = slope[cell] + tau * rng.normal(size=k)
    return counts, Sums(cell, one + 1, one == 0, np.zeros((k, 9)), one, one, score, tau**2 - turn[cell])


def parabola(curvature, at_one=-9.0, slope=-12.0):
    x = ALPHA - 1
    return at_one + slope * x + 0.5 * curvature * x**2, slope + curvature * x, np.full(9, curvature)


def test_curvature_is_measured_without_bias_and_with_its_error():
    """Over 50 draws the mean is right within 4 standard errors (1 in 16,000 by chance), the spread within a third."""
    for true, slope in ((0.0, -17.0), (-20.0, -22.0)):
        off, errors = [], []
        for seed in range(50):
            counts, sums = rollouts(parabola(true, -12.0, slope), 1000, 3.0, seed)
            with float64():
                value, error = curvature(bend.evidence(counts, sums), counts.complied > 0)
            off.append(float(value) - true)
            errors.append(float(error))
        assert abs(np.mean(off)) < 4 / np.sqrt(len(off)) * np.std(off)
        assert 0.67 < np.std(off) / np.sqrt(np.mean(np.square(errors))) < 1.33


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
