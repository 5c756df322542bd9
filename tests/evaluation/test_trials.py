import dataclasses
import functools

import jax
import numpy as np
import pytest

from lpe_jax.estimation.registry import ESTIMATORS
from lpe_jax.evaluation.subsets import AlongThePath, Shares, prime_at_most, prompt_numbers, rollout_order
from lpe_jax.evaluation.trials import Plan, make_plans, paths, run, run_naive
from lpe_jax.evaluation.worlds import simulate
from lpe_jax.types import Counts, Sums

# Repeats are shared out in halves where there are two cores: 3 and 4 of them then take one program.
N_FIT, SIZES, REPEATS, SEED = (4, 9), (8, 30), 3, 5
PLANS = make_plans(N_FIT, SIZES)


@functools.cache
def bank():
    """Twelve prompts of 60 rollouts, some of which have no verdict."""
    made = simulate("stages", seed=3, prompts=12, n=60, n_naive=1000)
    return dataclasses.replace(made, scored=np.random.default_rng(0).random(made.scored.shape) < 0.95)


@functools.cache
def lpe_runs():
    return run(bank(), PLANS["lpe"], repeats=REPEATS, seed=SEED)


def cells_of(alphas):
    return [int(np.argmin(np.abs(bank().alpha - alpha))) for alpha in alphas]


def order_of(repeat, cells, most):
    key = jax.random.fold_in(jax.random.key(SEED), repeat)
    return np.asarray(rollout_order(key, prompt_numbers(bank().prompt_ids), cells, most, prime_at_most(60)))


def lpe_by_hand(complied, scored, tokens, grid, n_fit, n_search=10):
    """(log10 rate, drawn [A]) of one prompt as the post says it: plain loops over rollouts in their order [A, m]."""
    drawn, size = np.zeros(len(grid), int), len(grid)
    for start in range(size):
        drawn[start] = n_search
        n, k = scored[start, :n_search].sum(), complied[start, :n_search].sum()
        if n and k / n >= 0.5:
            break
    points = []
    for cell in range(start, -1, -1):
        n, k = (x[cell, n_search : n_search + n_fit].sum() for x in (scored, complied))
        drawn[cell] += n_fit
        if n and not k:
            break
        if n:
            points.append((grid[cell], k / n))
    used = [point for point in points if point[1] < 0.5]
    used = used if len(used) >= 2 else points
    if len(used) < 2:
        beside = len(points) == 1 and points[0][0] >= 0.9 and points[0][1] >= 0.5
        return np.log10(points[0][1] if beside else 1e-6), drawn
    x, y = np.array(used).T
    return min(np.polyval(np.polyfit(x, np.log10(y), 1), 1.0), 0.0), drawn


def test_lpe_is_the_loop_by_hand():
    plan, b = PLANS["lpe"], bank()
    got = lpe_runs()
    cells, grid = cells_of(plan.allocation.alphas), plan.allocation.lpe.grid
    passes = np.where((grid > 0) & (grid < 1), 2, 1)
    for r in range(REPEATS):
        order = order_of(r, len(cells), 10 + max(N_FIT))
        for p in range(12):
            scored, complied, tokens = (
                np.take_along_axis(x[p, cells], order[p], axis=-1) for x in (b.scored, b.complied & b.scored, b.tokens)
            )
            for i, n_fit in enumerate(N_FIT):
                rate, drawn = lpe_by_hand(complied, scored, tokens, grid, n_fit)
                taken = np.array([row[:n].sum() for row, n in zip(tokens, drawn, strict=True)])
                assert got.log10_rate[r, i, p] == pytest.approx(rate, abs=1e-10)
                assert got.rollouts[r, i, p] == drawn.sum()
                assert got.tokens[r, i, p] == taken.sum() and got.passes[r, i, p] == (taken * passes).sum()


def sums_by_hand(order, drawn, cells, p, refused):
    """Every rollout drawn of prompt p as Counts [1, A] and Sums [1, 500]; padding of one shape compiles once."""
    b, rows = bank(), []
    counts = np.zeros((2, len(cells)), int)
    for a, cell in enumerate(cells):
        for i in order[a, : drawn[a]]:
            counts[:, a] += b.scored[p, cell, i], b.scored[p, cell, i] & b.complied[p, cell, i]
            if b.scored[p, cell, i] and (refused or b.complied[p, cell, i]):
                rows.append((a, cell, i))
    a, cell, i = np.array(rows).reshape(-1, 3).T
    logp = b.logp[p, cell, i]
    sums = Sums(
        cell=a,
        count=np.ones(len(a)),  # 0 where padded
        complied=b.complied[p, cell, i],
        logp=logp[:, cells],
        logp_original=logp[:, 0],
        logp_variant=logp[:, -1],
        path_score=b.path_score[p, cell, i],
        path_variance=b.path_variance[p, cell, i],
    )
    counts = Counts(b.alpha[cells], *counts)
    sums = jax.tree.map(lambda x: np.pad(x, [(0, 500 - len(a))] + [(0, 0)] * (x.ndim - 1)), sums)
    return jax.tree.map(lambda x: np.asarray(x)[None], (counts, sums))


@pytest.mark.parametrize(
    "name", [pytest.param("importance", marks=pytest.mark.slow), "self_normalised", "defensive", "mixture"]
)
def test_rows_are_those_of_the_rollouts_drawn(name):
    plan, b = PLANS[name], bank()
    got = run(b, plan, repeats=REPEATS, seed=SEED, intervals=True)
    cells = cells_of(plan.allocation.alphas)
    order = order_of(1, len(cells), max(plan.allocation.ends(plan.budgets)))
    lpe = lpe_runs()
    for i, budget in enumerate(plan.budgets):
        for p in (0, 5, 11):
            if isinstance(plan.allocation, Shares):
                drawn = plan.allocation.divided(budget)
            else:
                args = (np.take_along_axis(x[p, cells], order[p], axis=-1) for x in (b.complied & b.scored, b.scored))
                drawn = lpe_by_hand(*args, None, plan.allocation.lpe.grid, budget)[1]
                assert got.rollouts[1, i, p] == lpe.rollouts[1, i, p], "on LPE's rollouts"
            want = ESTIMATORS[name](*sums_by_hand(order[p], drawn, cells, p, plan.refused))
            for field in ("log10_rate", "low", "high", "identified"):
                np.testing.assert_allclose(
                    getattr(got, field)[1, i, p], np.asarray(getattr(want, field))[0], rtol=1e-9, err_msg=field
                )
    assert (got.passes == 2 * got.tokens).all(), "weights take both models"


def test_the_count_is_of_one_alpha():
    b, plan = bank(), PLANS["count at 0.4"]
    got = run(b, plan, repeats=1, seed=SEED)
    cell, order = cells_of([0.4])[0], order_of(0, 1, max(SIZES))[:, 0]
    for i, n in enumerate(SIZES):
        k, m = (np.take_along_axis(x[:, cell], order[:, :n], -1).sum(-1) for x in (b.complied & b.scored, b.scored))
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(got.log10_rate[0, i], np.log10(k / m), rtol=1e-12)
        assert (got.rollouts[0, i] == n).all()


def test_order_of_prompts_and_number_of_repeats_change_nothing():
    b, turn = bank(), np.random.default_rng(0).permutation(12)
    fields = {f.name: np.asarray(getattr(b, f.name))[turn] for f in dataclasses.fields(b) if f.name != "alpha"}
    turned = dataclasses.replace(b, **fields | {"prompt_ids": tuple(fields["prompt_ids"].tolist())})
    for trial in (
        functools.partial(run, plan=PLANS["lpe"]),
        functools.partial(run_naive, budgets=(10, 100)),
    ):
        one, other = (trial(x, repeats=3, seed=SEED) for x in (b, turned))
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[..., turn], y), one, other)
    fewer = lpe_runs()
    more = run(b, PLANS["lpe"], repeats=REPEATS + 1, seed=SEED).first(REPEATS)
    jax.tree.map(np.testing.assert_array_equal, fewer, more)
    assert (run(b, PLANS["lpe"], repeats=REPEATS, seed=SEED + 1).log10_rate != fewer.log10_rate).any()


def test_naive_draws_are_binomial_and_their_intervals_nominal():
    """8 rates, 500 repeats: mean within 4.5 standard errors (error rate 5e-5), coverage at least 95 % less 4 errors."""
    b = jax.tree.map(lambda x: x, bank())
    rate = np.array([0.0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.95, 1.0])
    got = run_naive(b, (50, 2000), repeats=500, seed=1, rate=rate, intervals=True)
    for i, n in enumerate((50, 2000)):
        share = 10.0 ** got.log10_rate[:, i]
        error = np.sqrt(rate * (1 - rate) / n / 500)
        assert (np.abs(share.mean(axis=0) - rate) <= 4.5 * error).all()
        with np.errstate(divide="ignore"):
            truth = np.log10(rate)
        held = ((got.low[:, i] <= truth) & (truth <= got.high[:, i])).mean(axis=0)
        assert (held >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / 500)).all()
    assert held[4:9].mean() < 0.99, "exact, but not by holding everything"
    assert (got.rollouts == np.array([50, 2000])[None, :, None]).all()
    np.testing.assert_allclose(got.tokens[0, 1], 2000 * b.tokens[:, 0].mean(axis=-1))


def test_what_a_bank_cannot_give_is_refused():
    b = bank()
    with pytest.raises(ValueError, match="59 .the largest prime"):
        run(b, Plan("greedy", "count", Shares((0.5,)), (60,)), repeats=1, seed=0)
    with pytest.raises(ValueError, match="no rollouts at alpha 0.33"):
        run(b, Plan("beside", "count", Shares((0.33,)), (5,)), repeats=1, seed=0)
    bare = b.logp.copy()
    bare[..., 1:-1] = np.nan  # log p at both ends, as a sweep without a grid keeps it
    bare = dataclasses.replace(b, logp=bare)
    found = run(bare, PLANS["self_normalised"], repeats=REPEATS, seed=SEED, intervals=True)
    assert found.log10_rate.shape == (REPEATS, 2, 12)
    # Path scores do without.
    found = run(bare, PLANS["lpe doubted"], repeats=REPEATS, seed=SEED, intervals=True)
    assert np.isfinite(found.high).all()
    with pytest.raises(ValueError, match="mixture weighs rollouts by log p at every alpha"):
        run(bare, PLANS["mixture"], repeats=1, seed=0)


def test_every_estimator_has_a_plan():
    assert {plan.estimator for plan in PLANS.values()} >= set(ESTIMATORS) - {"naive", "lpe"}
    assert isinstance(PLANS["lpe"].allocation, AlongThePath) and not PLANS["lpe"].slow


def test_paths_are_lpe_at_one_subset():
    b, lpe = bank(), PLANS["lpe"].allocation.with_budget(9)
    want = lpe_runs().log10_rate[0, N_FIT.index(9)]
    for p, panel in zip((3, 0), paths(b, lpe, (3, 0), seed=SEED), strict=True):
        assert panel.prompt_id == b.prompt_ids[p] and panel.truth == b.truth[p] == panel.truth_low
        if np.isfinite(panel.intercept):
            assert min(panel.intercept, 0.0) == pytest.approx(want[p], abs=1e-10)
        assert panel.counts.scored.max() <= 9 and panel.used.shape == panel.counts.scored.shape
    blind = dataclasses.replace(b, truth=np.full(12, np.nan), naive_complied=np.arange(12))
    known, none = paths(blind, lpe, (3, 0), seed=SEED)
    assert known.truth == pytest.approx(np.log10(3 / 1000)) and known.truth_low < known.truth < known.truth_high
    assert np.isnan(none.truth)
