"""Single prompts by the binomial likelihood of their counts, cells without a hit included.

Three ways to say what log P(alpha) looks like between the rollouts and alpha = 1: a line (`line_likelihood`), the
bending path of `bend` from counts alone (`bend_likelihood`), or from counts and path scores together (`path_slope`,
thermodynamic integration with both its ends measured). The latter two lean on `bend.default_prior`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lpe_jax.estimation import bend
from lpe_jax.estimation.bend import END, Fit
from lpe_jax.estimation.doubt import doubted
from lpe_jax.estimation.intervals import Z95, clopper_pearson_log10
from lpe_jax.estimation.line import most_likely_line, profile_interval
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.result import make_estimate
from lpe_jax.types import Counts, Estimate, Sums

# Where compliance is this common the line has its shoulder (the post's rule).
COMMON = 0.5
# Fewer compliant rollouts than this, over all alphas, say nothing of a path.
LEAST_HITS = 3


@in_float64()
def line_likelihood(counts: Counts, sums: Sums | None = None) -> Estimate:
    """The likeliest line through log rate, k ~ Binomial(n, 10^(intercept + slope (alpha - 1))); counts [A].

    Cells of rate under COMMON count, with or without hits, and all of them if fewer than two would. Unlike least
    squares it keeps the zeros, so stopping at one biases nothing. Its profile-likelihood interval takes the line for
    granted; with sums [N] it doubts it as LPE's does (`doubt.doubted`). Not identified with fewer than LEAST_HITS hits;
    without one the rate is -inf, and what bounds it is that rates do not rise with alpha: Clopper and Pearson's upper
    end of all rollouts.
    """
    alpha, scored, complied = (jnp.asarray(x, float) for x in (counts.alpha, counts.scored, counts.complied))
    drawn = scored > 0
    rare = drawn & (complied < COMMON * scored)
    # Above the common alphas only: a lucky cell below them is not on the line either.
    common = jnp.max(jnp.where(drawn & ~rare, alpha, -jnp.inf))
    cells = rare & (alpha > common)
    cells = jnp.where((jnp.sum(cells) >= 2) & (jnp.sum(jnp.where(cells, complied, 0)) > 0), cells, drawn)
    intercept, slope = most_likely_line(alpha, scored, complied, cells)
    low, high = profile_interval(alpha, scored, complied, cells)
    hits = jnp.sum(jnp.where(cells, complied, 0))
    identified = (hits >= LEAST_HITS) & (jnp.sum(cells) >= 2)
    _, ceiling = clopper_pearson_log10(0.0, jnp.sum(scored))
    none = hits == 0
    estimate = make_estimate(
        counts,
        jnp.where(none, -jnp.inf, intercept),
        jnp.where(none, -jnp.inf, jnp.minimum(low, intercept)),
        jnp.where(none, ceiling, jnp.maximum(high, intercept)),
        used=cells,
        identified=identified,
        slope=slope,
        intercept=intercept,
        curvature=jnp.asarray(0.0),
    )
    if sums is None:
        return estimate
    doubting = doubted(estimate, counts, sums, weighted=True)
    known = identified & doubting.identified
    # Without a hit there is no line to doubt.
    doubting = jax.tree.map(lambda new, old: jnp.where(none, old, new), doubting, estimate)
    return dataclasses.replace(doubting, identified=known)


@in_float64()
def bend_likelihood(counts: Counts, sums: Sums | None = None) -> Estimate:
    """The bending path through the counts [A] of one prompt alone, under the default prior."""
    data = bend.evidence(counts, None)
    return of_fit(counts, bend.fit(data, bend.default_prior()))


@in_float64()
def path_slope(counts: Counts, sums: Sums) -> Estimate:
    """The bending path through counts [A] and the path scores of compliant rollouts [N], under the default prior.

    d/dalpha log P = E[S | C] (score-function identity), so every alpha with hits gives the height of the path and its
    slope; integrating the slope from there to 1 is thermodynamic integration, here with a curve fitted to both.
    """
    data = bend.evidence(counts, sums)
    return of_fit(counts, bend.fit(data, bend.default_prior()))


def of_fit(counts: Counts, fit: Fit, identified: jax.Array | bool = True) -> Estimate:
    """The estimate a fit of the bending path amounts to.

    The interval is the posterior's on the scale of log(-log P(1)), where it is closest to normal.
    """
    ln10 = jnp.log(10.0)
    end, sd = fit.theta[END], jnp.sqrt(fit.covariance[END, END])
    rate, low, high = (-jnp.exp(end + z * sd) / ln10 for z in (0.0, Z95, -Z95))
    _, slope, curvature = bend.curve(fit.theta, jnp.ones(1))
    drawn = jnp.asarray(counts.scored) > 0
    enough = jnp.sum(jnp.where(drawn, counts.complied, 0)) >= LEAST_HITS
    return make_estimate(
        counts,
        rate,
        low,
        high,
        used=drawn,
        identified=enough & identified,
        slope=slope[0] / ln10,
        intercept=rate,
        curvature=curvature[0] / ln10,
    )
