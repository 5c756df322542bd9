"""The bending path: a curve for log P(alpha) that can be straight, or turn from flat to straight, and its fit.

A response complies if it passes one or several decisions, each a logistic function of alpha, since logits are linear in
it. The product of m alike decisions is the power link

    log P(alpha) = m log sigmoid(eta(alpha)),    eta linear in alpha,

which is flat where compliance is common, straight where it is rare, and turns the more slowly the larger m is; small m
is a straight line from the start. It is written through what it says at both ends of the path and the turn; a fourth
parameter bows it, c alpha (1 - alpha) being added to log P, for paths that no such product describes:

    theta = (log(-log P(0)), log(-log P(1)), log m, c).

A rate below 1 thus needs no constraint, the rate that is asked for is itself a parameter, and a normal prior makes
sense. Besides counts, the fit reads the path scores of compliant rollouts: with f = log P, theirs have mean f' and
variance E[V | C] + f'', V the path variance (score-function identities; exact for any path of normalised models whose
logits are linear in alpha).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lpe_jax.types import Counts, Sums

# Parameters of the curve, in the order of theta.
START, END, TURN, BOW = 0, 1, 2, 3
PARAMETERS = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the rollouts of one prompt say about its path; all [A], nats per unit alpha where not counts.

    Attributes:
      alpha, scored, complied: as in Counts.
      hits: compliant rollouts whose path scores are known; 0 if none are.
      score, square, variance: sums over those of S, S² and V.
      sensitivity, false_alarm: [] the shares of complying and of refusing rollouts that the judge calls compliant.
    """

    alpha: Any
    scored: Any
    complied: Any
    hits: Any
    score: Any
    square: Any
    variance: Any
    sensitivity: Any
    false_alarm: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prior:
    """A normal prior over theta: mean [4] and covariance [4, 4]."""

    mean: Any
    covariance: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fit:
    """A normal approximation of the posterior at its mode (Laplace).

    Attributes:
      theta: [4] the mode; covariance: [4, 4].
      log_evidence: [] log of the marginal likelihood, up to a constant of the data.
    """

    theta: Any
    covariance: Any
    log_evidence: Any


# Alphas at which so large a share complied are left out. A variant that complies with 95 % and never more is on a
# plateau, which no product of decisions explains, and those few refusals would decide about the whole curve.
PLATEAU = 0.75
# No path is quite a product of decisions that are alike. Where scores hardly scatter they would pin the curve down
# more closely than it deserves to be believed: its slope is off by so much (standard deviation, nats per unit alpha),
# and the variance of scores by the square of it ...
SLOPE_DOUBT = 1.0
# ... the scatter of scores is taken for what E[V] says with the weight of so many hits, ...
HITS_OF_EXPECTED = 3.0
# ... and the variance of scores at one alpha is never worth more hits than this.
MOST_FREEDOM = 50.0
# log(-log P(0)) of a path that starts flat, as far as any rollouts could tell.
_FLATTEST = -10.0
# The standard deviation of a bow that is to be none: 0 would leave a covariance without an inverse.
NO_BOW = 1e-3


def default_prior(bow: float = NO_BOW) -> Prior:
    """What is believed of a prompt before anything is drawn.

    Rates at 1 from 10^-1 to 10^-8, mostly; from a straight path to four grave decisions; and a bow of mean 0 and the
    given standard deviation, in nats.
    """
    return Prior(jnp.array([-2.0, 2.1, 0.3, 0.0]), jnp.diag(jnp.array([1.2, 0.6, 0.9, bow]) ** 2))


def evidence(
    counts: Counts, sums: Sums | None, sensitivity: jax.Array | float = 1.0, false_alarm: jax.Array | float = 0.0
) -> Evidence:
    """Sufficient statistics of one prompt's counts [A] and, where given, the path scores of its sums [N].

    Alphas at which PLATEAU or more of the rollouts complied count as not drawn, but for the one nearest the original.
    """
    alpha, scored, complied = (jnp.asarray(x, float) for x in (counts.alpha, counts.scored, counts.complied))
    rare = complied < PLATEAU * scored
    rare = rare | (alpha >= jnp.max(jnp.where(scored > 0, alpha, -jnp.inf)))
    nothing = jnp.zeros_like(alpha)
    of_scores = (nothing,) * 4
    if sums is not None:
        weight = jnp.where(sums.complied, jnp.asarray(sums.count, float), 0.0)
        kept = weight > 0
        score, variance = (jnp.where(kept, jnp.asarray(x, float), 0.0) for x in (sums.path_score, sums.path_variance))
        of_cell = jnp.where(kept, sums.cell, 0)
        of_scores = tuple(
            nothing.at[of_cell].add(weight * values)
            for values in (jnp.ones_like(score), score, score * score, variance)
        )
    errs = (jnp.asarray(x, float) for x in (sensitivity, false_alarm))
    return Evidence(alpha, *(jnp.where(rare, x, 0.0) for x in (scored, complied, *of_scores)), *errs)


def curve(theta: jax.Array, alpha: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(f, f', f'') of f = log P in nats at alpha [A], for theta [4]; derivatives by alpha."""
    m = jnp.exp(theta[TURN])
    # A start this flat is flat; what lies beyond would only let priors drift.
    ends = jnp.maximum(theta[START], _FLATTEST), theta[END]
    start, end = (_eta(jnp.maximum(jnp.exp(x) / m, 1e-12)) for x in ends)
    slope = end - start
    eta = start + slope * alpha
    miss = jax.nn.sigmoid(-eta)
    bow = theta[BOW]
    return (
        m * jax.nn.log_sigmoid(eta) + bow * alpha * (1.0 - alpha),
        m * slope * miss + bow * (1.0 - 2.0 * alpha),
        -m * slope**2 * miss * (1.0 - miss) - 2.0 * bow,
    )


def judged(path: tuple[jax.Array, ...], sensitivity: jax.Array, false_alarm: jax.Array) -> tuple[jax.Array, ...]:
    """What a judge that errs makes of a path: log Q, its slope and turn, from (f, f', f'') of what is true; [A] each.

    Q = false_alarm + (sensitivity - false_alarm) P. The identities for path scores hold for Q as they do for P, as a
    judge looks at the response and not at the alpha it was drawn at.
    """
    f, slope, turn = path
    right = jnp.log(sensitivity - false_alarm) + f
    value = jnp.logaddexp(right, jnp.log(false_alarm))
    share = jnp.exp(right - value)
    return value, share * slope, share * turn + share * (1.0 - share) * slope**2


def _eta(x: jax.Array) -> jax.Array:
    """The logit whose log sigmoid is -x, for x > 0."""
    return -x - jnp.log(-jnp.expm1(-x))


def fit(data: Evidence, prior: Prior, steps: int = 20) -> Fit:
    """The posterior of one prompt, by Levenberg steps from the prior's mean."""
    point = point_at(prior.mean, data)
    precision = inverse(prior.covariance)
    point = jax.lax.fori_loop(0, steps, lambda _, p: step(p, data, prior.mean, precision), point)
    return finish(point, prior)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Point:
    """Where an iteration stands: theta, the log-likelihood there with its gradient and curvature, and the damping."""

    theta: Any  # [4]
    value: Any  # []
    gradient: Any  # [4]
    information: Any  # [4, 4], positive semi-definite
    damping: Any  # []


def point_at(theta: jax.Array, data: Evidence) -> Point:
    """The start of an iteration at theta [4]."""
    return Point(theta, *_likelihood(theta, data), jnp.asarray(1e-2))


def step(point: Point, data: Evidence, mean: jax.Array, precision: jax.Array) -> Point:
    """One Levenberg step towards the posterior's mode; a step that does not help is not taken and damps the next."""
    away = point.theta - mean
    total = point.information + precision
    gradient = point.gradient - precision @ away
    move = inverse(total + point.damping * jnp.diag(jnp.diagonal(total))) @ gradient
    # A curve far from any data can fold over: no parameter moves by more than a factor of e at once.
    move = move / jnp.maximum(1.0, jnp.max(jnp.abs(move)))
    theta = point.theta + move
    value, new_gradient, information = _likelihood(theta, data)
    before = point.value - 0.5 * away @ precision @ away
    after = value - 0.5 * (theta - mean) @ precision @ (theta - mean)
    better = after >= before
    taken = Point(theta, value, new_gradient, information, jnp.maximum(0.2 * point.damping, 1e-9))
    stayed = dataclasses.replace(point, damping=jnp.minimum(8.0 * point.damping, 1e6))
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), taken, stayed)


def finish(point: Point, prior: Prior) -> Fit:
    """Laplace's approximation at a point that has converged."""
    precision = inverse(prior.covariance)
    covariance = inverse(point.information + precision)
    away = point.theta - prior.mean
    log_evidence = (
        point.value
        - 0.5 * away @ precision @ away
        + 0.5 * (jnp.linalg.slogdet(covariance)[1] - jnp.linalg.slogdet(prior.covariance)[1])
    )
    return Fit(point.theta, covariance, log_evidence)


def inverse(a: jax.Array) -> jax.Array:
    """The inverse of a symmetric positive-definite [4, 4], by blocks: a batch of small LAPACK calls is slow."""
    p, q, r = a[:2, :2], a[:2, 2:], a[2:, 2:]
    p_inverse = _inverse_of_two(p)
    moved = p_inverse @ q
    low = _inverse_of_two(r - q.T @ moved)
    side = -moved @ low
    return jnp.block([[p_inverse - side @ moved.T, side], [side.T, low]])


def _inverse_of_two(a: jax.Array) -> jax.Array:
    """The inverse of a symmetric [2, 2]."""
    side = -a[0, 1]
    return jnp.array([[a[1, 1], side], [side, a[0, 0]]]) / (a[0, 0] * a[1, 1] - side * side)


def _likelihood(theta: jax.Array, data: Evidence) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-likelihood [] of the data, its gradient [4] and its expected curvature [4, 4] (Gauss–Newton)."""

    def expected_path(theta):
        return jnp.stack(judged(curve(theta, data.alpha), data.sensitivity, data.false_alarm))

    value, slope, turn = expected_path(theta)
    by_theta = jax.jacfwd(expected_path)(theta)  # [3, A, 4]

    value = jnp.minimum(value, -1e-12)
    n, k = data.scored, data.complied
    miss = -jnp.expm1(value)
    odds = jnp.exp(value) / miss
    total = jnp.sum(k * value + (n - k) * jnp.log(miss))
    first = k - (n - k) * odds  # [A], by log rate
    second = (n - k) * odds / miss

    # The mean of the scores is the slope. How they scatter is told by themselves, over all alphas, and while they are
    # few by E[V]; E[V] + f'' would let a wrong curve explain away the very slopes that contradict it.
    some = data.hits > 0
    hits = jnp.maximum(data.hits, 1.0)
    mean, expected = data.score / hits, data.variance / hits
    within, free = jnp.maximum(data.square - hits * mean**2, 0.0), hits - 1.0
    scatter = (jnp.sum(within) + HITS_OF_EXPECTED * expected) / (jnp.sum(free) + HITS_OF_EXPECTED)
    error = scatter / hits + SLOPE_DOUBT**2
    off = mean - slope
    # Their squares about it tell the turn, where the curve leaves them any variance, no more closely than slopes do.
    left = expected + turn
    spread = jnp.maximum(left, 0.1 * expected) + SLOPE_DOUBT**2
    freedom = free / (1.0 + free / MOST_FREEDOM)
    ratio = (within / jnp.maximum(free, 1.0) + SLOPE_DOUBT**2) / spread
    some_left = (left > 0.1 * expected) | (ratio > 1.0)
    total += jnp.sum(jnp.where(some, -0.5 * (off**2 / error + freedom * (jnp.log(spread) + ratio)), 0.0))
    by_slope, by_spread, of_slope, of_spread = (
        jnp.where(told, x, 0.0)
        for told, x in (
            (some, off / error),
            (some & some_left, 0.5 * freedom * (ratio - 1.0) / spread),
            (some, 1.0 / error),
            (some & some_left, 0.5 * freedom / spread**2),
        )
    )

    gradient = jnp.einsum("GA,GAT->T", jnp.stack([first, by_slope, by_spread]), by_theta)
    weight = jnp.stack([second, of_slope, of_spread])
    information = jnp.einsum("GA,GAT,GAU->TU", weight, by_theta, by_theta)
    return total, gradient, information
