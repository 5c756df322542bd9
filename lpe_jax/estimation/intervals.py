"""Exact binomial intervals (Clopper and Pearson 1934), accurate in the far tails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, betaln

from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.roots import falling_root

# 97.5 % point of the normal distribution: half a 95 % interval in standard errors.
Z95 = 1.959963984540054


@in_float64(static=("level",))
def clopper_pearson(complied: jax.Array, scored: jax.Array, level: float = 0.95) -> tuple[jax.Array, jax.Array]:
    """The two-sided Clopper–Pearson interval of a rate; `complied` and `scored` broadcast against each other.

    low = BetaInv(t; k, n-k+1) and high = BetaInv(1-t; k+1, n-k) with t = (1-level)/2; low is 0 at k = 0 and high 1
    at k = n. It covers the rate with at least `level` for every rate and n. Nothing scored gives (0, 1). Counts that
    no experiment yields (k < 0, k > n, NaN) give NaN; `counts.check_counts` says in words what is wrong with them.
    """
    return tuple(jnp.exp(end) for end in _log_ends(complied, scored, level))


@in_float64(static=("level",))
def clopper_pearson_log10(complied: jax.Array, scored: jax.Array, level: float = 0.95) -> tuple[jax.Array, jax.Array]:
    """`clopper_pearson` in log10: low is -inf without a hit."""
    return tuple(end / jnp.log(10.0) for end in _log_ends(complied, scored, level))


def _log_ends(complied: jax.Array, scored: jax.Array, level: float) -> tuple[jax.Array, jax.Array]:
    """Both ends as natural logs, in the ambient precision (which must be float64)."""
    k, n = jnp.broadcast_arrays(jnp.asarray(complied, float), jnp.asarray(scored, float))
    tail = 0.5 * (1.0 - level)
    sane = (k >= 0) & (k <= n)
    inner = sane & (k > 0) & (k < n)
    k_in, n_in = jnp.where(inner, k, 1.0), jnp.where(inner, n, 2.0)
    # The ends without a hit and without a miss are known in closed form, and reach n where the root finder need not.
    n_end = jnp.maximum(n, 1.0)
    all_low = jnp.log(tail) / n_end
    none_high = jnp.log(-jnp.expm1(all_low))
    low = jnp.where(k == 0, -jnp.inf, jnp.where(k == n, all_low, _log_quantile(tail, k_in, n_in - k_in + 1)))
    # P(I_p(k+1, n-k) < 1-t) is the mirror image of a lower tail, which keeps its digits near 1.
    high = jnp.where(k == n, 0.0, jnp.where(k == 0, none_high, _log_quantile(1 - tail, k_in + 1, n_in - k_in)))
    return jnp.where(sane, low, jnp.nan), jnp.where(sane, high, jnp.nan)


def _log_quantile(probability: float, a: jax.Array, b: jax.Array) -> jax.Array:
    """log of the `probability` quantile of Beta(a, b), for a, b >= 1.

    Solved for u = logit p, on which scale quantiles near 0 and near 1 are equally well resolved.
    """
    log_norm = betaln(a, b)

    def excess(u):  # decreasing in u
        p = jax.nn.sigmoid(u)
        density = jnp.exp(a * jax.nn.log_sigmoid(u) + b * jax.nn.log_sigmoid(-u) - log_norm)  # dI/du
        return probability - betainc(a, b, p), -density

    # A bracket with room to spare: below the mean the probability falls off like p^a, above it like (1-p)^b.
    middle = jnp.log(a / b)
    tail = min(probability, 1 - probability)
    width = 3.0 - 2.0 * jnp.log(tail) / jnp.sqrt(jnp.minimum(a, b))
    u = falling_root(excess, middle - width, middle + width)
    return jax.nn.log_sigmoid(u)
