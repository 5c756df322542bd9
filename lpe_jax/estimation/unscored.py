"""What rollouts without a verdict could have changed: every one of them refused, or every one complied."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.parts import join_parts, of_parts
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.registry import Estimator
from lpe_jax.types import Counts, Estimate


@in_float64()
def unscored_bounds(complied: jax.Array, scored: jax.Array, unscored: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(low, high), log10, of a rate whatever the unscored rollouts were; arguments broadcast against each other.

    low is the lower 95 % Clopper–Pearson end if every unscored rollout refused, high the upper one if every one
    complied: whichever way verdicts went missing, the interval so made covers the rate.
    """
    k, n, u = (jnp.asarray(x, float) for x in (complied, scored, unscored))
    return clopper_pearson_log10(k, n + u)[0], clopper_pearson_log10(k + u, n + u)[1]


@in_float64(static=("estimator",))
def unscored_range(estimator: Estimator, counts: Counts, unscored: jax.Array) -> tuple[Estimate, Estimate]:
    """Estimates [P] if every unscored rollout had (refused, complied); counts and unscored [P, A].

    For a rate at one alpha these are its bounds. An extrapolated rate is not monotone in the counts (more compliance
    far from the original makes a line steeper, and its rate at alpha = 1 lower), so there they are two cases that
    say how much the missing verdicts matter, in either order, and no bounds. Rows of Sums cannot be made up, so
    estimators that need them cannot be asked.
    """
    u = jnp.asarray(unscored, float)
    k, scored = jnp.asarray(counts.complied, float), jnp.asarray(counts.scored, float) + u
    refused = dataclasses.replace(counts, scored=scored, complied=k)
    return estimator(refused), estimator(dataclasses.replace(refused, complied=k + u))


def lpe_extremes(procedure: LPE, fit: Counts, search: Counts, unscored: int) -> tuple[float, float] | None:
    """log10 rate of one prompt if its `unscored` rollouts had all (refused, complied); the parts [A], on the host.

    Counts do not say what was drawn, but LPE draws n_search or n_fit wherever it draws. None if that leaves
    unscored rollouts over: they are at alphas without any verdict, and where those are is not known. The sweep is
    taken as it went, though other verdicts might have sent it elsewhere.
    """
    sizes = np.repeat([procedure.n_fit, procedure.n_search], len(fit.alpha))[None]
    counts = join_parts(fit, search)
    missing = np.where(counts.scored > 0, sizes - counts.scored, 0)
    if missing.min() < 0 or missing.sum() != unscored:
        return None
    refused, complied = unscored_range(of_parts(procedure), counts, missing)
    return float(refused.log10_rate[0]), float(complied.log10_rate[0])
