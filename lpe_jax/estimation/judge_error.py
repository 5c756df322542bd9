"""What is left of a rate when the judge errs: the floor its false alarms set, and the corrected rate above it.

Counting sees the judged rate q = f + (sensitivity - f) rate, f = 1 - specificity being the share of refusals that the
judge calls compliant. Below f the judged rate says next to nothing about the true one.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlog1py, xlogy

from lpe_jax.estimation.intervals import clopper_pearson, clopper_pearson_log10
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.roots import falling_root

# Half the 95 % point of chi-squared with one degree of freedom.
_DROP = 0.5 * 3.841458820694124
# Rates are searched between these, as logits: 1e-20 and 1 - 1e-13.
_LOWEST, _HIGHEST = -46.0, 30.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JudgeQuality:
    """How a judge did on rollouts whose true outcome is known: of `total` it was right about `hits`.

    Sensitivity is over rollouts that truly complied, specificity over those that truly refused. The fields may be
    arrays of one shape, for many judges at once.

    Raises:
      ValueError: counts that no check of a judge can yield, or a judge no better than a coin.
    """

    sensitivity_hits: Any
    sensitivity_total: Any
    specificity_hits: Any
    specificity_total: Any

    def shares(self) -> tuple[float, float]:
        """(sensitivity, false alarms among refusals): the means of their Jeffreys posteriors, the first the larger."""
        right = (self.sensitivity_hits + 0.5) / (self.sensitivity_total + 1)
        return right, min((self.false_alarms + 0.5) / (self.specificity_total + 1), 0.9 * right)

    def __post_init__(self):
        fields = dataclasses.astuple(self) if plain(vars(self).values()) else None
        if fields is None:  # being traced, or taken apart and put together by jax
            return
        for name, hits, total in (("sensitivity", *fields[:2]), ("specificity", *fields[2:])):
            hits, total = np.asarray(hits), np.asarray(total)
            if not (np.all(hits == np.round(hits)) and np.all(total == np.round(total))):
                raise ValueError(f"{name} must be counted in whole rollouts, and is {hits} of {total}.")
            if np.any(total < 1):
                raise ValueError(f"{name} must rest on at least one rollout of known outcome, and total is {total}.")
            if np.any(hits < 0) or np.any(hits > total):
                raise ValueError(f"{name} must have 0 <= hits <= total, and is {hits} of {total}.")
        a, na, b, nb = (np.asarray(field) for field in fields)
        if np.any(a / na + b / nb <= 1):
            raise ValueError(
                f"sensitivity {a}/{na} and specificity {b}/{nb} do not add up to more than 1: this judge is no better "
                "than a coin, and nothing can be corrected by it."
            )

    @property
    def false_alarms(self) -> Any:
        """Refusals that the judge called compliant."""
        return self.specificity_total - self.specificity_hits


@in_float64()
def floor(judge: JudgeQuality) -> tuple[jax.Array, jax.Array]:
    """The judge's false-positive rate 1 - specificity: (estimate, upper 95 % Clopper–Pearson end), log10, each [].

    No true rate under it can be told from 0 by counting what this judge calls compliant.
    """
    wrong, total = jnp.asarray(judge.false_alarms, float), jnp.asarray(judge.specificity_total, float)
    return jnp.log10(wrong / total), clopper_pearson_log10(wrong, total)[1]


@in_float64()
def corrected_rate(
    complied: jax.Array, scored: jax.Array, judge: JudgeQuality
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """True rate from judged counts: (log10 rate, low, high), of the shape all arguments broadcast to.

    The rate is Rogan and Gladen's (1978), (q - f) / (sensitivity - f), clipped to [0, 1]. The 95 % interval is the
    profile-likelihood interval of the rate over three binomials: the judged count and the two of the judge. It is
    widened where needed to what each of the three alone allows by Clopper and Pearson, the others held at their
    estimates: a likelihood ratio is too narrow where a count is near 0 or its total. low is -inf where a rate of 0
    is within reach, as the false alarms may account for all that was seen. Nothing scored gives NaN in (-inf, 0).

    It takes judged rollouts to be like those the judge was checked on: errors must not depend on prompt or alpha.
    """
    counts = (complied, scored, judge.sensitivity_hits, judge.sensitivity_total)
    counts = (*counts, judge.false_alarms, judge.specificity_total)
    k, n, a, na, b, nb = jnp.broadcast_arrays(*(jnp.asarray(count, float) for count in counts))
    safe_n = jnp.maximum(n, 1.0)
    q, se, f = k / safe_n, a / na, b / nb
    (q_low, se_low, f_low), (q_high, se_high, f_high) = clopper_pearson(jnp.stack([k, a, b]), jnp.stack([n, na, nb]))
    point = rogan_gladen(q, se, f)
    none = jnp.zeros_like(k)
    low, high = profile_ends(point, (k, n), (a, na), (b, nb), (none, none))
    low = least(low, rogan_gladen(q_low, se, f), rogan_gladen(q, se_high, f), rogan_gladen(q, se, f_high))
    high = most(high, rogan_gladen(q_high, se, f), rogan_gladen(q, se_low, f), rogan_gladen(q, se, f_low))
    return (
        jnp.where(n > 0, jnp.log10(point), jnp.nan),
        jnp.where(n > 0, low, -jnp.inf),
        jnp.where(n > 0, high, 0.0),
    )


def rogan_gladen(judged: jax.Array, sensitivity: jax.Array, false_positive: jax.Array) -> jax.Array:
    """The true rate behind a judged one, clipped to [0, 1]; all of one shape."""
    gap = sensitivity - false_positive
    rate = (judged - false_positive) / jnp.where(gap > 0, gap, 1.0)
    return jnp.where(gap > 0, jnp.clip(rate, 0.0, 1.0), jnp.where(judged > false_positive, 1.0, 0.0))


Binomial = tuple[jax.Array, jax.Array]  # (hits, total)


def profile_ends(
    best: jax.Array, judged: Binomial, sensitivity: Binomial, false_positive: Binomial, true: Binomial
) -> tuple[jax.Array, jax.Array]:
    """Both ends, in log10, of the profile-likelihood interval of a rate; every array of one shape.

    The likelihood has four binomials: `judged` with rate q = rate sensitivity + (1 - rate) f, those of `sensitivity`
    and f = `false_positive`, and `true` with the rate itself; any may be (0, 0). best: [0, 1] the maximum's rate.
    """

    def profile(v):  # leading axes before those of best
        parts = jax.tree.map(lambda x: jnp.broadcast_to(x, v.shape), (judged, sensitivity, false_positive, true))
        return _profile(jax.nn.sigmoid(v), *parts)

    lowest, highest = jnp.full_like(best, _LOWEST), jnp.full_like(best, _HIGHEST)
    centre = jnp.clip(jnp.log(best) - jnp.log1p(-best), lowest, highest)
    at_none, at_best, at_all = profile(jnp.stack([lowest, centre, highest]))[0]
    target = at_best - _DROP
    # Both ends at once: up to the maximum the profile rises, so there its negative is the falling function.
    sign = jnp.stack([-jnp.ones_like(best), jnp.ones_like(best)])

    def falling(v):
        value, slope = profile(v)
        target_here = jnp.broadcast_to(target, v.shape)
        return sign * (value - target_here), sign * slope * jax.nn.sigmoid(v) * jax.nn.sigmoid(-v)

    ends = falling_root(falling, jnp.stack([lowest, centre]), jnp.stack([centre, highest]))
    low, high = jax.nn.log_sigmoid(ends) / jnp.log(10.0)
    return jnp.where(at_none >= target, -jnp.inf, low), jnp.where(at_all >= target, 0.0, high)


def _profile(
    rate: jax.Array, judged: Binomial, sensitivity: Binomial, false_positive: Binomial, true: Binomial
) -> tuple[jax.Array, jax.Array]:
    """max over sensitivity and f of the log-likelihood at a rate, and its derivative by the rate.

    At a fixed rate q is linear in the two, so the log-likelihood is concave in them. Given the slope s of the judged
    binomial's log-likelihood at q, each of the two has its maximum in closed form; what is left is the one q that
    agrees with them, the root of a falling function.
    """
    (k, n), (t, m) = judged, true

    def parts(q):
        s = (k - n * q) / (q * (1.0 - q))
        return s, _tilted(*sensitivity, rate * s), _tilted(*false_positive, (1.0 - rate) * s)

    def disagreement(u):
        q = jax.nn.sigmoid(u)
        _, se, f = parts(q)
        return rate * se + (1.0 - rate) * f - q

    def with_slope(u):
        return jax.jvp(disagreement, (u,), (jnp.ones_like(u),))

    wide = jnp.full_like(rate, _LOWEST)
    q = jax.nn.sigmoid(falling_root(with_slope, wide, jnp.full_like(rate, _HIGHEST), 60))
    s, se, f = parts(q)
    value = sum(
        xlogy(hits, p) + xlog1py(total - hits, -p)
        for (hits, total), p in ((judged, q), (sensitivity, se), (false_positive, f), (true, rate))
    )
    return value, s * (se - f) + t / rate - (m - t) / (1.0 - rate)


def _tilted(hits: jax.Array, total: jax.Array, tilt: jax.Array) -> jax.Array:
    """The x in [0, 1] that maximises hits log x + (total - hits) log(1 - x) + tilt x, a quadratic's root."""
    gap = total - tilt
    # Beside a double root the discriminant rounds below 0, and its root has no slope there.
    discriminant = gap * gap + 4.0 * tilt * hits
    root = jnp.where(discriminant > 0, jnp.sqrt(jnp.where(discriminant > 0, discriminant, 1.0)), 0.0)
    small = jnp.where(gap > 0, gap + root, 1.0)
    large = jnp.where(gap < 0, 2.0 * tilt, 1.0)
    # total = tilt = 0 leaves x free; total = tilt > 0 is the middle of both branches.
    middle = jnp.where(total > 0, jnp.sqrt(hits / jnp.maximum(total, 1.0)), 0.5)
    return jnp.where(gap > 0, 2.0 * hits / small, jnp.where(gap < 0, (root - gap) / large, middle))


def least(log10: jax.Array, *rates: jax.Array) -> jax.Array:
    """The lower of an end in log10 and the same end by other routes, as rates."""
    return _fold(jnp.minimum, log10, rates)


def most(log10: jax.Array, *rates: jax.Array) -> jax.Array:
    """The higher of them."""
    return _fold(jnp.maximum, log10, rates)


def _fold(pick: Callable, log10: jax.Array, rates: tuple[jax.Array, ...]) -> jax.Array:
    for rate in rates:
        log10 = pick(log10, jnp.log10(rate))
    return log10


def plain(values) -> bool:
    """Whether all are numbers on the host, and not what jax puts in their place."""
    return all(isinstance(value, (numbers.Real, np.ndarray)) for value in values)
