import dataclasses
import math

import jax
import numpy as np
import pytest

from lpe_jax.estimation.imputation import correct_estimate, pool, with_judge_error
from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.parts import of_parts
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.procedure import replay
from lpe_jax.estimation.registry import ESTIMATORS, Estimator
from lpe_jax.estimation.result import make_estimate
from lpe_jax.types import Counts, Estimate, Sums

NEARLY_PERFECT = JudgeQuality(10**9, 10**9, 10**9, 10**9)
ALPHA = np.array([[0.8, 0.6, 0.4, 0.2, 0.0]])


def test_a_faultless_judge_changes_nothing():
    counts = Counts(ALPHA, np.full((1, 5), 100), np.array([[0, 3, 12, 30, 70]]))
    plain = ESTIMATORS["lpe"](counts)
    got = with_judge_error(ESTIMATORS["lpe"], counts, None, NEARLY_PERFECT, draws=10)
    for field in ("log10_rate", "low", "high", "slope", "used"):
        np.testing.assert_allclose(getattr(got, field), getattr(plain, field), atol=1e-3)


def test_false_alarms_do_not_become_points_of_a_line():
    """A judge with specificity 0.99 on log-linear paths with a rate of 1e-5 at alpha = 1.

    32 paths. Measured over 60: plain LPE's median is -3.8 and 0.38 of its intervals hold the truth; corrected, -4.9
    and 0.98. If 0.95 held it, 27 or fewer of 32 would by chance in 0.02 of seeds; this seed is fixed.
    """
    procedure, rng, truth = LPE(), np.random.default_rng(1), -5.0
    alpha = procedure.grid
    rate = 10 ** (truth * alpha - 0.1 * (1 - alpha))
    true = rng.random((32, len(alpha), procedure.most_per_cell)) < rate[None, :, None]
    judged = np.where(true, rng.random(true.shape) < 0.95, rng.random(true.shape) < 0.01)
    states, plain = replay(procedure, judged)
    with float64():
        fit, search = jax.device_get(jax.vmap(procedure.parts)(states))
    both = Counts(
        *(np.concatenate([getattr(x, n) for x in (fit, search)], -1) for n in ("alpha", "scored", "complied"))
    )

    judge = JudgeQuality(950, 1000, 9900, 10_000)
    got = with_judge_error(of_parts(procedure), both, None, judge, draws=30)
    assert np.median(plain.log10_rate) > truth + 0.7
    assert abs(np.median(got.log10_rate) - truth) < 0.4
    covered = {name: ((e.low <= truth) & (truth <= e.high)).mean() for name, e in (("plain", plain), ("got", got))}
    assert covered["plain"] < 0.6 and covered["got"] >= 28 / 32, covered


def test_one_prompt_of_a_job_keeps_what_it_cost():
    procedure = LPE(alphas=(0.6, 0.3, 0.0))
    fit = Counts(np.array([0.6, 0.3, 0.0]), np.array([100, 100, 90]), np.array([1, 15, 60]))
    search = Counts(fit.alpha, np.array([10, 10, 10]), np.array([0, 2, 7]))
    before = dataclasses.replace(procedure.fit(fit, search), start_alpha=0.0, rollouts=333)
    after = correct_estimate(procedure, before, fit, search, JudgeQuality(95, 100, 990, 1000))
    assert (after.rollouts, after.start_alpha, after.used.shape) == (333, 0.0, (3,))
    assert np.shape(after.log10_rate) == () and after.low < after.log10_rate < after.high
    again = correct_estimate(procedure, before, fit, search, JudgeQuality(95, 100, 990, 1000))
    np.testing.assert_equal(jax.tree.leaves(after), jax.tree.leaves(again))


def test_sums_are_thinned_like_the_counts():
    """An estimator that counts rows sees what the counts say, of each cell, and no row is lost."""

    def count_rows(counts, sums):
        kept = np.float64(0) + (sums.count * sums.complied).sum()
        return make_estimate(counts, kept, kept, sums.count.sum(), used=counts.scored > 0, slope=counts.complied.sum())

    counts = Counts(np.array([[0.5, 0.0]]), np.array([[1000, 1000]]), np.array([[20, 600]]))
    cell, complied = np.array([[0, 0, 1, 1]]), np.array([[True, False, True, False]])
    zeros = np.zeros((1, 4))
    sums = Sums(cell, np.array([[20, 980, 600, 400]]), complied, np.zeros((1, 4, 2)), zeros, zeros, zeros, zeros)
    estimator = Estimator("rows", count_rows, needs_sums=True)
    # Every hit of the first cell may be a false alarm; sensitivity is nearly 1, so no refusal is flipped.
    got = with_judge_error(estimator, counts, sums, JudgeQuality(10**9, 10**9, 98_000, 100_000), draws=20)
    assert got.slope[0] == got.log10_rate[0]
    assert 585 <= got.log10_rate[0] <= 605, got.log10_rate
    with pytest.raises(ValueError, match="draws must be at least 2"):
        with_judge_error(estimator, counts, sums, NEARLY_PERFECT, draws=1)


def draws_of(rate, low, high, fallback=None):
    n = len(rate)
    fields = {f.name: np.full(n, math.nan) for f in dataclasses.fields(Estimate)}
    flags = {"identified": np.ones(n, bool), "fallback": np.zeros(n, bool) if fallback is None else fallback}
    return Estimate(**fields | flags | {"log10_rate": rate, "low": low, "high": high, "used": np.ones((n, 2), bool)})


def test_pool_of_equal_draws_is_that_draw():
    got = pool(draws_of(np.full(9, -5.0), np.full(9, -8.0), np.full(9, -4.0)))
    assert (got.log10_rate, got.low, got.high) == pytest.approx((-5.0, -8.0, -4.0), abs=1e-6)


def test_pool_is_the_quantile_of_the_mixture():
    rng = np.random.default_rng(0)
    rate = rng.normal(-5, 0.5, 40)
    left, right = rng.uniform(0.5, 2, (2, 40))
    got = pool(draws_of(rate, rate - 1.96 * left, rate + 1.96 * right))
    z = rng.normal(size=(40_000, 40))
    samples = rate + np.where(z < 0, left, right) * z
    # The samples' own 2.5 % quantiles are right to about 0.01.
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=0.02)


def test_pool_with_ends_that_bound_nothing_and_fallbacks():
    rate, low, high = np.full(40, -5.0), np.full(40, -6.0), np.full(40, -4.0)
    low[:1] = -math.inf  # half of a fortieth lies below every number, less than a fortieth
    assert math.isfinite(pool(draws_of(rate, low, high)).low)
    low[:3] = -math.inf
    high[:3] = 0.0
    got = pool(draws_of(rate, low, high))
    assert got.low == -math.inf and got.high == 0.0
    none = pool(draws_of(np.full(40, -math.inf), np.full(40, -math.inf), high - 0.5 * (high == 0)))
    assert none.log10_rate == -math.inf and none.low == -math.inf and -4.0 <= none.high < 0
    rate[:15], fallback = -6.0, np.arange(40) < 15
    got = pool(draws_of(rate, low, high, fallback))
    assert got.log10_rate == -5.0 and not got.fallback
