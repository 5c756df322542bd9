import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from lpe_jax.estimation import importance as module
from lpe_jax.estimation.importance import defensive, importance, mixture, reweighted, reweighted_path, self_normalised
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.sums import check_sums
from lpe_jax.tiny.truth import mixture_rate
from lpe_jax.types import Counts, Sums
from tests.estimation.toy import make_toy

ALPHAS, ROLLOUTS = (0.0, 0.3, 0.8, 1.0), (200, 40, 1, 30)
ESTIMATORS = [importance, self_normalised, defensive, mixture]


def draw(seed=0, alphas=ALPHAS, rollouts=ROLLOUTS, **toy):
    with float64():
        return make_toy(seed, **toy).draw(np.random.default_rng(seed), alphas, rollouts)


def fields(estimate, *without):
    return {name: value for name, value in vars(estimate).items() if name not in without}


def assert_same(one, other, *without, rtol=1e-9):
    for name, value in fields(one, "used", *without).items():
        np.testing.assert_allclose(getattr(other, name), value, rtol=rtol, atol=1e-12, err_msg=name)


def plain_loop(counts, sums, cells):
    """The balance heuristic, one rollout at a time: rate, and weights of compliant rollouts."""
    weights = []
    for row in range(len(sums.count)):
        if sums.cell[row] in cells and sums.complied[row]:
            mixed = sum(counts.scored[k] * np.exp(sums.logp[row, k]) for k in cells)
            weights += [np.exp(sums.logp_original[row]) / mixed] * int(sums.count[row])
    return sum(weights), np.array(weights)


@pytest.mark.parametrize(
    ("estimator", "cells"), [(importance, [0]), (defensive, [0, 3]), (mixture, [0, 1, 2, 3])], ids=lambda x: str(x)[:20]
)
@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_loop(estimator, cells, seed):
    counts, sums = draw(seed)
    estimate = estimator(counts, sums)
    rate, w = plain_loop(counts, sums, cells)
    np.testing.assert_allclose(estimate.log10_rate, np.log10(rate), rtol=1e-10)
    np.testing.assert_allclose(estimate.ess, w.sum() ** 2 / (w**2).sum(), rtol=1e-10)
    np.testing.assert_allclose(estimate.largest, w.max() / w.sum(), rtol=1e-10)
    assert estimate.used.tolist() == [k in cells for k in range(4)] and estimate.rollouts == sum(ROLLOUTS)


@pytest.mark.parametrize("seed", range(3))
def test_mixture_agrees_with_the_truth_tables(seed):
    counts, sums = draw(seed)
    mine = np.where(sums.complied, sums.count, 0)[:, None] * (sums.cell[:, None] == np.arange(4))
    rate, error, size = mixture_rate(mine, sums.logp, np.array(ROLLOUTS))
    np.testing.assert_allclose(mixture(counts, sums).log10_rate, rate, rtol=1e-10)
    np.testing.assert_allclose([x[-1] for x in reweighted_path(counts, sums)], [rate, error, size], rtol=1e-10)
    np.testing.assert_allclose(reweighted(counts, sums, 3), [rate, error, size], rtol=1e-10)


def test_self_normalised_against_a_plain_loop():
    counts, sums = draw()
    here = sums.cell == 0
    w = np.exp(sums.logp_original - sums.logp_variant) * sums.count * here
    np.testing.assert_allclose(
        self_normalised(counts, sums).log10_rate, np.log10(w[sums.complied].sum() / w.sum()), rtol=1e-10
    )


def test_far_below_the_range_of_floats():
    counts, sums = draw()
    lower = dataclasses.replace(sums, logp_original=sums.logp_original - 900)
    for estimator in (importance, mixture):
        np.testing.assert_allclose(
            estimator(counts, lower).log10_rate,
            estimator(counts, sums).log10_rate - 900 / np.log(10),
            rtol=1e-12,
        )


def repeated(function, toy, alphas, rollouts, n=2000):
    """`function` of n draws of the toy, at once."""
    with float64():
        rng = np.random.default_rng(8)
        logp = np.stack([toy.logp(alpha) for alpha in alphas])
        p = np.exp(logp) / np.exp(logp).sum(1, keepdims=True)
        drawn = np.stack([rng.multinomial(m, q, size=n) for m, q in zip(rollouts, p, strict=True)], axis=1)
        counts, sums = toy.table(alphas, rollouts, drawn[0])

        def one(drawn, complied):
            replaced = dataclasses.replace(sums, count=drawn.ravel())
            return function(Counts(counts.alpha, counts.scored, complied), replaced)

        return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(drawn, (drawn * toy.complied).sum(2)))


@pytest.mark.parametrize("estimator", [importance, defensive, mixture])
def test_unbiased_and_as_sure_as_it_says(estimator):
    toy = make_toy(3, spread=0.5, share=0.2)
    with float64():
        truth = float(toy.log_rate(1.0)) / np.log(10)
    estimates = repeated(estimator, toy, (0.0, 0.5, 1.0), (1000, 40, 100))
    rates = 10.0**estimates.log10_rate
    assert rates.max() < 1
    # Four standard errors: one seed in 16,000 would fail.
    assert abs(rates.mean() - 10.0**truth) < 4 * rates.std() / np.sqrt(len(rates))
    sure = estimates.identified
    assert sure.mean() > 0.95
    covered = (estimates.low <= truth) & (truth <= estimates.high)
    assert 0.93 < covered[sure].mean() < 0.985


def test_self_normalised_is_near_and_as_sure_as_it_says():
    toy = make_toy(3, spread=0.5, share=0.2)
    with float64():
        truth = float(toy.log_rate(1.0)) / np.log(10)
    estimates = repeated(self_normalised, toy, (0.0,), (1000,), n=2000)
    covered = (estimates.low <= truth) & (truth <= estimates.high)
    assert estimates.identified.mean() > 0.95 and 0.93 < covered[estimates.identified].mean() < 0.985


def test_weights_have_mean_one_whatever_complies():
    # Everything complies: the rate is then 1 at every alpha, and its estimate the mean weight. Four standard errors.
    toy = dataclasses.replace(make_toy(4, spread=0.7), complied=np.ones(121, bool))
    rates = 10.0 ** repeated(lambda c, s: reweighted_path(c, s)[0], toy, (0.0, 0.5, 1.0), (300, 1, 1))
    errors = rates.std(axis=0) / np.sqrt(len(rates))
    assert (np.abs(rates.mean(axis=0) - 1) < 4 * errors).all() and (errors < 0.02).all()


def test_the_whole_path_from_rollouts_anywhere():
    toy = make_toy(5, spread=0.5)
    alphas = (0.0, 0.2, 0.7, 1.0)
    with float64():
        truth = np.array([toy.log_rate(alpha) for alpha in alphas]) / np.log(10)
    rates, errors, sizes = repeated(reweighted_path, toy, alphas, (0, 200, 0, 200))
    z = (rates - truth) / errors
    assert np.abs(z.mean(axis=0)).max() < 0.15 and (np.abs(z.std(axis=0) - 1) < 0.1).all() and sizes.min() > 10


@jax.jit
def many_mixtures(counts, sums):
    return jax.vmap(mixture)(counts, sums)


def log_normal(seed, spread, hits, n=1000, repeats=600):
    """Estimates [repeats] of a rate of 1e-6 from n rollouts of the variant, about `hits` compliant, with log-normal
    weights whose logs have standard deviation `spread`."""
    rng = np.random.default_rng(seed)
    share, shape = hits / n, (repeats, n)
    log_weight = np.log(1e-6 / share) + spread * rng.standard_normal(shape) - spread**2 / 2
    complied = rng.random(shape) < share
    zeros, ones, none = np.zeros(shape), np.ones(shape), np.zeros(repeats, int)
    logp = np.stack([log_weight, zeros], axis=-1)
    counts = Counts(
        np.tile([1.0, 0.0], (repeats, 1)), np.stack([none, none + n], 1), np.stack([none, complied.sum(1)], 1)
    )
    with float64():
        sums = Sums(ones.astype(int), ones, complied, logp, log_weight, zeros, zeros, zeros)
        return jax.tree.map(np.asarray, many_mixtures(counts, sums))


@pytest.mark.parametrize(("spread", "hits"), [(0.0, 50), (1.0, 60), (1.5, 200)])
def test_intervals_hold_the_rate_where_weights_are_log_normal(spread, hits):
    estimates = log_normal(0, spread, hits)
    sure = estimates.identified
    covered = ((estimates.low <= -6) & (estimates.high >= -6))[sure].mean()
    # 95 % with a standard error of .9 %.
    assert sure.mean() > 0.85 and 0.92 < covered < 0.99


def test_heavy_tails_are_refused_and_markov_still_bounds_them():
    estimates = log_normal(1, 3.0, 300)
    assert (estimates.ess > 10).mean() > 0.2 and estimates.identified.mean() < 0.01
    assert (estimates.high == 0).mean() > 0.99 and (estimates.low <= -6).mean() > 0.975


def test_equal_weights_give_garwoods_interval():
    # Naive counts: every compliant rollout weighs 1 / n.
    n, k = 100_000, 25
    counts = Counts(np.array([1.0]), np.array([n]), np.array([k]))
    sums = Sums(*(np.array([x]) for x in (0, k, True)), np.array([[-3.0]]), *(np.array([-3.0]) for _ in range(4)))
    estimate = mixture(counts, sums)
    assert estimate.identified
    ends = np.log10([chi2.ppf(0.025, 2 * k) / 2 / n, chi2.ppf(0.975, 2 * k + 2) / 2 / n])
    np.testing.assert_allclose([estimate.low, estimate.high], ends, atol=5e-3)


def test_gamma_interval_is_fay_and_feuers():
    w = np.random.default_rng(0).lognormal(0, 0.8, 40)
    y, v, top = w.sum(), (w**2).sum(), w.max()
    low = (v + top**2) / (2 * y) * chi2.ppf(0.025, 2 * y**2 / (v + top**2))
    high = (v + top**2) / (2 * (y + top)) * chi2.ppf(0.975, 2 * (y + top) ** 2 / (v + top**2))
    ends = module._gamma_interval(np.log(y) - 20, v / y**2, top / y)
    np.testing.assert_allclose(ends, np.log([low, high]) - 20, atol=5e-3)


def test_without_a_hit_rollouts_of_the_original_bound_the_rate():
    counts, sums = draw()
    none = dataclasses.replace(sums, complied=np.zeros_like(sums.complied))
    counts = dataclasses.replace(counts, complied=0 * counts.complied)
    for estimator in ESTIMATORS:
        estimate = estimator(counts, none)
        assert estimate.log10_rate == estimate.low == -np.inf and not estimate.identified and estimate.ess == 0
        bounded = estimator in (defensive, mixture)
        expected = np.log10(chi2.ppf(0.975, 2) / 2 / 30) if bounded else 0.0
        np.testing.assert_allclose(estimate.high, expected, atol=5e-3)


def test_without_a_rollout_nothing_is_said():
    counts, sums = draw()
    counts = Counts(counts.alpha, 0 * counts.scored, 0 * counts.complied)
    for estimator in ESTIMATORS:
        estimate = estimator(counts, dataclasses.replace(sums, count=0 * sums.count))
        assert np.isnan(estimate.log10_rate) and not estimate.identified and not estimate.used.any()
        assert (estimate.low, estimate.high) == (-np.inf, 0)


def test_what_an_estimator_needs_must_have_been_drawn():
    def identified(estimator, *rollouts):
        return bool(estimator(*draw(rollouts=rollouts, spread=0.3)).identified)

    assert not identified(importance, 0, 500, 0, 500) and identified(importance, 500, 0, 0, 0)
    assert not identified(defensive, 500, 0, 500, 0) and not identified(defensive, 0, 0, 500, 500)
    assert identified(defensive, 500, 0, 0, 500) and identified(mixture, 0, 500, 0, 0)


def test_self_normalised_needs_the_refused_rows():
    counts, sums = draw(spread=0.3)
    assert self_normalised(counts, sums).identified
    partial = dataclasses.replace(sums, count=np.where(sums.complied, sums.count, 0))
    estimate = self_normalised(counts, partial)
    assert not estimate.identified and np.isnan(estimate.log10_rate)
    assert (estimate.low, estimate.high) == (-np.inf, 0)
    for estimator in (importance, defensive, mixture):
        assert_same(estimator(counts, partial), estimator(counts, sums))


def test_unscored_rollouts_are_not_in_n():
    counts, sums = draw(alphas=(0.0,), rollouts=(300,))
    half = dataclasses.replace(counts, scored=counts.scored * 2)
    moved = importance(half, sums).log10_rate - importance(counts, sums).log10_rate
    np.testing.assert_allclose(moved, -np.log10(2), rtol=1e-12)


def test_naive_hits_are_enough_whatever_the_other_weights_are():
    # 40 hits among 400 rollouts of the original, and refused variants that any path would call hopeless.
    n_original, n_variant, hits = 400, 1000, 40
    logp = np.array([[-50.0, -2.0], [-2.0, -200.0]])  # [row, (variant, original)]
    counts = Counts(np.array([0.0, 1.0]), np.array([n_variant, n_original]), np.array([900, hits]))
    sums = Sums(
        np.array([1, 0]),
        np.array([hits, 900]),
        np.ones(2, bool),
        logp,
        logp[:, 1],
        logp[:, 0],
        np.zeros(2),
        np.zeros(2),
    )
    estimate = mixture(counts, sums)
    assert estimate.identified
    np.testing.assert_allclose(estimate.log10_rate, np.log10(hits / n_original), rtol=1e-6)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_order_splits_and_padding_change_nothing(seed):
    counts, sums = draw(seed % 5)
    rng = np.random.default_rng(seed)
    part = rng.integers(0, sums.count + 1)
    junk = {name: np.repeat(np.asarray(value)[:1], 7, axis=0) for name, value in vars(sums).items()}
    for name in ("logp", "logp_original", "logp_variant", "path_score"):
        junk[name] = np.full_like(junk[name], rng.choice([np.nan, np.inf, -np.inf]))
    junk |= {"count": np.zeros(7, int), "cell": np.full(7, rng.choice([-5, 0, 99]))}
    rows = {name: np.concatenate([value, value, junk[name]]) for name, value in vars(sums).items()}
    rows["count"] = np.concatenate([part, sums.count - part, junk["count"]])
    order = rng.permutation(len(rows["count"]))
    cells = rng.permutation(4)  # cells[new] = old
    rows = {name: value[order] for name, value in rows.items()}
    known = (rows["cell"] >= 0) & (rows["cell"] < 4)
    rows["cell"] = np.where(known, np.argsort(cells)[np.where(known, rows["cell"], 0)], rows["cell"])
    rows["logp"] = rows["logp"][:, cells]
    shuffled = Counts(counts.alpha[cells], counts.scored[cells], counts.complied[cells])
    for estimator in (mixture, self_normalised):
        estimate = estimator(counts, sums)
        other = estimator(shuffled, Sums(**rows))
        assert_same(estimate, other)
        assert (other.used == estimate.used[cells]).all()


@pytest.mark.parametrize("estimator", [importance, defensive, mixture, self_normalised])
def test_more_of_the_same_only_narrows_the_interval(estimator):
    counts, sums = draw(spread=0.3)
    more = estimator(
        Counts(counts.alpha, 9 * counts.scored, 9 * counts.complied), dataclasses.replace(sums, count=9 * sums.count)
    )
    once = estimator(counts, sums)
    np.testing.assert_allclose(more.log10_rate, once.log10_rate, rtol=1e-12)
    np.testing.assert_allclose([more.ess, 9 * more.largest], [9 * once.ess, once.largest], rtol=1e-9)
    ratio = (more.high - more.low) / (once.high - once.low)
    assert 0.28 < ratio < 0.36


def test_check_sums_passes_what_is_well_and_gives_numpy():
    counts, sums = draw()
    checked = check_sums(counts, jax.tree.map(list, sums))
    assert all(isinstance(value, np.ndarray) for value in vars(checked).values())
    assert_same(mixture(counts, checked), mixture(counts, sums))
    batch = jax.tree.map(lambda x: np.stack([x, x]), (counts, sums))
    assert check_sums(*batch).logp.shape == (2, *sums.logp.shape)


def broken(sums, name, index, value):
    values = np.array(getattr(sums, name), float if name in ("count", "cell") else None)
    values[index] = value
    return dataclasses.replace(sums, **{name: values})


def test_check_sums_says_what_is_wrong():
    counts, sums = draw()
    row = int(np.argmax((sums.count > 0) & sums.complied))
    refused = int(np.argmax((sums.count > 0) & ~sums.complied))
    cases = [
        (dataclasses.replace(sums, logp=sums.logp[:, :3]), r"logp must have shape \(484, 4\)"),
        (dataclasses.replace(sums, cell=sums.cell[:5]), "cell must have shape"),
        (dataclasses.replace(sums, count=sums.count[None]), "count must have shape"),
        (broken(sums, "count", row, -1), f"count must be a whole number >= 0, and is -1.0 in row {row}"),
        (broken(sums, "count", row, 0.5), "whole number"),
        (broken(sums, "count", row, np.nan), "whole number"),
        (broken(sums, "cell", row, 4), f"cell must index one of the 4 alphas, and is 4.0 in row {row}"),
        (broken(sums, "cell", row, -1), "cell must index"),
        (broken(sums, "logp", (row, 2), np.nan), f"logp must be finite, and is not in row {row}"),
        (broken(sums, "logp_original", row, np.inf), "logp_original must be finite"),
        (broken(sums, "logp_variant", row, -np.inf), "logp_variant must be finite"),
        (broken(sums, "count", row, sums.count[row] + 1), "compliant rows must be complete, and at alpha 0.0"),
        (broken(sums, "count", row, 0), "compliant rows must be complete"),
        (broken(sums, "count", refused, sums.count[refused] + 1), "rows must be of scored rollouts"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            check_sums(counts, wrong)
    # Rows of count 0 may hold anything.
    unused = int(np.argmin(sums.count))
    check_sums(counts, broken(broken(sums, "logp_original", unused, np.nan), "cell", unused, -7))
