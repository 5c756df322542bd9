"""An Estimate from what an estimator knows; the rest is NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lpe_jax.types import Counts, Estimate


def make_estimate(
    counts: Counts, log10_rate: jax.Array, low: jax.Array, high: jax.Array, *, used: jax.Array, **known
) -> Estimate:
    """The estimate of one prompt, whose rollouts and tokens are those of `counts` [A] unless given.

    log10_rate, low, high: [] log10. used: [A] bool. known: any other field of Estimate.
    """
    nan = jnp.asarray(jnp.nan)
    unknown = ("slope", "intercept", "r2", "curvature", "ess", "pareto_k", "largest", "start_alpha")
    fields = {
        **dict.fromkeys(unknown, nan),
        "identified": jnp.asarray(True),
        "fallback": jnp.asarray(False),
        "rollouts": jnp.sum(counts.scored),
        "tokens": nan if counts.tokens is None else jnp.sum(counts.tokens),
        **known,
    }
    return Estimate(log10_rate=log10_rate, low=low, high=high, used=used, **fields)
