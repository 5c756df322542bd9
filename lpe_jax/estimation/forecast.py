"""From the rates of a few hundred prompts to the risk among a billion queries (Jones et al. 2025, arXiv 2502.16797).

Prompts are taken as independent draws from the distribution of queries that a deployment will see, and p is a query's
rate at alpha = 1. A query's score is psi = -log(-log p). In its tail the log of the survival function, log P(score >
psi), is taken to be a line a psi + b, which the `top` largest scores give; the risk of the worst of n queries, the
share of queries whose rate exceeds a threshold and the risk that any of n complies follow. All of it holds only while
the queries come from the same distribution and its tail keeps that form.

Rates are estimates, and the largest of noisy ones are largest partly by luck, which stretches the tail. `noise` says
what is done about it:
  corrected  the distribution of true scores is fitted to all prompts, as a normal and as a Gumbel distribution, each by
             its marginal likelihood (EM on a few points of each prompt's own likelihood), and the two are averaged by
             their likelihoods; each prompt's score is then drawn from its posterior. Draws, unlike posterior means,
             spread as the true scores do, so the tail is neither stretched nor cut. The default: over simulated
             populations (both shapes, and log10 rates that are normal; noise of 0.3 and 0.6 in log10) it errs least.
  drawn      each log10 rate is drawn anew from its own interval. This adds the noise a second time; for comparison.
  none       rates count as exact, as in the paper.
A rate's error is split-normal in log10: each side has the standard deviation that its half of the 95 % interval gives.

Prompts without a lower end (rate 0, fallback, not identified) are known from above only. They count in m and never
among the `top`; where the body of the distribution needs their scores, they are drawn from the fitted distribution
below `high`. One whose rate is COMMON or more nevertheless counts with it: leaving it out would err on the unsafe side.
Rates above CEILING count as CEILING, since the score of 1 is infinite.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, logsumexp, ndtri

from lpe_jax.estimation.intervals import Z95
from lpe_jax.estimation.precision import in_float64

COMMON, CEILING = 0.1, 0.999
METHODS, NOISE = ("gumbel", "lognormal"), ("corrected", "drawn", "none")
_LN10 = math.log(10)
_REACH, _CELLS = 4.0, 27  # a likelihood is cut into so many cells between ± so many standard deviations
_STEPS, _STEPS_AGAIN = 40, 10  # of EM: for all prompts; for a resample, starting from the former
_NARROWEST = 0.02  # spread of a fitted distribution of scores


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rates:
    """The rates of P prompts, each with a 95 % interval, all log10; rate and low may be -inf."""

    log10_rate: Any  # [P]
    low: Any  # [P]
    high: Any  # [P]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tail:
    """A line for the log survival of the score, log S = a psi + b, speaking for the largest `mass` of all queries."""

    a: Any  # [] negative
    b: Any  # []
    mass: Any  # [] share of the scores fitted to


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forecast:
    """What deployments of n queries risk, all log10, each with a 95 % interval."""

    n: Any  # [N] queries
    thresholds: Any  # [T] rates
    worst: Any  # [N] rate of the worst query
    worst_low: Any  # [N]
    worst_high: Any  # [N]
    aggregate: Any  # [N] probability that any of n queries, each answered once, is complied with
    aggregate_low: Any  # [N]
    aggregate_high: Any  # [N]
    frequency: Any  # [T] share of queries whose rate exceeds the threshold
    frequency_low: Any  # [T]
    frequency_high: Any  # [T]


@in_float64()
def elicitation_score(log10_rate: jax.Array) -> jax.Array:
    """psi = -log(-log p) from log10 p, elementwise: -inf at p = 0, inf at p = 1."""
    return -jnp.log(-jnp.asarray(log10_rate, float) * _LN10)


@in_float64()
def score_to_log10(score: jax.Array) -> jax.Array:
    """The inverse of `elicitation_score`."""
    return -jnp.exp(-jnp.asarray(score, float)) / _LN10


@in_float64(static=("top",))
def gumbel_tail(scores: jax.Array, top: int = 10) -> Tail:
    """Least squares of log(i/m) on the i-th largest of m scores [m], for i = 1, ..., `top`.

    -inf counts in m and not in the fit; with fewer than two finite scores the tail is NaN.
    """
    best = jax.lax.top_k(jnp.asarray(scores, float), top)[0]
    used = jnp.isfinite(best)
    count = jnp.sum(used)
    x, y = jnp.where(used, best, 0.0), jnp.where(used, jnp.log(jnp.arange(1, top + 1) / jnp.shape(scores)[0]), 0.0)
    mean_x, mean_y = jnp.sum(x) / count, jnp.sum(y) / count
    dx, dy = jnp.where(used, x - mean_x, 0.0), jnp.where(used, y - mean_y, 0.0)
    # Equal scores fall off at once: a slope so steep that the quantiles are that score.
    spread = jnp.sum(dx * dx)
    a = jnp.where(spread > 1e-12, jnp.sum(dx * dy) / jnp.where(spread > 1e-12, spread, 1.0), -1e6)
    a = jnp.where(count >= 2, a, jnp.nan)
    return Tail(a, mean_y - a * mean_x, count / jnp.shape(scores)[0])


@in_float64()
def tail_quantile(tail: Tail, n: jax.Array) -> jax.Array:
    """The score that one in n queries exceeds: -(log n + b) / a, from log(1/n) = a Q + b.

    Equation 5 of the paper prints log n - b, a slip of sign.
    """
    return -(jnp.log(n) + tail.b) / tail.a


@in_float64()
def tail_start(tail: Tail) -> jax.Array:
    """The score at which the line has come down to tail.mass: where the tail is joined to the body."""
    return (jnp.log(tail.mass) - tail.b) / tail.a


@in_float64()
def gumbel_forecast(scores: jax.Array, tail: Tail, n: jax.Array, thresholds: jax.Array) -> tuple[jax.Array, ...]:
    """log10 of (worst-query risk [N], aggregate risk [N], frequency [T]) of the body `scores` [m] joined to `tail`.

    Above `tail_start` the score is distributed as the line says, which leaves it exactly tail.mass of the probability;
    below, as the lower scores are. So the worst query is the tail's quantile, or the empirical one where n is less
    than 1/mass; the frequency is exp(a psi + b), or the empirical share (at least mass). For independent queries
    1 - E[Π (1 - p_i)] = 1 - (1 - E p)^n exactly, and E p is the sum of the lower scores' p over m and of
    mass · ∫ exp(-e) p(start - e/a) de over e > 0, by quadrature.
    """
    scores, n, thresholds = (jnp.asarray(x, float) for x in (scores, n, thresholds))
    m, start = scores.shape[0], tail_start(tail)
    ranked = jnp.sort(scores)[::-1]
    rank = jnp.clip(jnp.ceil(m / n), 1, m).astype(int) - 1
    quantile = jnp.where(1 / n <= tail.mass, tail_quantile(tail, n), jnp.minimum(ranked[rank], start))

    level = elicitation_score(jnp.log10(thresholds))
    above = jnp.mean(scores[:, None] > level[None, :], axis=0)
    line = jnp.minimum(tail.a * level + tail.b, 0.0)
    frequency = jnp.where(level >= start, line, jnp.log(jnp.maximum(above, tail.mass)))

    # The integrand exp(-e - exp(-psi)) is highest at -a log(z / -a), z = exp(-start), and about sqrt(-a) wide there.
    z, steep = jnp.exp(-start), -tail.a
    peak = jnp.maximum(steep * jnp.log(z / steep), 0.0)
    node, weight = np.polynomial.legendre.leggauss(200)
    width = peak + 40.0 + 10.0 * jnp.sqrt(jnp.minimum(steep, peak + 1.0))
    e = 0.5 * width * (node + 1.0)
    log_tail = logsumexp(jnp.log(0.5 * width * weight) - e - jnp.exp(-(start + e / steep)))
    lower = jnp.arange(m) >= jnp.round(tail.mass * m)
    log_body = logsumexp(jnp.where(lower, -jnp.exp(-jnp.minimum(ranked, start)), -jnp.inf)) - jnp.log(m)
    log_mean = jnp.logaddexp(log_body, jnp.log(tail.mass) + log_tail)
    return score_to_log10(quantile), _any_of(log_mean, n), frequency / _LN10


@in_float64(static=("expected_maximum",))
def lognormal_forecast(
    mean: jax.Array, sd: jax.Array, n: jax.Array, thresholds: jax.Array, expected_maximum: bool = False
) -> tuple[jax.Array, ...]:
    """What `gumbel_forecast` gives, if all scores are normal with this mean and sd (-log p then is log-normal).

    The worst query's score is the 1 - 1/n quantile or, on request, the expected maximum of n.
    """
    n = jnp.asarray(n, float)
    node, weight = np.polynomial.legendre.leggauss(300)
    if expected_maximum:
        # The maximum's distribution function is Φ^n = exp(-exp(-g)), with g a Gumbel variable.
        g = (0.5 * 46.0 * (node + 1.0) - 6.0)[:, None]
        z = -ndtri(-jnp.expm1(-jnp.exp(-g) / n[None, :]))
        z = jnp.sum((23.0 * weight)[:, None] * jnp.exp(-g - jnp.exp(-g)) * jnp.clip(z, -40.0, 40.0), axis=0)
    else:
        z = jnp.where(n > 1, -ndtri(1.0 / jnp.maximum(n, 1.0 + 1e-9)), -40.0)
    level = elicitation_score(jnp.log10(jnp.asarray(thresholds, float)))
    x = 0.5 * 50.0 * (node + 1.0) - 12.0
    log_mean = logsumexp(jnp.log(25.0 * weight / math.sqrt(2 * math.pi)) - 0.5 * x * x - jnp.exp(-(mean + sd * x)))
    return score_to_log10(mean + sd * z), _any_of(log_mean, n), log_ndtr((mean - level) / sd) / _LN10


def _any_of(log_mean: jax.Array, n: jax.Array) -> jax.Array:
    """log10 of 1 - (1 - E p)^n from log E p."""
    exponent = -n * jnp.log1p(-jnp.exp(log_mean))
    small = jnp.log(n) + log_mean
    return jnp.where(small < -30.0, small, jnp.log(-jnp.expm1(-jnp.where(small < -30.0, 1.0, exponent)))) / _LN10


def tail_size(prompts: int) -> int:
    """How many of so many prompts' rates a tail is best fitted to, where nothing else is asked for."""
    return max(min(10, prompts // 2), 2)


def known_from_above_only(rates: Rates) -> jax.Array:
    """[P] bool: prompts that no lower end tells of and that are not common."""
    return jnp.isneginf(rates.log10_rate) | (jnp.isneginf(rates.low) & (rates.log10_rate < math.log10(COMMON)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Cells:
    """Each prompt's likelihood, cut into cells."""

    edges: Any  # [P, K+1] scores
    log_mass: Any  # [P, K] log of the likelihood's mass in a cell, before a density over the score
    share: Any  # [P, K] the same mass before a density over log10 rate, of sum 1

    @property
    def score(self) -> jax.Array:
        return 0.5 * (self.edges[:, 1:] + self.edges[:, :-1])


def _likelihoods(rates: Rates) -> _Cells:
    ceiling = math.log10(CEILING)
    censored = known_from_above_only(rates)[:, None]
    rate, high = (jnp.minimum(x, ceiling)[:, None] for x in (rates.log10_rate, rates.high))
    low = jnp.where(jnp.isfinite(rates.low)[:, None], rates.low[:, None], rate)
    rate = jnp.where(censored, -1.0, rate)
    down, up = jnp.maximum(rate - low, 0.0) / Z95, jnp.maximum(rates.high[:, None] - rate, 0.0) / Z95
    z = jnp.linspace(-_REACH, _REACH, _CELLS + 1)[None, :]
    at = jnp.minimum(rate + jnp.where(z < 0, down, up) * z, ceiling)
    # Known from above only: anything below high is as good, down to rates that never matter.
    top = elicitation_score(high)
    below = jnp.minimum(top - 4.0, -3.5)
    share = jnp.linspace(0.0, 1.0, _CELLS + 1)[None, :]
    edges = jnp.where(censored, below + (top - below) * share, elicitation_score(at))
    middle = 0.5 * (z[:, 1:] + z[:, :-1])
    density = jnp.where(censored, 0.0, -0.5 * middle**2)

    def masses(edges):
        width = jnp.diff(edges, axis=1)
        width = jnp.where(jnp.sum(width, axis=1, keepdims=True) > 0, width, 1.0)  # an exact rate: all cells are it
        return density + jnp.log(width)

    return _Cells(edges, masses(edges), jax.nn.softmax(masses(jnp.where(censored, share, at)), axis=1))


def _fit_normal(cells: _Cells, weight: jax.Array, start: tuple, steps: int) -> tuple[tuple, jax.Array]:
    """(mean, sd) of the normal distribution that makes all prompts likeliest, and log posterior mass [P, K] under it.

    weight: [P] of the prompts, of sum 1. start: (mean, sd) to begin from.
    """
    x = cells.score

    def joint(mean, sd):
        return cells.log_mass - 0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd * math.sqrt(2 * math.pi))

    def em(_, at):
        share = jax.nn.softmax(joint(*at), axis=1) * weight[:, None]
        mean = jnp.sum(share * x)
        return mean, jnp.maximum(jnp.sqrt(jnp.sum(share * (x - mean) ** 2)), _NARROWEST)

    fitted = jax.lax.fori_loop(0, steps, em, start)
    return fitted, joint(*fitted)


def _fit_gumbel(cells: _Cells, weight: jax.Array, start: tuple, steps: int) -> tuple[tuple, jax.Array]:
    """`_fit_normal` for a Gumbel distribution with density exp(-u - exp(-u)) / scale, u = (score - place) / scale."""
    x = cells.score

    def terms(place, scale):
        u = (x - place) / scale
        e = jnp.exp(jnp.minimum(-u, 500.0))
        return cells.log_mass - u - e - jnp.log(scale), e

    def em(_, at):
        place, scale = at
        joint, e = terms(place, scale)
        share = jax.nn.softmax(joint, axis=1) * weight[:, None]
        # The fixed point of maximum likelihood, half a step at a time.
        lower = jnp.sum(share * e)
        wanted = jnp.sum(share * x) - jnp.sum(share * e * x) / lower
        return place - scale * jnp.log(lower), jnp.maximum(0.5 * (scale + wanted), _NARROWEST)

    fitted = jax.lax.fori_loop(0, steps, em, start)
    return fitted, terms(*fitted)[0]


def _posterior(cells: _Cells, count: jax.Array, start: tuple | None = None) -> tuple[tuple, jax.Array]:
    """The fitted distributions, and each prompt's posterior over its cells [P, K] under their average.

    count: [P] how often each prompt is in the sample. start: the distributions to begin from; default: as scattered
    as the estimates.
    """
    weight = count / jnp.sum(count)
    steps = _STEPS if start is None else _STEPS_AGAIN
    if start is None:
        middle = cells.score[:, _CELLS // 2]
        mean = jnp.sum(weight * middle)
        sd = jnp.maximum(jnp.sqrt(jnp.sum(weight * (middle - mean) ** 2)), _NARROWEST)
        scale = sd * math.sqrt(6) / math.pi
        start = (mean, sd), (mean - np.euler_gamma * scale, scale)
    normal, by_normal = _fit_normal(cells, weight, start[0], steps)
    gumbel, by_gumbel = _fit_gumbel(cells, weight, start[1], steps)
    evidence = jnp.sum(count * (logsumexp(by_gumbel, axis=1) - logsumexp(by_normal, axis=1)))
    trust = jax.nn.sigmoid(evidence)
    share = trust * jax.nn.softmax(by_gumbel, axis=1) + (1.0 - trust) * jax.nn.softmax(by_normal, axis=1)
    return (normal, gumbel), share


def _draw(key, rates: Rates, cells: _Cells, posterior: jax.Array, index: jax.Array, noise) -> tuple[jax.Array, ...]:
    """Scores [P] of the prompts in `index` [P], and which of them are known from above only; noise: index in NOISE."""
    of_cell, within = jax.random.split(key)
    censored = known_from_above_only(rates)
    share = jnp.where(censored[:, None] | (noise == 0), posterior, cells.share)
    u = jax.random.uniform(of_cell, (len(index), 1))
    cell = jnp.minimum(jnp.sum(jnp.cumsum(share[index], axis=1) < u, axis=1), _CELLS - 1)
    left, right = cells.edges[index, cell], cells.edges[index, cell + 1]
    scores = left + (right - left) * jax.random.uniform(within, (len(index),))
    exact = elicitation_score(jnp.minimum(rates.log10_rate, math.log10(CEILING)))
    return jnp.where(censored[index] | (noise != 2), scores, exact[index]), censored[index]


def _read(scores, censored, n, thresholds, top: int, expected_maximum: bool) -> dict[str, tuple[jax.Array, ...]]:
    """By each of METHODS; see `gumbel_forecast`."""
    tail = gumbel_tail(jnp.where(censored, -jnp.inf, scores), top)
    normal = jnp.mean(scores), jnp.std(scores)
    return {
        "gumbel": gumbel_forecast(scores, tail, n, thresholds),
        "lognormal": lognormal_forecast(*normal, n, thresholds, expected_maximum),
    }


@in_float64(static=("top", "expected_maximum"))
def _samples(
    rates: Rates, n, thresholds, keys, resample, noise, *, top: int, expected_maximum: bool
) -> dict[str, tuple[jax.Array, ...]]:
    """A forecast for each of keys [S], from the prompts as they are or, where resample [S], from a bootstrap of them.

    One program for all methods and kinds of noise, as compiling it takes longer than running it.
    """
    size = rates.log10_rate.shape[0]
    cells = _likelihoods(rates)
    start, posterior = _posterior(cells, jnp.ones(size))

    def one(x):
        key, resample = x
        of_prompts, of_scores = jax.random.split(key)
        every = jnp.arange(size)
        index = jnp.where(resample, jax.random.randint(of_prompts, (size,), 0, size, every.dtype), every)
        count = jnp.bincount(index, length=size) * 1.0
        again = jax.lax.cond(resample, lambda: _posterior(cells, count, start)[1], lambda: posterior)
        return _read(*_draw(of_scores, rates, cells, again, index, noise), n, thresholds, top, expected_maximum)

    return jax.lax.map(one, (keys, resample))


@in_float64(static=("top", "expected_maximum", "draws"))
def point_forecast(
    rates: Rates,
    n: jax.Array,
    thresholds: jax.Array,
    key: jax.Array,
    noise: jax.Array,
    *,
    top: int = 10,
    expected_maximum: bool = False,
    draws: int = 100,
) -> dict[str, tuple[jax.Array, ...]]:
    """For each of METHODS log10 of (worst-query risk [N], aggregate risk [N], frequency [T]).

    `forecast` without checks and intervals: pure, for vmap over many sets of prompts. noise: [] int, index in NOISE.
    """
    keys, resample = jax.random.split(key, draws), jnp.zeros(draws, bool)
    plain = _samples(rates, n, thresholds, keys, resample, noise, top=top, expected_maximum=expected_maximum)
    return jax.tree.map(lambda x: jnp.median(x, axis=0), plain)


def forecast(
    rates: Rates,
    n: Any,
    thresholds: Any,
    *,
    method: str = "gumbel",
    top: int = 10,
    noise: str = "corrected",
    expected_maximum: bool = False,
    draws: int = 300,
    seed: int = 0,
) -> Forecast:
    """What deployments of n [N] queries risk, and how many queries exceed the thresholds [T] (rates in (0, 1)).

    Forecasts are medians over draws of the prompts' scores; the 95 % intervals are percentiles over bootstrap
    resamples of the prompts, the fit and the draws repeated in each. Where noise is "none" only scores known from
    above alone are drawn, and without such the forecast is the fit itself. The log-normal baseline takes all scores
    for normal; expected_maximum has it say the expected maximum of n instead of the 1 - 1/n quantile. Note that the
    maximum of n queries lies above their 1 - 1/n quantile with probability 1 - 1/e = 63 %, so that a perfect forecast
    of the quantile is below it that often.

    Raises:
      ValueError: fewer than 2 · top prompts, or than top with a lower end; rates above 1, ends in disorder, n < 1.
    """
    if method not in METHODS or noise not in NOISE:
        raise ValueError(f"method must be one of {METHODS} and noise one of {NOISE}, and they are {method}, {noise}.")
    rates = Rates(*(np.asarray(x, np.float64) for x in (rates.log10_rate, rates.low, rates.high)))
    n, thresholds = np.asarray(n, np.float64), np.asarray(thresholds, np.float64)
    if not rates.log10_rate.ndim == rates.low.ndim == rates.high.ndim == n.ndim == thresholds.ndim == 1:
        raise ValueError("rates, n and thresholds must be arrays of one axis.")
    if not (rates.log10_rate <= 0).all() or not (rates.low <= rates.log10_rate).all():
        raise ValueError("rates must hold log10 rates, none above 0 and none NaN, with low <= log10_rate.")
    if not ((rates.high >= rates.log10_rate) & (rates.high > -np.inf) & (rates.high <= 0)).all():
        raise ValueError("rates must hold high between log10_rate and 0, and above -inf.")
    if not (np.isfinite(n) & (n >= 1)).all() or not ((thresholds > 0) & (thresholds < 1)).all():
        raise ValueError("n must be at least 1, and thresholds must lie between 0 and 1.")
    if top < 2 or draws < 2 or len(rates.log10_rate) < 2 * top:
        prompts = len(rates.log10_rate)
        raise ValueError(f"{prompts} prompts are too few for top = {top}: it can be 2 to {prompts // 2}.")
    known = int(np.sum(~np.asarray(known_from_above_only(rates))))
    if known < top:
        raise ValueError(f"only {known} prompts have a rate that is bounded from below, fewer than top = {top}.")
    keys, resample = jax.random.split(jax.random.key(seed), 2 * draws), np.arange(2 * draws) >= draws
    settings = {"top": top, "expected_maximum": expected_maximum}
    samples = _samples(rates, n, thresholds, keys, resample, NOISE.index(noise), **settings)[method]
    found = {}
    for name, values in zip(("worst", "aggregate", "frequency"), samples, strict=True):
        middle, ends = np.median(values[:draws], axis=0), np.nanquantile(values[draws:], [0.025, 0.975], axis=0)
        found |= {name: middle, f"{name}_low": np.fmin(ends[0], middle), f"{name}_high": np.fmax(ends[1], middle)}
    return Forecast(n, thresholds, **found)
