"""Prompts that learn from each other: empirical Bayes over the bending path.

One pair of models is behind all prompts, so their paths are of one family: how far they bend, how steep they are and
how the two go together is a property of the pair, which two hundred prompts tell precisely even where none of them
does alone. theta of every prompt (`bend`) is drawn from a common t distribution, a normal whose precision varies from
prompt to prompt. Its centre and scatter are estimated by expectation–maximisation on Laplace's approximation, under a
weak normal–inverse-Wishart prior around `default_prior`, so that one prompt alone, or a few, still gives a sensible
answer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lpe_jax.estimation import bend
from lpe_jax.estimation.bend import (
    BOW,
    NO_BOW,
    PARAMETERS,
    Evidence,
    Fit,
    Point,
    Prior,
    default_prior,
    finish,
    inverse,
    point_at,
    step,
)
from lpe_jax.estimation.likelihood import of_fit
from lpe_jax.estimation.precision import in_float64
from lpe_jax.types import Counts, Estimate, Sums

# Prompts are drawn from a t distribution of so many degrees of freedom: a few of any set are unlike the rest.
FREEDOM = 4.0
# The hyperprior weighs as much as so many prompts.
_PROMPTS_OF_MEAN = 0.3
_PROMPTS_OF_COVARIANCE = 3.0
# With fewer the prior that is learned is for a large part the hyperprior.
ENOUGH = 12
# The paths are not of the family if a bow makes the rollouts of all prompts likelier by so many nats. At 7 nats of
# drift 200 simulated prompts of logistic decisions gained at most 8, parabolas 38 and more. With less drift the scores
# are sharp enough to see that decisions are not alike either, and such prompts are refused as well.
MOST_GAIN = 30.0
_BOW = 1.0


def pool(
    data: Evidence, *, bow: jax.Array | float = NO_BOW, iterations: int = 30, polish: int = 4
) -> tuple[Fit, Prior]:
    """Fits all prompts under a prior that is learned from them.

    Args:
      data: evidence of P prompts, each field [P, A].
      bow: [] standard deviation of the bow in the hyperprior, in nats. NO_BOW keeps it out.
      iterations: rounds of one Levenberg step for every prompt and one update of the prior.
      polish: steps under the final prior.

    Returns:
      Fit of every prompt [P, ...], and the prior learned.
    """
    hyper = default_prior(bow)
    prompts = data.alpha.shape[0]
    # Off the diagonal too: what is out correlates with nothing.
    free = (jnp.arange(PARAMETERS) != BOW) | (bow > NO_BOW)
    both = free[:, None] & free[None, :]
    points = jax.vmap(point_at, in_axes=(None, 0))(hyper.mean, data)

    def loosened(points: Point, prior: Prior) -> jax.Array:
        """[P] what the prior's precision is to be multiplied by for each prompt."""
        precision = inverse(prior.covariance)
        away = points.theta - prior.mean[None]
        spread = jax.vmap(inverse)(points.information + precision[None])
        distance = jnp.einsum("PT,TU,PU->P", away, precision, away) + jnp.einsum("TU,PUT->P", precision, spread)
        return (FREEDOM + PARAMETERS) / (FREEDOM + distance)

    def learned(points: Point, precision: jax.Array, weight: jax.Array) -> Prior:
        """The prior that the prompts' fits are likeliest under; precision [P, 4, 4] is that of each one's own."""
        spread = jnp.einsum("P,PTU->TU", weight, jax.vmap(inverse)(points.information + precision))
        total = jnp.sum(weight)
        mean = (weight @ points.theta + _PROMPTS_OF_MEAN * hyper.mean) / (total + _PROMPTS_OF_MEAN)
        mean = jnp.where(free, mean, hyper.mean)
        away = points.theta - mean[None]
        scatter = (away * weight[:, None]).T @ away + spread + _PROMPTS_OF_COVARIANCE * hyper.covariance
        return Prior(mean, jnp.where(both, scatter / (prompts + _PROMPTS_OF_COVARIANCE), hyper.covariance))

    # One loop for both kinds of rounds, as the steps of a second one would be compiled once more.
    def iterate(carry, learns):
        points, prior, weight = carry
        precision = weight[:, None, None] * inverse(prior.covariance)[None]
        points = jax.vmap(step, in_axes=(0, 0, None, 0))(points, data, prior.mean, precision)
        new = learned(points, precision, weight)
        prior, weight = jax.tree.map(
            lambda new, old: jnp.where(learns, new, old), (new, loosened(points, new)), (prior, weight)
        )
        return (points, prior, weight), None

    learns = jnp.arange(iterations + polish) < iterations
    (points, prior, weight), _ = jax.lax.scan(iterate, (points, hyper, jnp.ones(prompts)), learns)
    own = jax.vmap(lambda w: Prior(prior.mean, prior.covariance / w))(weight)
    return jax.vmap(finish)(points, own), prior


@in_float64()
def pooled(counts: Counts, sums: Sums | None = None) -> Estimate:
    """Empirical Bayes over prompts: counts [P, A] and, where given, sums [P, N]; the estimate [P].

    The interval is the posterior's under the prior learned. Nothing is identified where a bow would describe the paths
    better by more than MOST_GAIN: then no curve is known that carries to alpha = 1, and rollouts nearer to it, where
    compliance is rarer, would have to show how the paths go on.
    """
    return pooled_evidence(counts, sums, 1.0, 0.0)[0]


@in_float64()
def pooled_evidence(
    counts: Counts, sums: Sums | None, sensitivity: jax.Array | float, false_alarm: jax.Array | float
) -> tuple[Estimate, jax.Array]:
    """`pooled` behind an erring judge, and the log of the marginal likelihood [] of all rollouts, up to a constant.

    The rates are of what truly complies, the counts and sums of what the judge said.

    Args:
      sensitivity, false_alarm: [] the shares the judge calls compliant of what complies, and of what refuses.
    """
    data = jax.vmap(lambda c, s: bend.evidence(c, s, sensitivity, false_alarm))(counts, sums)
    # Side by side, so that they are compiled once.
    fits, _ = jax.vmap(lambda bow: pool(data, bow=bow))(jnp.array([NO_BOW, _BOW]))
    total = jnp.sum(fits.log_evidence, axis=1)
    gain = total[1] - total[0]
    # A fit with a bow that broke down is no fit that describes the paths.
    bent_otherwise = jnp.isnan(gain) | (gain > MOST_GAIN)
    fit = jax.tree.map(lambda x: x[0], fits)
    estimate = jax.vmap(of_fit, in_axes=(0, 0, None))(counts, fit, ~bent_otherwise)
    return estimate, total[0]
