"""A straight line through log10 rate against alpha, read off at alpha = 1, and how sure the counts make us of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lpe_jax.estimation.roots import falling_root

# Natural log rates are searched between these: no count of rollouts can tell rates beyond them from 0 or from 1.
_LOWEST, _HIGHEST = -1e4, -1e-12
# 3.84: the 95 % point of chi-squared with one degree of freedom.
_CHI2_95 = 3.841458820694124
# Steps of each root search: ends are then right to about 1e-6 in log10.
_STEPS = 32


def fit_line(
    alpha: jax.Array, scored: jax.Array, complied: jax.Array, used: jax.Array, weighted: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Least squares of log10(complied / scored) on alpha over the cells marked in `used`; all arguments [A].

    Returns (slope per unit alpha, intercept at alpha = 1, R²), each []. Ordinary least squares, or weighted by the
    inverse delta-method variance of a log rate, n p / (1 - p), with p = (k + 1/2) / (n + 1) so that k = n keeps a
    finite weight. With fewer than two cells used, NaN; R² is NaN where the points do not vary.
    """
    y = jnp.log10(jnp.where(used, complied, 1.0) / jnp.where(used, scored, 1.0))
    weight = line_weights(scored, complied, used, weighted)
    slope, intercept = least_squares(alpha, y, weight)
    total = jnp.sum(weight)
    residual = jnp.sum(weight * (y - intercept - slope * (alpha - 1.0)) ** 2)
    spread = jnp.sum(weight * (y - jnp.sum(weight * y) / total) ** 2)
    enough = jnp.sum(used) >= 2
    r2 = jnp.where(spread > 1e-12 * total, 1.0 - residual / spread, jnp.nan)
    return tuple(jnp.where(enough, value, jnp.nan) for value in (slope, intercept, r2))


def line_weights(scored: jax.Array, complied: jax.Array, used: jax.Array, weighted: bool) -> jax.Array:
    """The weights [A] of `fit_line`."""
    p = (complied + 0.5) / (scored + 1.0)
    return jnp.where(used, scored * p / (1.0 - p) if weighted else 1.0, 0.0)


def least_squares(alpha: jax.Array, y: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(slope per unit alpha, value at alpha = 1) of the line through y [A], each []."""
    x, total = alpha - 1.0, jnp.sum(weight)
    dx, dy = x - jnp.sum(weight * x) / total, y - jnp.sum(weight * y) / total
    slope = jnp.sum(weight * dx * dy) / jnp.sum(weight * dx * dx)
    return slope, (jnp.sum(weight * y) - slope * jnp.sum(weight * x)) / total


def most_likely_line(
    alpha: jax.Array, scored: jax.Array, complied: jax.Array, cells: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Maximum likelihood of the line that `profile_interval` profiles; same arguments [A].

    Returns (log10 rate at alpha = 1, slope of log10 rate per unit alpha), each []. Without a hit the rate is as low as
    the search goes, with hits at every rollout as high.
    """
    profile = _Profile(alpha, scored, complied, cells)
    theta = _crossing(lambda theta: profile(theta)[1:], *profile.bounds)
    run = jnp.where(profile.lowest < 1.0, 1.0 - profile.lowest, 1.0)
    return theta / jnp.log(10.0), (theta - profile.at_lowest(theta)) / run / jnp.log(10.0)


def profile_interval(
    alpha: jax.Array, scored: jax.Array, complied: jax.Array, cells: jax.Array, drop: float = 0.5 * _CHI2_95
) -> tuple[jax.Array, jax.Array]:
    """Profile-likelihood interval of log10 rate at alpha = 1 if log rate is a line in alpha; all arguments [A].

    The counts of the cells marked in `cells` are k ~ Binomial(n, rate(alpha)), zeros included, and the rate lies in
    (0, 1) at each of them; all alphas must be <= 1. The interval holds every value of the rate at 1 for which some
    slope comes within `drop` of the highest log-likelihood. Returns (low, high) in log10, each [].

    The profile is concave; its maximum and the two places where it has dropped far enough are found by bracketed
    Newton steps.
    """
    profile = _Profile(alpha, scored, complied, cells)
    floor, ceiling = profile.bounds
    best = _crossing(lambda theta: profile(theta)[1:], floor, ceiling)
    target = profile(best)[0] - drop

    def above(theta):
        value, slope, _ = profile(theta)
        return value - target, slope

    def below(theta):
        value, slope, _ = profile(theta)
        return target - value, -slope

    low, high = _crossing(below, floor, best), _crossing(above, best, ceiling)
    low = jnp.where(low <= 0.999 * _LOWEST, -jnp.inf, low)
    high = jnp.where(high >= 2.0 * _HIGHEST, 0.0, high)
    return low / jnp.log(10.0), high / jnp.log(10.0)


class _Profile:
    """max over the line's other end of the log-likelihood, as a function of theta, the log rate at alpha = 1.

    The line is written through its two ends, theta at alpha = 1 and c at the lowest alpha: log rate at a cell is
    then w c + (1 - w) theta with w in [0, 1], so that "below 0 at every cell" is just c < 0 and theta < 0, and
    the log-likelihood is concave in (c, theta).
    """

    def __init__(self, alpha: jax.Array, scored: jax.Array, complied: jax.Array, cells: jax.Array):
        self.n, self.k = jnp.where(cells, scored, 0.0), jnp.where(cells, complied, 0.0)
        self.lowest = jnp.min(jnp.where(cells, alpha, jnp.inf))
        run = jnp.where(self.lowest < 1.0, 1.0 - self.lowest, 1.0)
        self.w = jnp.where(cells, (1.0 - alpha) / run, 0.0)
        self.bounds = jnp.asarray(_LOWEST, self.k.dtype), jnp.asarray(_HIGHEST, self.k.dtype)

    def _derivatives(self, c, theta):
        """Log-likelihood per cell: value, first and second derivative by the cell's log rate, each [A]."""
        eta = self.w * c + (1.0 - self.w) * theta
        miss = -jnp.expm1(eta)  # 1 - rate
        odds = jnp.exp(eta) / miss
        n, k = self.n, self.k
        return k * eta + (n - k) * jnp.log(miss), k - (n - k) * odds, -(n - k) * odds / miss

    def at_lowest(self, theta):
        """The likeliest log rate at the lowest alpha, given theta."""

        def by_c(c):
            _, first, second = self._derivatives(c, theta)
            return jnp.sum(self.w * first), jnp.sum(self.w * self.w * second)

        return _crossing(by_c, *self.bounds)

    def __call__(self, theta):
        """Value, first and second derivative by theta."""
        w = self.w
        value, first, second = self._derivatives(self.at_lowest(theta), theta)
        cc, ct, tt = (jnp.sum(u * second) for u in (w * w, w * (1.0 - w), (1.0 - w) ** 2))
        return jnp.sum(value), jnp.sum((1.0 - w) * first), tt - ct * ct / jnp.where(cc < 0, cc, -jnp.inf)


def _crossing(function, low: jax.Array, high: jax.Array) -> jax.Array:
    """The root in [low, high], both < 0, of a decreasing function of a log rate x, found on the scale log(-x).

    On that scale rates of 1e-40 and of 1 - 1e-9 are a few units apart and Newton's method is soon quadratic.
    """

    def on_scale(v):
        x = -jnp.exp(v)
        value, slope = function(x)
        return -value, -slope * x

    return -jnp.exp(falling_root(on_scale, jnp.log(-high), jnp.log(-low), _STEPS))
