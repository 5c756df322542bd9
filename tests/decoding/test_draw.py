"""The draw: exact integer checks of the inverse, and frequencies against probabilities."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lpe_jax.decoding import draw

SPAN = 1 << 60


def edges_of(mass):
    """Integer upper edges of each entry's share of [0, 2^60)."""
    limbs = np.asarray(jax.jit(draw.cumulative)(jnp.asarray(mass, jnp.float32)[:, None]))[:, :, 0].astype(object)
    return limbs[0] * (1 << 40) + limbs[1] * (1 << 20) + limbs[2]


def words_of(number):
    """The two 32-bit words whose first 60 bits are number."""
    return np.array([[number >> 28, (number << 4) & 0xFFFFFFFF]], np.uint32)


def widths(mass):
    edges = edges_of(mass)
    return np.diff(np.concatenate([[0], edges]))


@pytest.mark.parametrize("tail", [1e-4, 1e-9, 1e-10, 1e-12, 1e-14])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_share_of_a_tail_entry_is_its_probability(tail, place):
    """Exact: the number of 60-bit words that select an entry, over 2^60, is its probability to 1 part in 10^5."""
    mass = np.full(101, 1.0, np.float32)
    at = {"first": 0, "middle": 50, "last": 100}[place]
    mass[at] = tail * 100
    width = widths(mass)
    total = Fraction(int(width.sum()), SPAN)
    assert 1 - Fraction(1, 2**15) <= total <= 1
    share = Fraction(int(width[at]), SPAN) / total
    exact = Fraction(float(mass[at])) / sum(Fraction(float(m)) for m in mass)
    assert abs(share / exact - 1) < Fraction(1, 10**5)
    assert widths(np.where(mass > 0, mass, 0))[at] > 0


@pytest.mark.parametrize("tail", [1e-9, 1e-12])
def test_inverse_at_the_edges_of_a_tail_entry(tail):
    """Exact: the first and last word of an entry's share select it, their neighbours do not."""
    mass = np.array([0.3, tail, 0.7, 0.0, tail], np.float32)
    edges = edges_of(mass)
    cumulative = draw.cumulative(jnp.asarray(mass)[:, None])

    def selected(number):
        return int(draw.invert(cumulative, jnp.asarray(words_of(number)))[0])

    assert selected(edges[0] - 1) == 0
    assert selected(edges[0]) == 1
    assert selected(edges[1] - 1) == 1
    assert selected(edges[1]) == 2
    assert selected(edges[2]) == 4, "an entry of mass 0 has no share"
    assert selected(edges[4]) == 5, "what is left over selects no entry"
    assert selected(0) == 0


def test_left_over_words_are_drawn_again_then_go_to_the_most_likely():
    mass = jnp.asarray([[0.25], [0.5], [0.25]], jnp.float32)
    beyond, low = words_of(SPAN - 1)[0], words_of(0)[0]
    assert int(draw.draw_entry(mass, jnp.asarray([[beyond, low]]))[0]) == 0
    assert int(draw.draw_entry(mass, jnp.asarray([[beyond, beyond]]))[0]) == 1


def test_a_float32_cumulative_sum_would_fail_this():
    """The check can fail: the plain inverse gives a late entry of 1e-9 no share at all."""
    mass = np.full(101, 1 / 101, np.float32)
    mass[100] = 1e-9
    edges = np.cumsum(mass / mass.sum(), dtype=np.float32)
    assert edges[100] - edges[99] == 0


def test_widest_level_keeps_its_sums_exact():
    mass = np.random.default_rng(0).exponential(size=draw.MAX_ENTRIES).astype(np.float32)
    width = widths(mass)
    exact = mass.astype(np.float64) / mass.astype(np.float64).sum()
    np.testing.assert_allclose((width / width.sum()).astype(float), exact, rtol=1e-5)
    with pytest.raises(ValueError, match="at most 4095"):
        draw.cumulative(jnp.ones((draw.MAX_ENTRIES + 1, 1)))


@pytest.mark.parametrize("vocab", [5, 128, 172, 1000])
def test_frequencies(vocab):
    """Chi-square of 400,000 draws; it fails by chance with probability 1e-4 per vocabulary."""
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 3, vocab).astype(np.float32)
    logits[rng.integers(0, vocab)] = -np.inf
    p = np.exp(logits.astype(np.float64))
    p /= p.sum()
    n = 400_000
    words = jax.random.bits(jax.random.key(vocab), (n, *draw.WORDS), jnp.uint32)
    tokens = jax.lax.map(lambda w: draw.draw(jnp.asarray(logits)[:, None], w[None])[0], words, batch_size=10_000)
    counts = np.bincount(np.asarray(tokens), minlength=vocab)
    assert counts[p == 0].sum() == 0
    common = p * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(p[common], p[~common].sum()) * n
    kept = expected > 0
    assert scipy.stats.chisquare(observed[kept], expected[kept]).pvalue > 1e-4


@pytest.mark.slow
def test_frequency_of_a_rare_token():
    """p = 1e-4 in 4,000,000 draws over a real vocabulary size: exact binomial test, false alarm 1e-4."""
    vocab, n, rare = 3_000, 4_000_000, 2_777
    logits = np.full(vocab, np.log((1 - 1e-4) / (vocab - 1)), np.float32)
    logits[rare] = np.log(1e-4)
    words = jax.random.bits(jax.random.key(0), (n, *draw.WORDS), jnp.uint32)
    shared = jnp.asarray(logits)[:, None]
    hits = jax.jit(
        lambda ws: jnp.sum(jax.lax.map(lambda w: draw.draw(shared, w[None])[0] == rare, ws, batch_size=4_000))
    )
    assert scipy.stats.binomtest(int(hits(words)), n, 1e-4).pvalue > 1e-4


def test_the_real_vocabulary_fits():
    logits = jnp.zeros((151_936, 2)).at[151_669:].set(-jnp.inf)
    words = jax.random.bits(jax.random.key(1), (2, *draw.WORDS), jnp.uint32)
    tokens = draw.draw(logits, words)
    assert tokens.shape == (2,) and bool((tokens < 151_669).all())
