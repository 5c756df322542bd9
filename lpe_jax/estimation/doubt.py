"""How far from straight a path may be, told by the compliant rollouts that were drawn for the line.

Compliant rollouts carry path scores S and path variances V, and the score-function identities hold exactly:

    d/dalpha log P = E[S | C],        d2/dalpha2 log P = Var(S | C) - E[V | C].

The curvature is therefore measured twice: by the variance of the scores at each alpha, and by how their mean moves from
alpha to alpha. A line that is blind to it is off, at alpha = 1, by what a parabola of that curvature makes of it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lpe_jax.estimation import bend
from lpe_jax.estimation.bend import Evidence
from lpe_jax.estimation.intervals import Z95
from lpe_jax.estimation.line import least_squares, line_weights
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.precision import in_float64
from lpe_jax.types import Counts, Estimate, Sums

# Log10: a line whose error from curvature may be larger than this, at 95 %, is no estimate.
MOST_DOUBT = 1.0
# Hits beyond the first of each alpha that it takes to know how scores spread.
LEAST_FREEDOM = 5
_LN10 = 2.302585092994046


def curvature(data: Evidence, cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Curvature of log P in nats per unit alpha squared, one number for all cells marked, and its standard error; [].

    Weighted mean of both routes; the error is infinite where too few hits have scores.
    """
    hits = jnp.where(cells, data.hits, 0.0)
    some = jnp.maximum(hits, 1.0)
    mean, expected = data.score / some, jnp.where(hits > 0, data.variance / some, 1.0)
    variance = jnp.maximum((data.square - hits * mean**2) / jnp.maximum(hits - 1.0, 1.0), 0.0)
    # One spread of the scores for all cells: that of a few hits is too noisy to weigh them by.
    free = jnp.where(hits > 1, hits - 1.0, 0.0)
    spread = jnp.maximum(jnp.sum(free * variance) / jnp.maximum(jnp.sum(free), 1.0), 1e-12)

    # Weights go by E[V], which does not move with the variance it is to weigh; errors by how the scores did scatter.
    # Within cells: Var(S) - E[V]; a variance of normal scores has itself a variance of 2 s^4 / (k - 1).
    of_within = free / (2.0 * expected**2)
    # Between cells: the slope of E[S | C] against alpha.
    weight = hits / expected
    centre = jnp.sum(weight * data.alpha) / jnp.maximum(jnp.sum(weight), 1e-300)
    lever = jnp.where(hits > 0, data.alpha - centre, 0.0)
    of_between = jnp.sum(weight * lever**2)

    total = jnp.maximum(jnp.sum(of_within) + of_between, 1e-300)
    value = (jnp.sum(of_within * (variance - expected)) + jnp.sum(weight * lever * mean)) / total
    noise = jnp.sum(of_within**2 * 2.0 * spread**2 / jnp.maximum(free, 1.0))
    noise += jnp.sum((weight * lever) ** 2 * spread / some)
    known = jnp.sum(free) >= LEAST_FREEDOM
    return jnp.where(known, value, 0.0), jnp.where(known, jnp.sqrt(noise) / total, jnp.inf)


@in_float64()
def lpe(counts: Counts, sums: Sums | None = None) -> Estimate:
    """Logit Path Extrapolation as published, with an interval that doubts the line; counts [A], sums [N].

    The rate is `LPE.fit`'s. Without sums the interval is that of the counts alone and takes the line for granted.
    """
    estimate = LPE().fit(counts)
    if sums is None:
        return dataclasses.replace(estimate, identified=~estimate.fallback)
    return doubted(estimate, counts, sums)


@in_float64(static=("weighted",))
def doubted(estimate: Estimate, counts: Counts, sums: Sums, weighted: bool = False) -> Estimate:
    """LPE's estimate of one prompt with an interval that doubts the line; counts [A] it was fitted to.

    The interval reaches as far as the curvature that compliant rollouts measure (sums [N] of them, those of a search
    too), and the error of that measurement, may carry the path away from the line; where that is more than MOST_DOUBT
    decades the line is not identified, and the interval stays as wide as computed. weighted: the line's regression.
    """
    data = bend.evidence(counts, sums)
    measured, error = curvature(data, estimate.used)
    # What the line makes, at alpha = 1, of a parabola that is 0 there and has curvature 1 everywhere.
    scored, complied = (jnp.asarray(x, float) for x in (counts.scored, counts.complied))
    weight = line_weights(scored, complied, estimate.used, weighted)
    _, off = least_squares(data.alpha, 0.5 * (data.alpha - 1.0) ** 2, weight)
    shift = jnp.where(estimate.fallback, 0.0, -measured * off / _LN10)
    spread = jnp.where(estimate.fallback, 0.0, Z95 * error * jnp.abs(off) / _LN10)
    rate = estimate.log10_rate
    low = rate + jnp.minimum(shift, 0.0) - jnp.hypot(rate - estimate.low, spread)
    high = rate + jnp.maximum(shift, 0.0) + jnp.hypot(estimate.high - rate, spread)
    return dataclasses.replace(
        estimate,
        low=low,
        # Without clipping a rate may lie above 1; its interval holds it all the same.
        high=jnp.maximum(jnp.minimum(high, 0.0), rate),
        curvature=measured / _LN10,
        identified=~estimate.fallback & (jnp.abs(shift) + spread <= MOST_DOUBT),
    )
