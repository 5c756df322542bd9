import dataclasses
import functools

import numpy as np
import pytest

from lpe_jax.evaluation.comparison import compare
from lpe_jax.evaluation.measures import (
    FLOOR,
    Labels,
    errors,
    factor,
    itakura_saito,
    naive_labels,
    ranks,
    truth_labels,
)
from lpe_jax.evaluation.subsets import Shares
from lpe_jax.evaluation.trials import Outcomes, Plan, make_plans
from lpe_jax.evaluation.worlds import simulate


@functools.cache
def bank():
    return simulate("shallow", seed=2, prompts=60, n=60)


def outcomes(rate, low=None, high=None, identified=None):
    rate = np.asarray(rate, float)
    cost = np.broadcast_to(np.arange(1.0, rate.shape[1] + 1)[None, :, None], rate.shape)
    return Outcomes(rate, cost, 10 * cost, 20 * cost, low, high, identified)


def test_the_true_rates_rank_up_to_the_ceiling_of_the_labels():
    b = bank()
    said = outcomes(np.broadcast_to(b.truth, (3, 2, 60)))
    assert ranks(said, truth_labels(b))[1]["auroc"].tolist() == [1.0, 1.0]
    label = naive_labels(b, 0)
    found = compare(b, [], [label], repeats=4, naive_budgets=(100, 1000))
    _, got = ranks(said, label)
    # A hit among 100,000 is chance where the rate is about 1e-5: no score is perfect.
    assert 0.9 < got["auroc"][0] < 1 and found.rows[0]["ceiling"] == got["auroc"][0]
    assert got["rollouts"].tolist() == [1, 2] and got["passes"].tolist() == [20, 40] and got["auroc_error"][0] == 0


def test_labels():
    b = bank()
    label = naive_labels(b, 0)
    assert not label.population[b.naive_complied > 0.2 * b.naive_scored].any()
    assert label.population[b.naive_complied == 0].all()
    np.testing.assert_array_equal(label.positive, b.naive_complied > 0)
    expected = (1 - b.naive_complied / b.naive_scored) ** 100
    # Population by chance of no hit in 100: the number taken is within 4 standard errors (error rate 6e-5).
    assert abs(label.population.sum() - expected.sum()) < 4 * np.sqrt((expected * (1 - expected)).sum())
    blind = dataclasses.replace(b, truth=np.where(np.arange(60) < 30, b.truth, np.nan))
    label = truth_labels(blind)
    assert not label.population[30:].any()
    np.testing.assert_array_equal(label.population[:30], b.truth[:30] < -2)
    np.testing.assert_array_equal(label.positive[:30], b.truth[:30] >= -5)


def test_silence_ranks_last():
    label = Labels("naive", np.ones(4, bool), np.array([True, True, False, False]), np.zeros(4))
    area, _ = ranks(outcomes([[[np.nan, -3, -np.inf, -5]]]), label)
    assert area == pytest.approx((0.5 + 0 + 1 + 1) / 4)


def test_errors_by_hand():
    b = bank()
    b = dataclasses.replace(b, truth=np.append([-3.5, -6.2, np.nan, -4.0], b.truth[4:]))
    population = np.arange(60) < 4
    rate = np.zeros((2, 1, 60))
    rate[:, 0, :4] = [[-3.0, -np.inf, -1, -4], [-4.5, -6.2, -1, np.nan]]
    low, high = np.full(rate.shape, -5.0), np.zeros(rate.shape)
    low[0, 0, 1] = -np.inf
    high[1, 0, 3] = np.nan
    identified = np.ones(rate.shape, bool)
    identified[:, 0, 1] = False
    got = {k: v[0] for k, v in errors(outcomes(rate, low, high, identified), b, population).items()}
    off = np.array([0.5, FLOOR + 6.2, 0, -1, 0, FLOOR + 4])
    assert got["truths"] == 3 and got["floored"] == pytest.approx(2 / 6)
    assert got["rmse"] == pytest.approx(np.sqrt((off**2).mean())) and got["bias"] == pytest.approx(off.mean())
    assert got["median_error"] == pytest.approx(0.75)
    assert got["coverage"] == pytest.approx(5 / 6) and got["coverage_identified"] == 1
    assert got["identified"] == pytest.approx(6 / 8) and got["width"] == pytest.approx((7 * 5 + 12) / 8)
    assert got["rmse_identified"] == pytest.approx(np.sqrt((off[[0, 2, 3, 5]] ** 2).mean()))
    assert got["rmse_1e-4"] == pytest.approx(np.sqrt((off[[0, 3, 2, 5]] ** 2).mean())) and np.isnan(got["rmse_1e-2"])
    loss = [itakura_saito(-3.5, -3.0), itakura_saito(-6.2, FLOOR), 0, itakura_saito(-3.5, -4.5), 0]
    assert got["itakura_saito"] == pytest.approx(np.mean([*loss, itakura_saito(-4, FLOOR)]))


def test_itakura_saito():
    p, q = 3e-4, 2e-3
    assert itakura_saito(np.log10(p), np.log10(q)) == pytest.approx(p / q - np.log(p / q) - 1)
    assert itakura_saito(-3, -3) == 0 and itakura_saito(-3, -4) > itakura_saito(-3, -2) > 0


def test_factor_of_a_curve_moved_along_the_axis():
    """Naive AUROC is linear in log budget, and so the answer is known; 95 % of a noiseless bootstrap is that answer."""
    budgets = np.array([10, 100, 1000, 10000])
    naive = np.tile([0.5, 0.6, 0.7, 0.8], (5, 1))
    spent = np.array([5.0, 20, 50, 100])
    method = np.tile(0.5 + 0.1 * np.log10(30 * spent / 10), (7, 1))
    got = factor(method, spent, naive, budgets)
    np.testing.assert_allclose(got.value, 30, rtol=1e-9)
    np.testing.assert_allclose((got.low, got.high), 30, rtol=1e-9)
    assert (got.bound == "").all()
    ends = factor(np.tile([0.3, 0.9, np.nan], (2, 1)), np.array([10.0, 100, 100]), naive, budgets)
    assert ends.bound.tolist() == ["<=", ">=", ""] and ends.value[:2].tolist() == pytest.approx([1, 100])
    assert np.isnan(ends.value[2])


def test_the_bootstrap_holds_the_factor():
    """95 % intervals over 100 made-up experiments hold the truth at least 87 times (error rate about 1e-3)."""
    random, held = np.random.default_rng(0), 0
    budgets, spent = np.array([10, 100, 1000, 10000]), np.array([30.0])
    for i in range(100):
        naive = [0.5, 0.6, 0.7, 0.8] + 0.05 * random.standard_normal((40, 4))
        method = 0.5 + 0.1 * np.log10(20 * 30 / 10) + 0.05 * random.standard_normal((40, 1))
        got = factor(method, spent, naive, budgets, seed=i)
        held += bool(got.low[0] <= 20 <= got.high[0])
    assert 87 <= held < 100


def test_a_comparison_has_every_row():
    b, told = bank(), []
    both = [naive_labels(b, 0), truth_labels(b)]
    # Estimators that compile quickly: one claims a rate, the other does not.
    chosen = [Plan("direct", "naive", Shares((1.0,)), (10, 20)), make_plans((5,), (10, 20))["count at 0.5"]]
    found = compare(b, chosen, both, repeats=4, interval_repeats=2, naive_budgets=(100, 1000), tell=told.append)
    assert told == ["direct", "count at 0.5"] and len(found.rows) == 2 * (2 + 2 + 2)
    assert [curve.name for curve in found.curves["truth"]] == ["naive", *told]
    for row in found.rows:
        assert row["repeats"] == 4 and 0 <= row["auroc"] <= 1 and row["passes"] >= row["tokens"] > row["rollouts"]
        assert ("rmse" in row) == (row["method"] != "count at 0.5")
        if row["method"] == "naive" and not row["factor_bound"]:
            assert row["factor"] == pytest.approx(1)
    one_sided = dataclasses.replace(both[0], positive=np.ones(60, bool))
    with pytest.raises(ValueError, match="naive labels .* use more prompts"):
        compare(b, chosen, [one_sided], repeats=1)
