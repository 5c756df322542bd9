"""The compiled decode: stopping, one compile, and rollouts that do not depend on what is drawn beside them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lpe_jax.decoding import cache, loop
from lpe_jax.decoding.path import SamplingSettings, grid_logp, model_logits, path_logits
from lpe_jax.decoding.sampler import STEPS, Sampler, identity_words, slots_for
from lpe_jax.errors import PromptError, UserError
from lpe_jax.types import Request
from tests.helpers import tiny_pair

SETTINGS = SamplingSettings(max_new_tokens=20, temperature=0.7)
PROMPTS = {f"prompt-{n}": list(range(10, 10 + n)) for n in (1, 4, 9, 16)}


def sampler(seed=0, batch_size=16, settings=None, prompts=PROMPTS, pair=None):
    settings = settings or SETTINGS
    slots = slots_for(prompts, 512, settings.max_new_tokens)
    return Sampler(pair or tiny_pair(), prompts, str, settings, seed, batch_size, slots)


def compiled(pair, groups, rows, max_new_tokens, grid=None):
    """The decode of a shape; grid: of how many alphas."""
    tickets = 2 * rows

    def arguments():
        return (
            cache.empty_prompts(pair, groups, 8, cache.CPU),
            loop.Tickets.none(groups, tickets),
            loop.Rows.idle(groups, rows, cache.empty_responses(pair, groups * rows, max_new_tokens, cache.CPU), grid),
            loop.Results.none(groups, tickets, max_new_tokens, grid),
        )

    alphas = None if grid is None else np.linspace(1, 0, grid, dtype=np.float32)
    settings = SamplingSettings(max_new_tokens=max_new_tokens)
    shapes = jax.eval_shape(arguments)
    return loop.decode.lower(pair, *shapes, np.uint32(0), np.int32(16), settings, alphas).compile()


def temporary_bytes(*shape):
    """Temporary memory of the compiled decode."""
    return compiled(*shape).memory_analysis().temp_size_in_bytes


def all_requests(n=5):
    return [Request(p, a, i) for p, a, i in itertools.product(PROMPTS, (0.0, 0.4, 1.0), range(n))]


def by_request(rollouts):
    return {(r.prompt_id, r.alpha, r.index): r for r in rollouts}


def test_rollouts_stop_at_any_eos_or_at_the_limit():
    rollouts = list(sampler().draw(all_requests()))
    assert {r.tokens[-1] for r in rollouts if r.finish == "stop"} == {3, 7}
    for r in rollouts:
        assert not np.isin(r.tokens[:-1], [3, 7]).any()
        assert (r.finish == "stop") == (r.tokens[-1] in (3, 7))
        assert r.finish == "stop" or len(r.tokens) == 20
        assert (r.tokens < 60).all(), "padding rows of the vocabulary are never drawn"


def test_one_compile_for_any_alphas_prompts_and_seeds():
    first = sampler()
    list(first.draw(all_requests(1)))
    before = loop.decode._cache_size()
    for seed, alphas in ((1, (0.1, 0.2)), (2, (-1.5, 2.0)), (3, (0.95,))):
        again = sampler(seed, pair=first.pair)
        list(again.draw([Request(p, a, i) for p in PROMPTS for a in alphas for i in range(3)]))
    assert loop.decode._cache_size() == before
    list(sampler(batch_size=8, pair=first.pair).draw(all_requests(1)))
    assert loop.decode._cache_size() == before + 1, "a new shape compiles, so the count can move"


def mismatches(one, packings):
    """How many rollouts change a token or a sum when drawn in other company, over random subsets, orders and trickles
    of requests, so that rows begin at other steps, in other groups and after other rollouts.
    """
    requests = all_requests()
    expected = by_request(one.draw(requests))
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(packings):
        kept = [requests[i] for i in rng.permutation(len(requests))[: rng.integers(1, len(requests))]]
        left, found = list(kept), {}

        def more(n, left=left, found=found, kept=kept):
            # None for now is an answer as long as something is under way.
            least = int(len(kept) - len(left) == len(found))
            n = int(rng.integers(least, n + 1)) if n else 0
            taken, left[:] = left[:n], left[n:]
            return taken

        for rollouts in one.stream(more):
            found |= by_request(rollouts)
        assert set(found) == {(r.prompt_id, r.alpha, r.index) for r in kept}, "all that is asked for is drawn"
        for key, rollout in found.items():
            same = np.array_equal(rollout.tokens, expected[key].tokens)
            sums = ("logp_path", "logp_original", "logp_variant", "path_score", "path_variance")
            changed += not (same and all(getattr(rollout, n) == getattr(expected[key], n) for n in sums))
    return changed


@pytest.mark.parametrize("packings", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_tokens_do_not_depend_on_batch_mates_or_order(packings):
    assert mismatches(sampler(), packings) == 0


def test_the_order_of_axes_changes_no_rollout(monkeypatch):
    """As a TPU keeps keys and values; a product is summed in another order at most."""
    one = sampler()
    expected = by_request(one.draw(all_requests()))
    assert len({cache.axes_for(platform) for platform in ("cpu", "gpu", "tpu")}) == 3
    assert one.shapes()[0].k[0].shape == (2, 2, 2, 8, 16)
    monkeypatch.setattr(cache, "axes_for", lambda platform, kernel: cache.TPU)
    other = sampler(pair=one.pair)
    assert other.shapes()[0].k[0].shape == (2, 2, 2, 16, 8)
    assert other.shapes()[2].responses.k[0].shape == (2, 16, 20, 2, 8)
    found = by_request(other.draw(all_requests()))
    for key, rollout in found.items():
        assert np.array_equal(rollout.tokens, expected[key].tokens)
        assert rollout.logp_path == pytest.approx(expected[key].logp_path, abs=1e-4)


def test_keys_by_row_would_be_seen(monkeypatch):
    """The check above can fail: rows keyed by when they were asked for change with the packing."""
    counter = itertools.count()
    by_row = lambda request: np.array([0, 0, 0, next(counter) % 16], np.uint32)  # noqa: E731
    monkeypatch.setattr("lpe_jax.decoding.sampler.identity_words", by_row)
    assert mismatches(sampler(), packings=2) > 0


def test_seed_prompt_alpha_and_index_each_change_the_key():
    base = Request("a", 0.5, 0)
    others = [Request("b", 0.5, 0), Request("a", 0.55, 0), Request("a", 0.5, 1)]
    words = [tuple(identity_words(r).tolist()) for r in (base, *others)]
    assert len(set(words)) == 4
    keys = {tuple(jax.random.key_data(loop.row_key(s, identity_words(base))).tolist()) for s in (0, 1)}
    assert len(keys) == 2
    assert (identity_words(Request("a", -0.0, 0)) == identity_words(Request("a", 0.0, 0))).all()


def test_two_streams_of_the_same_prompt_are_independent():
    """Rollouts of one prompt at one alpha differ, as do those of equal prompts with other ids."""
    prompts = PROMPTS | {"x": [10, 11, 12], "y": [10, 11, 12]}
    rollouts = list(sampler(prompts=prompts).draw([Request(p, 0.5, i) for p in "xy" for i in range(20)]))
    assert len({tuple(r.tokens) for r in rollouts}) > 30


def test_what_is_fetched_comes_in_the_order_asked_for():
    requests = all_requests(3)
    rng = np.random.default_rng(2)
    shuffled = [requests[i] for i in rng.permutation(len(requests))]
    keys = [(r.prompt_id, r.alpha, r.index) for r in shuffled]
    assert [(r.prompt_id, r.alpha, r.index) for r in sampler().draw(shuffled)] == keys
    assert list(sampler().draw([])) == []
    twice = list(sampler().draw([*requests[:3], requests[0]]))
    assert len(twice) == 4 and twice[0] is twice[3]


def test_the_original_alone_says_what_the_pair_does_at_alpha_one():
    requests = [Request(p, 1.0, i) for p in PROMPTS for i in range(6)]
    both = sampler()
    alone = both.alone
    for one, other in zip(both.draw(requests), alone.draw(requests), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert other.logp_path == other.logp_original == pytest.approx(one.logp_original, abs=1e-4)
        assert np.isnan([other.logp_variant, other.path_score, other.path_variance]).all()
    with pytest.raises(ValueError, match="alpha = 1 only"):
        list(alone.draw([Request("prompt-1", 0.5, 0)]))
    with pytest.raises(ValueError, match="takes both"):
        dataclasses.replace(alone, grid=(1.0, 0.0))
    assert both.alone is alone, "weights are copied once"


def test_one_model_costs_half():
    pair = tiny_pair(num_layers=4, hidden_size=32, intermediate_size=96)
    flops = [compiled(p, 2, 8, 16).cost_analysis()["flops"] for p in (pair, pair.alone(0))]
    assert 0.4 < flops[1] / flops[0] < 0.6


def test_short_rollouts_are_not_preferred():
    """A hundred times no more are begun once 16 have finished; the share that stops at once is the distribution's.

    Without those then under way it would be far larger. An exact binomial test with a false alarm of 1e-4.
    """
    pair = tiny_pair(num_tokens=12, eos_ids=(3, 5, 9))
    one = sampler(prompts={"p": [5, 6]}, pair=pair, settings=SamplingSettings(max_new_tokens=12))
    begun = itertools.count()

    def until_some_finished() -> list[int]:
        finished: list[int] = []

        def more(n):
            return [Request("p", 1.0, next(begun)) for _ in range(min(n, 16))] if len(finished) < 16 else []

        for rollouts in one.stream(more):
            finished.extend(len(r.tokens) for r in rollouts)
        return finished

    lengths = np.concatenate([until_some_finished() for _ in range(100)])
    assert len(lengths) == next(begun), "what was begun is yielded"
    hidden, _ = pair.forward(jnp.array([[5, 6]]), jnp.zeros(1, jnp.int32))
    p = np.asarray(jax.nn.softmax(pair.head(hidden)[0, 0, -1, :12]))[[3, 5, 9]].sum()
    assert 0.05 < p < 0.95 and lengths.max() == 12
    assert scipy.stats.binomtest(int((lengths == 1).sum()), len(lengths), float(p)).pvalue > 1e-4


def test_a_prompt_is_computed_once_for_all_its_rows(monkeypatch):
    computed = []
    real = cache.prefill
    monkeypatch.setattr(cache, "prefill", lambda pair, ids: computed.append(ids) or real(pair, ids))
    one = sampler()
    list(one.draw([Request(p, a, i) for p in PROMPTS for a in (0.0, 0.3, 1.0) for i in range(10)]))
    assert len(computed) == len(PROMPTS)


def test_rows_are_busy_while_there_is_work():
    """Steps taken for many rollouts of uneven length are little more than their tokens over the rows."""
    one, steps = sampler(prompts={"p": [5, 6]}), []
    real = loop.decode

    def counted(*arguments, **named):
        rows, results, taken = real(*arguments, **named)
        steps.append(STEPS)
        return rows, results, taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lpe_jax.decoding.sampler.decode", counted)
        lengths = [len(r.tokens) for r in one.draw([Request("p", 0.5, i) for i in range(400)])]
    assert 400 * max(lengths) > 1.5 * sum(lengths), "else waiting for the longest would cost little"
    assert sum(steps) * 16 < 1.2 * sum(lengths)


def test_log_probabilities_equal_a_full_forward():
    one = sampler()
    rollouts = list(one.draw(all_requests(2)))
    # Padded to one shape; what stands to the right of a rollout is never seen.
    rows = [[*PROMPTS[rollout.prompt_id], *rollout.tokens] for rollout in rollouts]
    tokens = np.array([row + [0] * (40 - len(row)) for row in rows], np.int32)
    forward = jax.jit(lambda pair, x: pair.head(pair.forward(x, jnp.zeros(len(x), jnp.int32))[0]))
    raw = np.asarray(forward(one.pair, tokens), np.float64)[..., :60] / SETTINGS.temperature  # [2, N, T, V]
    logp = raw - np.logaddexp.reduce(raw, axis=-1, keepdims=True)
    for rollout, row, own in zip(rollouts, rows, logp.swapaxes(0, 1), strict=True):
        at = np.arange(len(row) - len(rollout.tokens) - 1, len(row) - 1)
        picked = own[:, at, rollout.tokens].sum(axis=1)
        assert rollout.logp_original == pytest.approx(picked[0], abs=1e-3)
        assert rollout.logp_variant == pytest.approx(picked[1], abs=1e-3)


def test_importance_weights_average_to_one():
    """E_alpha[p_1 / p_alpha] = 1 over rollouts of full support, EOS factor included.

    4,000 rollouts; the weights' own standard error decides; false alarm about 1e-4 (|z| < 4).
    """
    pair = tiny_pair(num_tokens=12, eos_ids=(3,))
    one = sampler(prompts={"p": [5, 6]}, pair=pair, batch_size=256, settings=SamplingSettings(max_new_tokens=4))
    rollouts = list(one.draw([Request("p", 0.7, i) for i in range(4_000)]))
    weights = np.exp([r.logp_original - r.logp_path for r in rollouts])
    error = weights.std() / np.sqrt(len(weights))
    assert weights.std() > 0.1, "the two models must differ for this to mean anything"
    assert abs(weights.mean() - 1) < 4 * error


def first(logits):
    """Logits [2, B, V] with the vocabulary first."""
    return jnp.moveaxis(jnp.asarray(logits, jnp.float32), -1, 0)


@pytest.mark.parametrize(("settings", "support"), [({"top_k": 3}, 3), ({"top_p": 0.6}, None)])
def test_truncation_after_mixing(settings, support):
    logits = np.random.default_rng(0).normal(0, 2, (2, 5, 40)).astype(np.float32)
    alpha = jnp.asarray([0.0, 0.3, 0.6, 1.0, 1.5])
    chosen = np.isfinite(path_logits(first(logits), alpha, SamplingSettings(**settings))).T
    for row in range(5):
        mixed = float(alpha[row]) * logits[0, row] + (1 - float(alpha[row])) * logits[1, row]
        order = np.argsort(-mixed)
        p = np.exp(mixed[order].astype(float))
        p /= p.sum()
        size = support or int(np.searchsorted(np.cumsum(p), 0.6) + 1)
        assert set(np.flatnonzero(chosen[row])) == set(order[:size])


def test_padding_of_the_vocabulary_stays_out_for_any_alpha():
    own = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 3)), jnp.float32).at[6:].set(-jnp.inf)
    mixed = path_logits(own, jnp.asarray([-1.0, 0.0, 3.0]), SamplingSettings())
    assert np.isneginf(np.asarray(mixed[6:])).all() and np.isfinite(np.asarray(mixed[:6])).all()


def test_no_step_copies_the_weights():
    """Temporary memory of the compiled decode stays far below the weights that differ."""
    shape = {"hidden_size": 64, "intermediate_size": 4096, "num_layers": 8, "head_dim": 16}
    pair = tiny_pair(**shape)
    differing = sum(leaf.nbytes for leaf, shared in zip(pair.leaves, pair.shared, strict=True) if not shared)
    temporary = temporary_bytes(pair, 1, 4, 4)
    assert differing > 16e6 and temporary < 0.5 * differing, (temporary, differing)


def test_no_step_copies_the_cache():
    """Temporary memory is far below one layer's keys and values: a scan over stacked layers would copy those."""
    shape = {"num_layers": 8, "head_dim": 32}
    pair = tiny_pair(**shape)
    of_cache = sum(a.nbytes for a in jax.tree.leaves(cache.empty_responses(pair, 64, 256, cache.CPU)))
    assert temporary_bytes(pair, 8, 8, 256) < 0.1 * of_cache


def test_logits_that_are_not_finite_are_refused():
    pair = tiny_pair()
    broken = dataclasses.replace(pair, leaves=tuple(leaf * jnp.float32(np.inf) for leaf in pair.leaves))
    with pytest.raises(UserError, match="not finite in float32"):
        list(sampler(pair=broken).draw(all_requests(1)))


def test_prompts_that_do_not_fit_are_named():
    with pytest.raises(PromptError, match=r"'long'.*max_new_tokens=20"):
        slots_for({"long": [1] * 500}, 512, 20)
    with pytest.raises(PromptError, match="'empty'"):
        slots_for({"empty": []}, 512, 20)


GRID = (1.0, 0.4, 0.0, 1.3)


@pytest.mark.parametrize("truncation", [{}, {"top_k": 5}])
def test_log_p_at_a_grid_agrees_with_the_sums_and_changes_no_draw(truncation):
    one = sampler(settings=dataclasses.replace(SETTINGS, **truncation))
    rollouts = list(dataclasses.replace(one, grid=GRID).draw(all_requests()))
    if not truncation:
        for r, other in zip(rollouts, one.draw(all_requests()), strict=True):
            assert np.array_equal(r.tokens, other.tokens) and other.grid_logp is None
    for r in rollouts:
        assert r.grid_logp.shape == (4,) and r.grid_logp.dtype == np.float32
        assert r.grid_logp[GRID.index(r.alpha)] == pytest.approx(r.logp_path, rel=1e-6, abs=1e-5)
        if not truncation:  # logp_original and logp_variant are of the models themselves
            assert r.grid_logp[0] == pytest.approx(r.logp_original, rel=1e-6, abs=1e-5)
            assert r.grid_logp[2] == pytest.approx(r.logp_variant, rel=1e-6, abs=1e-5)
    if truncation:
        assert np.isneginf([r.grid_logp for r in rollouts]).any(), "another alpha's truncation rules some out"
    else:
        assert len({r.grid_logp[1] - r.logp_path for r in rollouts if r.alpha == 0.0}) > 10


def test_log_p_of_a_token_at_a_grid():
    """Against float64 sums over the vocabulary in NumPy, its padding left out."""
    raw = np.random.default_rng(0).normal(0, 4, (2, 6, 50))
    token = np.random.default_rng(1).integers(0, 45, 6)
    own = model_logits(first(raw), 45, 0.8)
    found = grid_logp(own, jnp.asarray(GRID), jnp.asarray(token), SamplingSettings(temperature=0.8))
    assert found.shape == (6, 4)
    for row, column in itertools.product(range(6), range(4)):
        logits = (GRID[column] * raw[0, row, :45] + (1 - GRID[column]) * raw[1, row, :45]) / 0.8
        exact = logits[token[row]] - np.logaddexp.reduce(logits)
        assert found[row, column] == pytest.approx(exact, rel=1e-5, abs=1e-5)


def test_the_grid_is_not_all_in_memory_at_once():
    pair = tiny_pair(vocab_size=8192, num_tokens=8192)
    of_one_alpha = 8 * 8192 * 4
    with_grid, without = (temporary_bytes(pair, 1, 8, 4, grid) for grid in (21, None))
    assert with_grid - without < 6 * of_one_alpha
