"""The recommended estimator: reweighting where its weights carry it, the pooled bending path where they do not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.special import gammainc

from lpe_jax.estimation.importance import mixture
from lpe_jax.estimation.pooled import pooled
from lpe_jax.estimation.precision import in_float64
from lpe_jax.types import Counts, Estimate, Sums

# Naive hits this unlikely under the upper end of an interval contradict it.
_CONTRADICTION = 1e-3


@in_float64()
def path(counts: Counts, sums: Sums) -> Estimate:
    """All that the rollouts of many prompts tell: counts [P, A] and sums [P, N]; the estimate [P].

    Reweighting by the balance heuristic (`importance.mixture`) knows no curve and needs none, but its weights spread
    with every token of style the two models disagree on, and its own standard error does not warn. Empirical Bayes
    (`pooled`) does not feel the style but believes in a curve. The gate takes reweighting for a prompt if it
    stands above its bar and its interval is the narrower one, and the pooled fit otherwise.

    Not identified where neither is, and where more naive rollouts complied than the interval can explain: a route that
    only the original takes is on no path, and naive rollouts alone can tell of it.
    """
    smooth, weighted = pooled(counts, sums), jax.vmap(mixture)(counts, sums)
    chosen = gate(smooth, weighted)
    estimate = jax.tree.map(
        lambda w, s: jnp.where(jnp.expand_dims(chosen, tuple(range(1, s.ndim))), w, s), weighted, smooth
    )
    return dataclasses.replace(
        estimate,
        identified=estimate.identified & ~contradicted(counts, estimate),
        # What the weights are like is worth knowing even where they were not used.
        ess=weighted.ess,
        pareto_k=weighted.pareto_k,
        largest=weighted.largest,
    )


def gate(smooth: Estimate, weighted: Estimate) -> jax.Array:
    """[P] bool: whether the weighted estimate is to be believed rather than the smooth one."""
    narrower = (weighted.high - weighted.low) < (smooth.high - smooth.low)
    return weighted.identified & (narrower | ~smooth.identified)


@in_float64()
def contradicted(counts: Counts, estimate: Estimate, false_alarm: jax.Array | float = 0.0) -> jax.Array:
    """[...] bool: whether rollouts at alpha = 1 complied more often than the interval's upper end lets them.

    counts [..., A]; false_alarm: the share of refusals that the judge may call compliant, besides.
    """
    naive = jnp.isclose(counts.alpha, 1.0, rtol=0.0, atol=1e-9)
    n, k = (jnp.sum(jnp.where(naive, jnp.asarray(x, float), 0.0), axis=-1) for x in (counts.scored, counts.complied))
    expected = jnp.maximum(n * (10.0**estimate.high + false_alarm), 1e-300)
    # P(at least k hits), of a Poisson number.
    return (k > 0) & (gammainc(jnp.maximum(k, 1.0), expected) < _CONTRADICTION)
