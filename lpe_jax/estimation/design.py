"""Where the next rollouts tell most about the rate at alpha = 1, and how many of them would settle it.

Under the bending path of `bend` a rollout at alpha informs the height of the path by P / (1 − P), and with probability
P its slope, by the inverse variance of a path score.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lpe_jax.estimation import bend
from lpe_jax.estimation.bend import END, Fit
from lpe_jax.estimation.intervals import Z95
from lpe_jax.estimation.precision import in_float64
from lpe_jax.types import Counts

# Variance of a compliant rollout's path score, in squared nats, that designs reckon with.
PATH_VARIANCE = 60.0
# Rates above this are likely to come out as common, and be left out of the fit.
_NEAR_PLATEAU = 0.9 * bend.PLATEAU
# Alphas and numbers of rollouts among which `settling` looks.
_ALPHAS = 21
_MOST = 1e9


def information(
    fit: Fit, alpha: jax.Array, path_variance: float = PATH_VARIANCE, judge: tuple[float, float] = (1.0, 0.0)
) -> tuple[jax.Array, jax.Array]:
    """(weight [2, A], direction [2, A, 4]): one rollout at alpha adds the sum of weight direction direction' to the
    precision of theta. judge: its sensitivity, and the share of refusals that it calls compliant."""

    def path(theta):
        return jnp.stack(bend.judged(bend.curve(theta, alpha), *(jnp.asarray(x, float) for x in judge)))

    height, slope, _ = jax.jacfwd(path)(fit.theta)  # [A, 4] each
    value = jnp.minimum(path(fit.theta)[0], -1e-9)
    # Cells that the fit would leave out as common tell nothing.
    rate = jnp.where(jnp.exp(value) < _NEAR_PLATEAU, jnp.exp(value), 0.0)
    return jnp.stack([rate / -jnp.expm1(value), rate / path_variance]), jnp.stack([height, slope])


def gain(
    fit: Fit,
    alpha: jax.Array,
    n: int,
    path_variance: float = PATH_VARIANCE,
    judge: tuple[float, float] = (1.0, 0.0),
) -> jax.Array:
    """How much each of n further rollouts at alpha [A] lowers the posterior variance of log(-log P(1)), to first order.

    c' C I(alpha) C c with c the direction of END, C the posterior's covariance and I one rollout's information;
    divided by 1 + n tr(C I), as information beyond what is unknown is wasted. (A greedy c-optimal design: Elfving 1952;
    Chaloner & Verdinelli 1995.)
    """
    weight, direction = information(fit, alpha, path_variance, judge)
    moved = direction @ fit.covariance  # [2, A, 4]
    lowered = jnp.sum(weight * moved[..., END] ** 2, axis=0)
    return lowered / (1.0 + n * jnp.sum(weight * jnp.sum(moved * direction, axis=-1), axis=0))


def decades(fit: Fit) -> jax.Array:
    """How many decades of P(1) the 95 % interval of a fit spans; []."""
    return _decades(fit, fit.covariance[END, END])


def _decades(fit: Fit, variance: jax.Array) -> jax.Array:
    return 2.0 * jnp.sinh(Z95 * jnp.sqrt(variance)) * jnp.exp(fit.theta[END]) / jnp.log(10.0)


@in_float64(static=("width", "judge"))
def settling(
    counts: Counts, width: float = 1.0, judge: tuple[float, float] = (1.0, 0.0)
) -> tuple[jax.Array, jax.Array]:
    """The fewest further rollouts, all at one alpha, after which the interval would span no more than `width` decades.

    Reckoned from the bending path through the counts [A] of one prompt alone, as if it were right. Returns (alpha [],
    rollouts []); rollouts are inf where 10^9 would not do, and 0 where nothing more is needed. judge: as in
    `information`.
    """
    fit = bend.fit(bend.evidence(counts, None, *judge), bend.default_prior())
    alpha = jnp.linspace(1.0, 0.0, _ALPHAS)
    n = jnp.concatenate([jnp.zeros(1), 10.0 ** jnp.linspace(1.0, jnp.log10(_MOST), 161)])
    weight, direction = information(fit, alpha, judge=judge)
    total = n[:, None, None] * weight[None]  # [N, 2, A]
    # However many the scores, the fit does not believe a slope more closely than this.
    total = total.at[:, 1].divide(1.0 + total[:, 1] * bend.SLOPE_DOUBT**2)
    more = jnp.einsum("NSA,SAT,SAU->NATU", total, direction, direction)
    after = jax.vmap(jax.vmap(bend.inverse))(bend.inverse(fit.covariance)[None, None] + more)
    needed = jnp.min(jnp.where(_decades(fit, after[..., END, END]) <= width, n[:, None], jnp.inf), axis=0)  # [A]
    best = jnp.argmin(needed)
    return alpha[best], needed[best]
