"""Drawing one token exactly, tail included, from two levels of inverse CDF in fixed point.

A float32 cumulative sum cannot represent a step of 1e-12 at 0.9, and Gumbel noise from float32 uniforms is biased
below about 1e-7 (jax.random.categorical says so itself). Here each level adds probabilities as 60-bit integers, in
which sums are exact and a step of 1e-12 keeps six digits. Splitting the vocabulary into blocks makes the two sums
short: about 1,200 + 128 entries for 151,936 tokens, with two fresh 64-bit words.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK = 128
_LIMB_BITS = 20
_LIMBS = 3
_MASK = (1 << _LIMB_BITS) - 1
# A limb's cumulative sum over n entries stays below n · 2^20, which must fit 32 bits.
MAX_ENTRIES = (1 << (32 - _LIMB_BITS)) - 1
# Normalising by slightly more than the float32 total keeps the integer total below 1. What is left over, at most
# 2^-15 of the mass, is drawn again.
_SLACK = 1.0 + 2.0**-16
WORDS = (2, 2, 2)  # levels, tries, 32-bit words each


def draw(logits: jax.Array, words: jax.Array) -> jax.Array:
    """Draws from softmax(logits).

    Args:
      logits: [V, B] float32; -inf is never drawn.
      words: [B, 2, 2, 2] uint32 uniform random words: level, try, high and low word.

    Returns:
      [B] int32. A token of probability p is drawn with probability p (1 + O(1e-6)) down to p about 1e-15; the
      1e-9 that two tries leave over goes to the most likely entry.
    """
    vocab, rows = logits.shape
    mass = jnp.exp(logits - jnp.max(logits, axis=0, keepdims=True))
    mass = jnp.pad(mass, ((0, -vocab % BLOCK), (0, 0))).reshape(-1, BLOCK, rows)  # [blocks, BLOCK, B]
    block = draw_entry(jnp.sum(mass, axis=1), words[:, 0])
    inside = jnp.take_along_axis(mass, block[None, None], axis=0)[0]  # [BLOCK, B]
    return block * BLOCK + draw_entry(inside, words[:, 1])


def draw_entry(mass: jax.Array, words: jax.Array) -> jax.Array:
    """Index [B] int32 drawn in proportion to mass [n, B] >= 0 with words [B, 2 tries, 2] uint32."""
    n = len(mass)
    edges = cumulative(mass)
    first, second = (invert(edges, words[:, i]) for i in range(2))
    redrawn = jnp.where(second < n, second, jnp.argmax(mass, axis=0).astype(jnp.int32))
    return jnp.where(first < n, first, redrawn)


def cumulative(mass: jax.Array) -> jax.Array:
    """Upper edges of each entry's share of [0, 2^60), as three 20-bit limbs: [3, n, B] uint32, high limb first.

    Raises:
      ValueError: more entries than 32-bit limb sums can carry (traced shapes, so at compile time).
    """
    if len(mass) > MAX_ENTRIES:
        raise ValueError(f"{len(mass)} entries in one level; at most {MAX_ENTRIES} can be summed exactly")
    rest = mass / (jnp.sum(mass, axis=0, keepdims=True) * _SLACK)
    limbs = []
    for _ in range(_LIMBS):
        # Scaling by a power of two, floor and the remainder are all exact in float32.
        rest = rest * (1 << _LIMB_BITS)
        whole = jnp.floor(rest)
        rest = rest - whole
        limbs.append(jnp.cumsum(whole.astype(jnp.uint32), axis=0, dtype=jnp.uint32))
    high, middle, low = limbs
    middle += low >> _LIMB_BITS
    high += middle >> _LIMB_BITS
    return jnp.stack([high, middle & _MASK, low & _MASK])


def invert(edges: jax.Array, words: jax.Array) -> jax.Array:
    """The entry whose share holds a 60-bit number; n when it lies above the last edge.

    Args:
      edges: [3, n, B] from cumulative.
      words: [B, 2] uint32; the number is their first 60 bits.

    Returns:
      [B] int32.
    """
    w0, w1 = words[:, 0], words[:, 1]
    high, middle, low = (
        (w0 >> 12)[None],
        (((w0 & 0xFFF) << 8) | (w1 >> 24))[None],
        ((w1 >> 4) & _MASK)[None],
    )
    below_or_at = (edges[0] < high) | (
        (edges[0] == high) & ((edges[1] < middle) | ((edges[1] == middle) & (edges[2] <= low)))
    )
    return jnp.sum(below_or_at, axis=0, dtype=jnp.int32)
