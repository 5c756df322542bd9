"""How well a score ranks: the area under the ROC curve, ties counted as half."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lpe_jax.estimation.precision import in_float64


@in_float64()
def auroc(score: jax.Array, positive: jax.Array, mask: jax.Array) -> jax.Array:
    """The share of (positive, negative) pairs that the score puts in order, a tie being half a pair.

    score [..., P] number, infinities allowed; positive [..., P] bool; mask [..., P] bool, who takes part. They are
    broadcast against each other. Returns [...]: Mann and Whitney's statistic over the number of pairs; NaN without a
    positive or without a negative, or where a score that takes part is NaN. O(P log P).
    """
    score, positive, mask = jnp.asarray(score, float), jnp.asarray(positive, bool), jnp.asarray(mask, bool)
    shape = jnp.broadcast_shapes(score.shape, positive.shape, mask.shape)
    score, positive, mask = (jnp.broadcast_to(x, shape).reshape(-1, shape[-1]) for x in (score, positive, mask))
    return jax.vmap(_one)(score, positive & mask, ~positive & mask).reshape(shape[:-1])


def _one(score: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """[P] each to []."""
    n_positive, n_negative = jnp.sum(positive), jnp.sum(negative)
    # Who is no negative stands at +inf, behind all that are: counts are cut off at their number.
    negatives = jnp.sort(jnp.where(negative, score, jnp.inf))
    below, not_above = (
        jnp.minimum(jnp.searchsorted(negatives, score, side=side), n_negative) for side in ("left", "right")
    )
    pairs = jnp.sum(jnp.where(positive, below + not_above, 0)) / 2
    known = ~jnp.any((positive | negative) & jnp.isnan(score))
    return jnp.where(known, pairs / (n_positive * n_negative), jnp.nan)
