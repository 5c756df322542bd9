import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2, hypergeom

from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.procedure import replay
from lpe_jax.evaluation.subsets import AlongThePath, Shares, pack, prime_at_most, prompt_numbers, rollout_order, totals


def test_primes():
    assert [prime_at_most(n) for n in (2, 3, 4, 60, 100, 1000, 10**6)] == [2, 3, 3, 59, 97, 997, 46337]
    with pytest.raises(ValueError, match="at least 2"):
        prime_at_most(1)


def orders(repeats, cells=1, most=7, prime=13, numbers=(5,)):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(repeats))
    numbers = jnp.asarray(numbers, jnp.uint32)
    return np.asarray(jax.vmap(lambda key: rollout_order(key, numbers, cells, most, prime))(keys))


def test_orders_do_not_repeat_and_depend_on_the_prompt_alone():
    order = orders(50, cells=3, most=13, numbers=(5, 8))
    assert order.shape == (50, 2, 3, 13)
    np.testing.assert_array_equal(np.sort(order, axis=-1), np.broadcast_to(np.arange(13), order.shape))
    np.testing.assert_array_equal(orders(50, cells=3, most=4, numbers=(8, 5, 1))[:, :2], order[:, ::-1, :, :4])
    assert len(np.unique(prompt_numbers([f"p{i}" for i in range(500)]))) == 500


def test_every_pair_of_places_is_equally_likely():
    """All of offset and stride: exact, not sampled."""
    prime, most = 7, 5
    every = [[(o + s * j) % prime for j in range(most)] for o in range(prime) for s in range(1, prime)]
    for i, j in itertools.combinations(range(most), 2):
        pairs = [(row[i], row[j]) for row in every]
        assert sorted(pairs) == sorted(itertools.permutations(range(prime), 2))


def test_counts_have_the_hypergeometric_mean_and_variance():
    """Chi-squared and normal bounds of error rate 1e-4 each, on 40,000 subsets; the seed is fixed."""
    prime, n, repeats = 97, 20, 2000
    complied = np.random.default_rng(3).random((20, prime)) < np.linspace(0.02, 0.6, 20)[:, None]
    order = orders(repeats, cells=20, most=n, prime=prime)[:, 0]  # [R, 20, n]
    counts = np.take_along_axis(np.broadcast_to(complied, (repeats, 20, prime)), order, axis=-1).sum(-1)
    want = hypergeom(prime, complied.sum(axis=1), n)
    z = (counts.mean(axis=0) - want.mean()) / np.sqrt(want.var() / repeats)
    assert (z**2).sum() < chi2(20).isf(1e-4)
    # The variance of a sample variance, from the fourth central moment.
    fourth = ((counts - want.mean()) ** 4).mean(axis=0)
    z = (((counts - want.mean()) ** 2).mean(axis=0) - want.var()) / np.sqrt((fourth - want.var() ** 2) / repeats)
    assert (z**2).sum() < chi2(20).isf(1e-4)


SETTINGS = [
    {},
    {"fit_to_one": True},
    {"fit_to_one": True, "reuse_search": True, "n_search": 4},
    {"threshold": 0.8, "first_alpha": 1.0, "step": 0.25},
    {"threshold": 0.99, "no_start": "fallback", "drop_common": False},
]


def world(seed, cells, n, prompts=60):
    """Outcomes [P, A, n] in which some prompts never comply, some always, and some rollouts are unscored."""
    random = np.random.default_rng(seed)
    steep = random.choice([0.3, 3, 8, 30], (prompts, 1))
    at = random.uniform(-0.3, 1.2, (prompts, 1))
    rate = 1 / (1 + np.exp(np.clip(steep * (np.linspace(1, 0, cells) - at), -50, 50)))
    rate[0], rate[1] = 0, 1
    complied = random.random((prompts, cells, n)) < rate[..., None]
    scored = random.random(complied.shape) < 0.9
    scored[2, : cells // 2] = False
    return complied & scored, scored, random.integers(1, 50, complied.shape)


@pytest.mark.parametrize("place", range(len(SETTINGS)))
def test_the_closed_form_is_replay_in_every_field(place):
    settings = SETTINGS[place]
    budgets = (5, 8, 13)
    allocation = AlongThePath(LPE(**{"n_search": 4, "step": 0.05} | settings))
    most = max(allocation.ends(budgets))
    complied, scored, tokens = world(1, len(allocation.alphas), most)
    packed = pack(scored, complied, tokens)
    with float64():
        drawn = jax.device_get(
            jax.jit(lambda v: allocation.draw(totals(v, allocation.ends(budgets)), budgets))(jnp.asarray(packed))
        )
    for b, n_fit in enumerate(budgets):
        took = np.arange(most) < np.asarray(drawn.drawn[b])[..., None]  # a prefix of every cell
        np.testing.assert_array_equal(drawn.counts.scored[b], (took & scored).sum(-1))
        np.testing.assert_array_equal(drawn.counts.complied[b], (took & complied).sum(-1))
        np.testing.assert_array_equal(drawn.counts.tokens[b], (took * tokens).sum(-1))
        if b != place % 3:  # replay compiles anew for each: one will do
            continue
        with float64():  # of the state alone: the estimate, which takes longest to compile, is left out
            state = jax.jit(lambda *x: replay(allocation.with_budget(n_fit), *x)[0])(complied, scored)  # noqa: B023
            state = jax.device_get(state)
        for field in dataclasses.fields(state):
            want, got = getattr(state, field.name), getattr(drawn.state, field.name)[b]
            np.testing.assert_array_equal(want, got, err_msg=field.name)
            assert want.dtype == got.dtype, field.name
        assert len(np.unique(state.start)) > 3, "the worlds end their search at many places"


def test_shares_divide_a_budget():
    shares, budgets = Shares((1.0, 0.0), (0.25, 0.75)), (4, 8)
    complied, scored, tokens = world(2, 2, 6)
    with float64():
        packed = jnp.asarray(pack(scored, complied, tokens))
        drawn = jax.device_get(shares.draw(totals(packed, shares.ends(budgets)), budgets))
    for b, (one, zero) in enumerate([(1, 3), (2, 6)]):
        np.testing.assert_array_equal(drawn.drawn[b], np.broadcast_to([one, zero], (60, 2)))
        want = np.stack([complied[:, 0, :one].sum(-1), complied[:, 1, :zero].sum(-1)], axis=-1)
        np.testing.assert_array_equal(drawn.counts.complied[b], want)
        want = np.stack([tokens[:, 0, :one].sum(-1), tokens[:, 1, :zero].sum(-1)], axis=-1)
        np.testing.assert_array_equal(drawn.counts.tokens[b], want)
    with pytest.raises(ValueError, match="sum to 1"):
        Shares((0.0, 1.0), (0.5, 0.2))


def test_packed_totals_do_not_run_into_each_other():
    random = np.random.default_rng(0)
    scored, complied = np.ones((2, 1, 2, 40_000), int)
    tokens = random.integers(0, 30_000, scored.shape)
    with float64():
        got = jax.device_get(totals(jnp.asarray(pack(scored, complied, tokens)), (40_000, 0, 7)))
    for field, values in zip((got.scored, got.complied, got.tokens), (scored, complied, tokens), strict=True):
        np.testing.assert_array_equal(field, [values.sum(-1), 0 * values.sum(-1), values[..., :7].sum(-1)])
