"""How far importance weights can be trusted: their effective number, their tail index, the share of the largest.

Every function takes log_weight [N] in nats, up to a common constant, and count [N], how many rollouts each row stands
for, and returns []. Rows of count 0 are left out whatever their log weight is. All are made for jit and vmap.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lpe_jax.estimation.precision import in_float64

# The Pareto tail is fitted to at most so many of the largest weights: enough for its index, and a fixed shape.
MOST_TAIL = 256
LEAST_TAIL = 5


@in_float64()
def ess(log_weight: jax.Array, count: jax.Array) -> jax.Array:
    """Kish's effective sample size, (sum w)² / sum w²; 0 without a weight."""
    weight, count = _scaled(log_weight, count)
    squares = jnp.sum(count * weight**2)
    return jnp.sum(count * weight) ** 2 / jnp.where(squares > 0, squares, 1.0)


@in_float64()
def largest_share(log_weight: jax.Array, count: jax.Array) -> jax.Array:
    """The largest weight of one rollout over the sum of all; NaN without a weight."""
    weight, count = _scaled(log_weight, count)
    return jnp.max(weight, initial=0.0) / jnp.sum(count * weight)


@in_float64()
def tempered_ess(log_weight: jax.Array, count: jax.Array) -> jax.Array:
    """The effective sample size to expect if the weights have a log-normal tail; 0 without a weight.

    `ess` looks at the largest weights drawn, and where the tail was missed it is too high and its own witness. With
    K(t) = log sum w^t, log ess = 2 K(1) - K(2), and K(2) is what the tail spoils. Here K(1) and K(2) are continued
    from the middle of the weights, K(1/2), by two derivatives, which is exact for log-normal and for equal weights:

        log of the result = H - 7/2 Var(log pi),   pi proportional to sqrt(w),   H the entropy of pi.
    """
    weight, count = _scaled(log_weight, count)
    root = jnp.sqrt(weight)
    total = jnp.sum(count * root)
    # With pi = root / total, H and Var(log pi) are moments of log root, which is linear in the log weight.
    log_root = 0.5 * jnp.where(weight > 0, log_weight, 0.0)
    mean = jnp.sum(count * root * log_root) / total
    spread = jnp.sum(count * root * (log_root - mean) ** 2) / total
    top = 0.5 * jnp.max(jnp.where(weight > 0, log_weight, -jnp.inf), initial=-jnp.inf)
    return jnp.where(total > 0, jnp.exp(jnp.log(total) + top - mean - 3.5 * spread), 0.0)


@in_float64()
def pareto_k(log_weight: jax.Array, count: jax.Array) -> jax.Array:
    """Tail index of the weights as in Pareto-smoothed importance sampling (Vehtari et al. 2024).

    A generalised Pareto distribution is fitted by Zhang and Stephens' (2009) profile estimator to what the
    M = min(S / 5, 3 sqrt(S)) largest of S weights exceed the next one by, and its index drawn to 1/2 as if by ten
    more. Fractional moments up to 1/k exist; above 0.7 means over the weights are not to be trusted. M is at most
    MOST_TAIL. Weights that equal the threshold are left out; with fewer than LEAST_TAIL above it, NaN.
    """
    log_weight, count = _masked(log_weight, count)
    if not log_weight.shape[-1]:
        return jnp.asarray(jnp.nan)
    top, order = jax.lax.top_k(log_weight, min(log_weight.shape[-1], MOST_TAIL + 1))
    # Where a row stands for several, its part in the tail is what the M largest rollouts have of it.
    here = count[order]
    total = jnp.sum(count)
    size = jnp.minimum(jnp.ceil(jnp.minimum(total / 5, 3 * jnp.sqrt(total))), MOST_TAIL)
    reached = jnp.cumsum(here)
    part = jnp.clip(size - (reached - here), 0.0, here)
    weight = jnp.exp(top - jnp.where(top[0] > -jnp.inf, top[0], 0.0))
    excess = jnp.maximum(weight - weight[jnp.argmax(reached > size)], 0.0)
    part = jnp.where(excess > 0, part, 0.0)
    size = jnp.sum(part)
    enough = size >= LEAST_TAIL

    # Zhang and Stephens' prior for theta = -k / sigma hangs on the largest excess and the lower quartile.
    quartile = excess[jnp.argmax(jnp.cumsum(part) >= size - jnp.floor(size / 4 + 0.5) + 1)]
    points = 30 + jnp.floor(jnp.sqrt(size))
    j = jnp.arange(1.0, 30 + int(MOST_TAIL**0.5) + 1)
    scale = jnp.where(enough, 3 * quartile, 1.0)
    theta = 1 / jnp.where(enough, excess[0], 1.0) + (1 - jnp.sqrt(points / (j - 0.5))) / scale

    def index(theta):  # k that is likeliest for a theta, both []
        return jnp.sum(part * jnp.log1p(-theta * excess)) / jnp.maximum(size, 1)

    k = jax.vmap(index)(theta)
    profile = size * (jnp.log(-theta / jnp.where(enough, k, -theta)) - k - 1)
    belief = jax.nn.softmax(jnp.where(j <= points, profile, -jnp.inf))
    k = index(jnp.sum(jnp.where(j <= points, belief * theta, 0.0)))
    return jnp.where(enough, (size * k + 10 * 0.5) / (size + 10), jnp.nan)


def _masked(log_weight: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(log weights, counts) as float; -inf where the count is 0."""
    count = jnp.asarray(count, float)
    return jnp.where(count > 0, jnp.asarray(log_weight, float), -jnp.inf), count


def _scaled(log_weight: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(weights over the largest, counts), both 0 in rows that weigh nothing."""
    log_weight, count = _masked(log_weight, count)
    top = jnp.max(log_weight, initial=-jnp.inf)
    weight = jnp.exp(log_weight - jnp.where(top > -jnp.inf, top, 0.0))
    return weight, jnp.where(weight > 0, count, 0.0)
