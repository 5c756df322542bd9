"""The prefix tree against enumeration of every response of a small random pair."""

import contextlib
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lpe_jax.decoding import tree
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.tree import draw_counts, sample_tree, tree_leaves
from lpe_jax.models.pair import pair_modules
from tests.helpers import random_module, tiny_config

TOKENS = 5  # ids 5, 6 and 7 are padding rows
EOS = 0
PROMPT = [3, 1, 2, 4]
ALPHAS = np.array([-0.3, 0.0, 0.5, 1.0, 1.4])
SETTINGS = SamplingSettings(max_new_tokens=4, temperature=0.8)
# Chi-square tests below fail by chance once in 10,000 runs each; seeds are fixed.
LEVEL = 1e-4


def _model(seed):
    config = tiny_config(vocab_size=8, tie_word_embeddings=True, max_position_embeddings=64)
    model = random_module(config, seed)
    # Far from uniform; and the padding rows would nearly always be drawn if they could be.
    scale = jnp.where(jnp.arange(8) < TOKENS, 10.0, 200.0)
    model.embed_tokens[...] = model.embed_tokens[...] * scale[:, None]
    return model


@pytest.fixture(scope="module")
def pair():
    original, variant = _model(0), _model(0)
    other = _model(1)
    for layer, another in zip(variant.layers, other.layers, strict=True):
        for name in ("o_proj", "down_proj"):
            getattr(layer, name)[...] = 8 * getattr(another, name)[...]
    variant.embed_tokens[...] = 0.7 * variant.embed_tokens[...] + 0.3 * other.embed_tokens[...]
    return pair_modules(original, variant, num_tokens=TOKENS, eos_ids=(EOS,))


@dataclasses.dataclass
class Truth:
    """Every response with its log p, path score and path variance at ALPHAS, in plain NumPy."""

    logp: dict
    score: dict
    variance: dict


@jax.jit
def _raw(model, tokens):
    """Raw logits [N, L, V] of tokens [N, L] from a forward pass without a cache."""
    return model.head(model(tokens, jnp.zeros(len(tokens), jnp.int32))[0])


def _teacher_forced(pair, prompt, sequences):
    """Raw logits [2, n, T, TOKENS] before each of T response tokens, from a forward pass without a cache."""
    tokens = np.array([[*prompt, *s] for s in sequences])
    n, length = tokens.shape
    # One shape for every prompt and response; what stands to the right is never seen.
    tokens = np.pad(tokens, ((0, -n % 128), (0, 64 - length)))
    models = [pair.model(i) for i in range(2)]
    raw = np.array([np.concatenate([_raw(m, part) for part in np.split(tokens, len(tokens) // 128)]) for m in models])
    return np.float64(raw[:, :n, len(prompt) - 1 : length - 1, :TOKENS])


def _along(own, sequence, alphas, temperature):
    """(log p, score, variance), each [A], of one response; own [2, T, TOKENS]."""
    totals = np.zeros((3, len(alphas)))
    for t, token in enumerate(sequence):
        difference = (own[0, t] - own[1, t]) / temperature
        for i, alpha in enumerate(alphas):
            logits = (alpha * own[0, t] + (1 - alpha) * own[1, t]) / temperature
            logp = logits - np.logaddexp.reduce(logits)
            p = np.exp(logp)
            mean = p @ difference
            totals[:, i] += logp[token], difference[token] - mean, p @ (difference - mean) ** 2
    return totals


@pytest.fixture(scope="module")
def truth(pair):
    full = list(itertools.product(range(TOKENS), repeat=SETTINGS.max_new_tokens))
    own = _teacher_forced(pair, PROMPT, full)
    found = Truth({}, {}, {})
    for i, sequence in enumerate(full):
        if EOS in sequence:
            sequence = sequence[: sequence.index(EOS) + 1]
        if sequence not in found.logp:
            sums = _along(own[:, i], sequence, ALPHAS, SETTINGS.temperature)
            found.logp[sequence], found.score[sequence], found.variance[sequence] = sums
    assert np.allclose(np.exp(list(found.logp.values())).sum(axis=0), 1)
    return found


def _by_sequence(leaves, values):
    return {tuple(leaves.sequence(i)): values[i] for i in range(len(leaves))}


def _fits(observed, expected):
    """p-value of the chi-square test, cells with an expectation below 10 pooled."""
    rare = expected < 10
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    assert keep.sum() > 10, "the pair is too certain for this test"
    return stats.chisquare(observed[keep], expected[keep] * observed.sum() / expected.sum()).pvalue


def _counts_fit(leaves, truth, rollouts, column, alpha_at):
    counts = _by_sequence(leaves, leaves.counts[:, column])
    assert counts.keys() <= truth.logp.keys()
    observed = np.array([counts.get(s, 0) for s in truth.logp])
    expected = rollouts * np.exp([logp[alpha_at] for logp in truth.logp.values()])
    return _fits(observed, expected)


@pytest.fixture(scope="module")
def leaves(pair):
    return sample_tree(pair, PROMPT, ALPHAS, [10**6] * len(ALPHAS), SETTINGS, seed=11)


def test_counts_follow_the_enumerated_distribution(leaves, truth):
    assert (leaves.counts.sum(axis=0) == 10**6).all()
    for i in range(len(ALPHAS)):
        assert _counts_fit(leaves, truth, 10**6, i, i) > LEVEL


def test_few_rollouts_follow_it_too(pair, truth):
    # 100 trees of 30 times 3 rollouts, on the path that draws rollouts one by one.
    totals = dict.fromkeys(truth.logp, 0)
    for seed in range(100):
        few = sample_tree(pair, PROMPT, [0.5] * 30, [3] * 30, SETTINGS, seed=[5, seed], batch=32)
        for sequence, counts in _by_sequence(few, few.counts).items():
            totals[sequence] += counts.sum()
    expected = 9000 * np.exp([logp[2] for logp in truth.logp.values()])
    assert _fits(np.array(list(totals.values())), expected) > LEVEL


def test_sums_equal_teacher_forcing(leaves, truth):
    for values, known in (
        (leaves.logp, truth.logp),
        (leaves.path_score, truth.score),
        (leaves.path_variance, truth.variance),
    ):
        for sequence, value in _by_sequence(leaves, values).items():
            drawn = ~np.isnan(value)
            np.testing.assert_allclose(value[drawn], known[sequence][drawn], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(leaves.path_score), leaves.counts == 0)
    np.testing.assert_array_equal(np.isnan(leaves.path_variance), leaves.counts == 0)
    assert not np.isnan(leaves.logp).any()
    np.testing.assert_allclose(leaves.logp_original, leaves.logp[:, 3], atol=1e-12)
    np.testing.assert_allclose(leaves.logp_variant, leaves.logp[:, 1], atol=1e-12)


@pytest.mark.parametrize("prompt", [[2], [1, 2] * 8 + [3], [4, 3, 2, 1] * 9])
@pytest.mark.parametrize("batch", [1, 3, 128])
def test_any_prompt_length_depth_and_batch(pair, prompt, batch):
    settings = SamplingSettings(max_new_tokens=20)
    found = sample_tree(pair, prompt, ALPHAS, [4] * len(ALPHAS), settings, seed=3, batch=batch)
    assert found.length.max() > 16, "no response reaches the second bucket of slots"
    sequences = [found.sequence(i) for i in range(len(found))]
    own = _teacher_forced(pair, prompt, [s + [0] * (20 - len(s)) for s in sequences])
    for i, sequence in enumerate(sequences):
        logp, score, _ = _along(own[:, i], sequence, ALPHAS, 1.0)
        np.testing.assert_allclose(found.logp[i], logp, atol=1e-5, rtol=1e-5)
        drawn = found.counts[i] > 0
        np.testing.assert_allclose(found.path_score[i, drawn], score[drawn], atol=2e-5, rtol=1e-5)


def test_each_prefix_is_evaluated_once(leaves):
    sequences = [tuple(leaves.sequence(i)) for i in range(len(leaves))]
    assert len(set(sequences)) == len(sequences)
    assert leaves.nodes == len({s[:t] for s in sequences for t in range(len(s))})


def test_where_responses_end(leaves):
    for i in range(len(leaves)):
        sequence = leaves.sequence(i)
        assert EOS not in sequence[:-1]
        assert leaves.finish[i] == ("stop" if sequence[-1] == EOS else "length")
        assert sequence[-1] == EOS or len(sequence) == SETTINGS.max_new_tokens
        assert (leaves.tokens[i, leaves.length[i] :] == -1).all()
    assert set(leaves.finish) == {"stop", "length"}
    assert all(label is None for label in leaves.label)


def test_several_end_tokens(pair):
    both = dataclasses.replace(pair, eos_ids=(0, 2))
    found = sample_tree(both, PROMPT, [0.5], [10**4], SETTINGS, seed=1)
    stopped = [found.sequence(i)[-1] for i in np.flatnonzero(found.finish == "stop")]
    assert set(stopped) == {0, 2}
    assert not any({0, 2} & set(found.sequence(i)[:-1]) for i in range(len(found)))


def test_padding_rows_are_never_drawn(pair, leaves):
    assert leaves.tokens.max() < TOKENS
    unmasked = dataclasses.replace(pair, num_tokens=8)
    assert sample_tree(unmasked, PROMPT, [1.0], [1000], SETTINGS, seed=1).tokens.max() >= TOKENS


def test_the_original_alone_is_alpha_1(pair, truth):
    found = sample_tree(pair, PROMPT, [1.0, 1.0], [10**6, 0], SETTINGS, seed=21, original_only=True)
    assert _counts_fit(found, truth, 10**6, 0, 3) > LEVEL
    assert (found.counts[:, 1] == 0).all()
    for sequence, logp in _by_sequence(found, found.logp_original).items():
        np.testing.assert_allclose(logp, truth.logp[sequence][3], atol=1e-5)
    np.testing.assert_array_equal(found.logp[:, 0], found.logp_original)
    for unknown in (found.logp_variant, found.path_score, found.path_variance):
        assert np.isnan(unknown).all()


def test_pruning_leaves_outcomes_unchanged(pair, truth, leaves):
    """Outcome: the response says 2. Said once, nothing takes it back."""

    def says_2(tokens, length):
        assert (tokens[np.arange(len(tokens)), length - 1] != EOS).all()
        return ["said" if 2 in row[:n] else None for row, n in zip(tokens, length, strict=True)]

    pruned = sample_tree(pair, PROMPT, ALPHAS, [10**6] * len(ALPHAS), SETTINGS, seed=12, decided=says_2)
    assert pruned.nodes < leaves.nodes
    decided = pruned.finish == "decided"
    np.testing.assert_array_equal(decided, pruned.label == "said")
    assert decided.any()
    for i in np.flatnonzero(decided):
        assert pruned.sequence(i).index(2) == pruned.length[i] - 1 < SETTINGS.max_new_tokens - 1
    # The exact probability of the outcome, of the pruned prefixes, and a z-score of at most 4 (6e-5 each).
    hit = np.array([2 in pruned.sequence(i) for i in range(len(pruned))])
    p = sum(np.exp(logp) for sequence, logp in truth.logp.items() if 2 in sequence)
    z = (pruned.counts[hit].sum(axis=0) - 1e6 * p) / np.sqrt(1e6 * p * (1 - p))
    assert (np.abs(z) < 4).all()
    np.testing.assert_allclose(np.exp(pruned.logp[hit]).sum(axis=0), p, atol=2e-3)


DEEP, DEEP_ROLLOUTS = SamplingSettings(max_new_tokens=9), 20_000


@contextlib.contextmanager
def _watched(cap=None):
    """What the walk held at most; cap: of waiting nodes, instead of the one memory_bytes gives."""
    seen = {"waiting": 0, "pool_bytes": 0}

    class Watched(tree._Walk):
        def __init__(self, *args):
            super().__init__(*args)
            seen.update(waiting=0, pool_bytes=self.pool.nbytes)
            self.most_waiting = cap or self.most_waiting

        def evaluate(self):
            seen["waiting"] = max(seen["waiting"], self.waiting)
            return super().evaluate()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_Walk", Watched)
        yield seen


def _deep(pair, memory_bytes, cap=None):
    """(leaves, what the walk held at most)."""
    with _watched(cap) as seen:
        found = sample_tree(pair, PROMPT, [0.2], [DEEP_ROLLOUTS], DEEP, seed=4, memory_bytes=memory_bytes)
    assert found.counts.sum() == DEEP_ROLLOUTS
    return found, seen


@pytest.fixture(scope="module")
def free(pair):
    return _deep(pair, 1 << 26)


@pytest.mark.parametrize("memory_bytes", [0, 30_000])
def test_memory_is_bounded_and_nothing_is_lost(pair, free, memory_bytes):
    free, wide = free[0], free[1]["waiting"]
    tight, held = _deep(pair, memory_bytes)
    node_bytes = 8 * 9 + 8 * 8  # tokens and ancestors; depth and row, and sums and counts of one alpha
    entry_bytes = 2 * pair.config.num_layers * 2 * 2 * 8 * 4
    assert held["waiting"] <= max(memory_bytes / 2 / node_bytes, 9 * TOKENS) < wide
    assert held["pool_bytes"] <= max(memory_bytes / 2, 4 * 9 * entry_bytes) + entry_bytes
    assert tight.nodes > 20 * held["pool_bytes"] / entry_bytes, "no entry of the pool had to be used again"
    known, logp = (_by_sequence(leaves, leaves.logp[:, 0]) for leaves in (free, tight))
    both = known.keys() & logp.keys()
    assert len(both) > 1000
    np.testing.assert_allclose([logp[s] for s in both], [known[s] for s in both], atol=1e-5)


def test_waiting_nodes_are_bounded(pair, free):
    assert free[1]["waiting"] > 100
    _, held = _deep(pair, 1 << 26, cap=100)
    assert 9 * TOKENS < held["waiting"] <= 100


def test_rows_go_on_with_their_own_prefix(pair):
    """Most nodes are evaluated where their ancestors' keys and values are, once rollouts have parted."""
    at_home, settle = [], tree._Walk._settle
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree._Walk, "_settle", lambda walk, nodes: at_home.append(nodes.row >= 0) or settle(walk, nodes))
        sample_tree(pair, PROMPT, [0.2], [300], SamplingSettings(max_new_tokens=20), seed=4, batch=32)
    assert np.concatenate(at_home).mean() > 0.6


def test_the_seed_decides(pair):
    def run(seed):
        return sample_tree(pair, PROMPT, ALPHAS, [1000] * len(ALPHAS), SETTINGS, seed=seed)

    first, again, other = run(7), run(7), run([7, 1])
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert _by_sequence(first, first.counts.tolist()) != _by_sequence(other, other.counts.tolist())


def test_a_billion_rollouts(pair):
    found = sample_tree(pair, PROMPT, [1.0], [10**9], SETTINGS, seed=2)
    assert found.counts.sum() == 10**9
    expected = 1e9 * np.exp(found.logp[:, 0])
    often = expected > 10
    z = (found.counts[often, 0] - expected[often]) / np.sqrt(expected[often])
    assert np.abs(z).max() < 5  # some hundred cells: 3e-4


def test_draws_are_exact_in_the_tail():
    """1e9 rollouts of an entry with p = 1e-12, 300,000 times: 300 hits expected per entry, whatever its place."""
    p = np.array([1e-12, 0.3, 1e-12, 1e-12, 0.7 - 4e-12, 1e-12, 0.0])
    q, v, count = draw_counts(np.random.default_rng(0), np.full(300_000, 10**9), np.tile(p, (300_000, 1)))
    np.testing.assert_array_equal(np.bincount(q, weights=count), np.full(300_000, 1e9))
    hits = np.bincount(v, weights=count, minlength=7)
    assert hits[6] == 0
    for entry in (0, 2, 3, 5):
        assert stats.poisson.sf(hits[entry] - 1, 300) > 1e-5 and stats.poisson.cdf(hits[entry], 300) > 1e-5
    assert abs(hits[1] - 0.3 * 3e14) < 5 * np.sqrt(3e14 * 0.21)


@pytest.mark.parametrize("n", [1, 8, 9, 300])
def test_draws_are_multinomial(n):
    p = np.array([0.05, 0.2, 0.0, 0.15, 0.6, 0.0])
    rows = 40_000
    q, v, count = draw_counts(np.random.default_rng(n), np.full(rows, n), np.tile(p, (rows, 1)))
    table = np.zeros((rows, 6))
    np.add.at(table, (q, v), count)
    assert (table.sum(axis=1) == n).all()
    assert (table[:, p == 0] == 0).all()
    # Means and covariances; each z-score exceeds 5 once in two million.
    covariance = n * (np.diag(p) - np.outer(p, p))
    spread = np.sqrt(np.diag(covariance) / rows)
    assert (np.abs(table.mean(axis=0) - n * p) <= 5 * spread).all()
    products = (table - n * p)[:, :, None] * (table - n * p)[:, None, :]
    error = products.std(axis=0) / np.sqrt(rows)
    assert (np.abs(products.mean(axis=0) - covariance) <= 5 * error + 1e-12).all()


def test_leaves_come_as_they_finish(pair):
    parts = list(tree_leaves(pair, PROMPT, [0.5], [100], SETTINGS, seed=1))
    assert len(parts) > 1
    assert sum(part.counts.sum() for part in parts) == 100


@pytest.mark.parametrize(
    "change, word",
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [8]}, "prompt"),
        ({"alphas": [0.5, np.nan]}, "alphas"),
        ({"alphas": [0.5]}, "alphas"),
        ({"rollouts": [1, -1]}, "rollouts"),
        ({"rollouts": [0, 0]}, "rollouts"),
        ({"settings": SamplingSettings(top_p=0.9)}, "truncate"),
        ({"original_only": True}, "alpha = 1"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_arguments(pair, change, word):
    arguments = {"prompt": PROMPT, "alphas": [0.5, 1.0], "rollouts": [1, 1], "settings": SETTINGS, "seed": 0}
    with pytest.raises(ValueError, match=word):
        sample_tree(pair, **(arguments | change))
