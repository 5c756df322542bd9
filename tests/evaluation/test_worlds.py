"""The worlds against finite differences, loops and exact binomial tests. Seeds are fixed; error rates are stated."""

import itertools

import numpy as np
import pytest
import scipy.stats

from lpe_jax.evaluation.worlds import ALPHAS, FAMILIES, FIRST_TUNING_SEED, _stages, prompt_world, simulate

SEED = FIRST_TUNING_SEED
INSIDE = np.array([0.43, 0.61, 0.87, 0.99])  # alphas clear of the cap's kink, which is nowhere above 0.4
GRID = (1.0, 0.9, 0.6, 0.3, 0.0)
each_family = pytest.mark.parametrize("family", FAMILIES)


def worlds(family, alpha, count=6):
    return [prompt_world(family, alpha, seed=SEED, index=i) for i in range(count)]


def difference(family, name, count=6, step=1e-5):
    """The central difference by alpha of an attribute, at INSIDE, of each prompt."""
    above, below = (worlds(family, INSIDE + sign * step, count) for sign in (1, -1))
    return [(getattr(a, name) - getattr(b, name)) / (2 * step) for a, b in zip(above, below, strict=True)]


@each_family
def test_every_alpha_is_normalised(family):
    for world in worlds(family, np.linspace(-0.5, 1, 31)):
        np.testing.assert_allclose(np.exp(world.logp).sum(1), 1, rtol=1e-12)


@each_family
def test_score_and_variance_are_derivatives(family):
    exact = worlds(family, INSIDE)
    for world, by_alpha in zip(exact, difference(family, "logp"), strict=True):
        np.testing.assert_allclose(world.score, by_alpha, rtol=1e-5, atol=1e-5)
    for world, by_alpha in zip(exact, difference(family, "score"), strict=True):
        np.testing.assert_allclose(world.variance, -by_alpha, rtol=1e-5, atol=1e-5)


def moments(world):
    """E[score | C] and Var(score | C) - E[variance | C], each [A]."""
    weight = np.exp(world.logp[:, world.complied] - world.log_rate[:, None])
    score, variance = world.score[:, world.complied], world.variance[:, world.complied]
    mean = np.sum(weight * score, axis=1)
    return mean, np.sum(weight * score**2, axis=1) - mean**2 - np.sum(weight * variance, axis=1)


@each_family
def test_slope_and_curvature_of_the_log_rate(family):
    for world, by_alpha in zip(worlds(family, INSIDE), difference(family, "log_rate"), strict=True):
        np.testing.assert_allclose(moments(world)[0], by_alpha, rtol=1e-5, atol=1e-5)
    step = 1e-5
    above, at, below = (worlds(family, INSIDE + shift) for shift in (step, 0, -step))
    for a, world, b in zip(above, at, below, strict=True):
        by_alpha = (moments(a)[0] - moments(b)[0]) / (2 * step)
        np.testing.assert_allclose(moments(world)[1], by_alpha, rtol=1e-4, atol=1e-4)


def test_stages_are_a_mixture_of_logits():
    original, variant, alpha = np.array([-3.0, 1.0, -6.0]), np.array([3.0, 4.0, 2.0]), 0.35
    world = _stages(np.array([alpha]), original, variant)
    # As a model would decode it: tokens pass and fail, whose logits are mixed and then go through a softmax.
    for kind, passes in enumerate([(0,), (1, 0), (1, 1, 0), (1, 1, 1)]):
        logp = score = variance = 0.0
        for stage, passed in enumerate(passes):
            both = np.array([[0.0, original[stage]], [0.0, variant[stage]]])
            logits = alpha * both[0] + (1 - alpha) * both[1]
            p, apart = np.exp(logits) / np.exp(logits).sum(), both[0] - both[1]
            logp += np.log(p[passed])
            score += apart[passed] - p @ apart
            variance += p @ (apart - p @ apart) ** 2
        np.testing.assert_allclose(world.logp[0, kind], logp, rtol=1e-12)
        np.testing.assert_allclose(world.score[0, kind], score, rtol=1e-12)
        np.testing.assert_allclose(world.variance[0, kind], variance, rtol=1e-12)
    np.testing.assert_array_equal(world.complied, [False, False, False, True])


@each_family
def test_rates_of_the_bank(family):
    bank = simulate(family, seed=SEED, prompts=6, n=2000, alphas=GRID)
    rates = np.exp([world.log_rate for world in worlds(family, np.array(GRID))])
    np.testing.assert_allclose(bank.truth, np.log10(rates[:, 0]), rtol=1e-12)
    if family == "floor":
        rates = 0.95 * rates + 1e-3 * (1 - rates)
    # 36 exact two-sided tests at 1e-5 each: 4e-4 that a family fails by chance.
    drawn = zip(bank.complied.sum(2).flat, itertools.repeat(2000), rates.flat)
    naive = zip(bank.naive_complied, bank.naive_scored, rates[:, 0], strict=True)
    assert min(scipy.stats.binomtest(int(k), int(n), p).pvalue for k, n, p in [*drawn, *naive]) > 1e-5


@each_family
def test_rows_of_the_bank_are_what_they_say(family):
    bank = simulate(family, seed=SEED, prompts=3, n=50, alphas=GRID)
    known = worlds(family, np.array(GRID))
    for p, a, i in np.ndindex(3, len(GRID), 50):
        world = known[p]
        kind = np.argmin(np.abs(world.logp - bank.logp[p, a, i][:, None]).sum(0))
        np.testing.assert_allclose(bank.logp[p, a, i], world.logp[:, kind], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(bank.path_score[p, a, i], world.score[a, kind], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(bank.path_variance[p, a, i], world.variance[a, kind], rtol=1e-6, atol=1e-7)
        assert family == "floor" or bank.complied[p, a, i] == world.complied[kind]


@pytest.mark.parametrize("family", ["shallow", "concave", "stages"])
def test_weights_carry_one_alpha_to_another(family):
    n = 4000
    bank = simulate(family, seed=SEED, prompts=10, n=n, alphas=(1.0, 0.75, 0.5, 0.25, 0.0))
    log_weight = bank.logp[..., 0].astype(float) - np.einsum("pana->pan", bank.logp)
    ratio = np.exp(log_weight - bank.truth[:, None, None] * np.log(10)) * bank.complied
    # Where at least 30 complied, and 30 did not, their number is nearly normal: 5 sigma of at most 50 cells, 3e-5.
    seen = (bank.complied.sum(2) >= 30) & (bank.complied.sum(2) <= n - 30)
    error = ratio.std(2)[seen] / np.sqrt(n)
    assert seen.sum() > 15
    assert np.max(np.abs(ratio.mean(2)[seen] - 1) / error) < 5


def log10_rates(family, count=40, alpha=ALPHAS):
    return np.array([w.log_rate for w in worlds(family, np.array(alpha), count)]) / np.log(10)


def test_families_are_as_they_are_called():
    truth = {family: log10_rates(family)[:, 0] for family in FAMILIES}
    uniform = scipy.stats.uniform(-7.5, 6.5)
    for family in set(FAMILIES) - {"hidden"}:
        # Kolmogorov-Smirnov at 1e-4 for each of 8 families.
        assert scipy.stats.kstest(truth[family], uniform.cdf).pvalue > 1e-4, family
    upper = np.linspace(1, 0.5, 11)
    bend = {family: np.diff(log10_rates(family, alpha=upper), n=2, axis=1) for family in FAMILIES}
    np.testing.assert_allclose(bend["linear"], 0, atol=1e-12)
    assert np.all(bend["concave"] < -1e-3) and np.all(bend["convex"] > 1e-3)
    for family in ("linear", "concave", "convex"):
        rates = log10_rates(family)
        np.testing.assert_allclose(rates[:, -1], np.log10(0.95))
        assert np.all(np.diff(rates, axis=1) >= -1e-12)

    def overshoot(family):
        """How far a straight line through the exact rates between 50 % and 10^-2.2 lands above the truth."""
        found = []
        for row in log10_rates(family):
            fitted = (row < np.log10(0.5)) & (row > -2.2)
            if fitted.sum() > 1:
                found.append(np.polyfit(np.array(ALPHAS)[fitted] - 1, row[fitted], 1)[1] - row[0])
        return np.median(found)

    assert overshoot("convex") < -0.5 and abs(overshoot("linear")) < 1e-9
    assert 0 < overshoot("shallow") < 0.7 and 1 < overshoot("deep") < 3


def test_the_hidden_route_is_seen_only_beside_the_original():
    shallow, hidden = log10_rates("shallow"), log10_rates("hidden")
    alpha = np.array(ALPHAS)
    extra = 10**hidden - 10**shallow
    assert np.all(extra[:, alpha <= 0.8] < 1e-6)
    assert np.all((extra[:, 0] > 0.89e-5) & (extra[:, 0] < 1e-3))


def test_floor_is_shallow_under_a_judge_that_errs():
    judged, exact = (simulate(f, seed=SEED, prompts=4, n=3000, alphas=GRID) for f in ("floor", "shallow"))
    np.testing.assert_array_equal(judged.logp, exact.logp)
    np.testing.assert_array_equal(judged.truth, exact.truth)
    for complied, expected in ((True, 0.95), (False, 1e-3)):
        said = judged.complied[exact.complied == complied]
        # 1e-4 for each of the two.
        assert scipy.stats.binomtest(int(said.sum()), said.size, expected).pvalue > 1e-4


def test_stages_can_be_fixed_and_mixed_takes_turns():
    counts = {len(world.complied) - 1 for world in worlds("stages", INSIDE, 40)}
    assert counts == {1, 2, 3, 4}
    assert {len(world.complied) for world in worlds("deep", INSIDE)} == {5}
    assert len(prompt_world("stages", INSIDE, seed=SEED, stages=3).complied) == 4
    bank = simulate("mixed", seed=SEED, prompts=4, n=1, alphas=GRID)
    assert [name.split("-")[0] for name in bank.prompt_ids] == ["linear", "concave", "stages", "linear"]


@each_family
def test_a_bank_is_a_function_of_its_seed_and_more_prompts_change_nothing(family):
    small, again, large, other = (
        simulate(family, seed=seed, prompts=prompts, n=20, alphas=GRID, tau=1.0)
        for seed, prompts in ((SEED, 2), (SEED, 2), (SEED, 3), (SEED + 1, 2))
    )
    for name in ("scored", "complied", "tokens", "logp", "path_score", "path_variance", "naive_complied", "truth"):
        value = getattr(small, name)
        np.testing.assert_array_equal(value, getattr(again, name))
        np.testing.assert_array_equal(value, getattr(large, name)[:2])
    assert small.logp.dtype == small.path_score.dtype == small.path_variance.dtype == np.float32
    assert not np.any(small.truth == other.truth) and len(set(large.prompt_ids)) == 3


def test_tokens_tell_compliances_from_refusals():
    bank = simulate("linear", seed=SEED, prompts=4, n=1000, alphas=GRID)
    assert bank.tokens.min() >= 1
    # 5 standard errors of a Poisson mean, 6e-7 each.
    for complied, mean in ((False, 12), (True, 35)):
        drawn = bank.tokens[bank.complied == complied]
        assert abs(drawn.mean() - mean) < 5 * np.sqrt(mean / drawn.size)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"family": "steep"}, "family must be one of stages, shallow"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"prompts": 0}, "prompts must be at least 1"),
        ({"n": 0}, "n must be at least 1"),
        ({"n_naive": -1}, "n_naive must be at least 0"),
        ({"alphas": (0.9, 0.0)}, "alphas must descend strictly from 1 to 0"),
        ({"alphas": (1.0, 0.1)}, "alphas must descend strictly from 1 to 0"),
        ({"alphas": (1.0, 0.5, 0.5, 0.0)}, "alphas must descend strictly from 1 to 0"),
        ({"alphas": (1.0, np.nan, 0.0)}, "alphas must descend strictly from 1 to 0"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"tau": np.inf}, "tau must be a finite number"),
    ],
)
def test_bad_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate(**{"family": "stages", "seed": SEED, "prompts": 1, "n": 2, "alphas": GRID} | wrong)
