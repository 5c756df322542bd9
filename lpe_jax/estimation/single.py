"""What a single alpha tells: the naive rate at the original, and the count of compliant rollouts at any other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.result import make_estimate
from lpe_jax.types import Counts, Estimate, Sums


@in_float64()
def naive_rate(counts: Counts, sums: Sums | None = None) -> Estimate:
    """The share of rollouts at alpha = 1 that complied, with Clopper and Pearson's interval; counts [A].

    -inf in log10 without a hit; not identified (NaN, interval all of [0, 1]) without a rollout at alpha = 1.
    """
    here = jnp.isclose(counts.alpha, 1.0, rtol=0.0, atol=1e-9)
    n, k = _at(here, counts)
    low, high = clopper_pearson_log10(k, n)
    return make_estimate(counts, jnp.log10(k / n), low, high, used=here & (counts.scored > 0), identified=n > 0)


@in_float64()
def one_alpha_count(counts: Counts, sums: Sums | None = None) -> Estimate:
    """A score to rank prompts by: log10 of the rate at the alpha with the most rollouts; counts [A].

    It is a rate at that alpha and not at 1, and so it is never identified and bounds nothing. Whatever needs both
    models and an extrapolation should rank better than this.
    """
    # Of several with as many, the lowest.
    here = jnp.arange(counts.alpha.shape[-1]) == jnp.argmax(counts.scored - 1e-6 * counts.alpha)
    n, k = _at(here, counts)
    return make_estimate(
        counts, jnp.log10(k / n), jnp.asarray(-jnp.inf), jnp.asarray(0.0), used=here, identified=jnp.asarray(False)
    )


def _at(here: jax.Array, counts: Counts) -> tuple[jax.Array, jax.Array]:
    """(scored, complied) in the cells marked."""
    scored, complied = (jnp.sum(jnp.where(here, jnp.asarray(x, float), 0.0)) for x in (counts.scored, counts.complied))
    return scored, complied
