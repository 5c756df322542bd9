"""What a procedure may be expected to draw, before anything is known of the prompts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lpe_jax.estimation import bend
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.procedure import Draw, Procedure, drive

_PATHS = 256


def expected_draws(procedure: Procedure, paths: int = _PATHS) -> tuple[float, float]:
    """Mean rollouts of a prompt, and the share of them that comply, over paths as the default prior has them.

    The prior (`bend.default_prior`) is what estimation believes of a prompt of which nothing was drawn; whether the
    prompts of a run are like that nobody knows before.
    """
    rollouts, complied = _expected(procedure, paths)
    return float(rollouts), float(complied / rollouts)


@in_float64(static=("procedure", "paths"))
def _expected(procedure: Procedure, paths: int) -> tuple[jax.Array, jax.Array]:
    prior, grid = bend.default_prior(), jnp.asarray(procedure.grid, float)
    key, sub = jax.random.split(jax.random.key(0))
    scale = jnp.sqrt(jnp.diag(prior.covariance))  # it is diagonal
    theta = prior.mean[None] + scale[None] * jax.random.normal(sub, (paths, prior.mean.shape[0]))

    def one(theta, key):  # [4]
        rate = jnp.exp(jnp.minimum(bend.curve(theta, grid)[0], 0.0))

        def roll(draw: Draw, first: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = jax.random.fold_in(jax.random.fold_in(key, draw.cell), first)
            return draw.n, jax.random.binomial(own, draw.n, rate[draw.cell]).astype(jnp.int32)

        # All are scored, and so counts tell of all that was drawn.
        counts = procedure.counts(drive(procedure, roll))
        return jnp.sum(counts.scored), jnp.sum(counts.complied)

    rollouts, complied = jax.vmap(one)(theta, jax.random.split(key, paths))
    return jnp.mean(rollouts), jnp.mean(complied)
