"""The adaptive procedure: every batch goes where it tells most about the rate at alpha = 1."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation import bend
from lpe_jax.estimation.bend import END, Fit
from lpe_jax.estimation.likelihood import Z95, bend_likelihood
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.procedure import Draw
from lpe_jax.types import Counts, Estimate

# Levenberg steps after each batch: the mode moves little from one to the next.
_STEPS = 3
# Rates above this are likely to come out as common, and be left out of the fit.
_MOST_COMMON = 0.9 * bend.COMMON


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PathState:
    """What has been drawn and judged at each alpha, and where the fit stood then."""

    drawn: Any  # [A] int32
    scored: Any  # [A] int32
    complied: Any  # [A] int32
    theta: Any  # [4]


@dataclasses.dataclass(frozen=True)
class Path:
    """Optimal allocation for a rate at alpha = 1, a batch at a time.

    After each batch the bending path is fitted to the counts so far, and the next goes to the alpha at which it would
    lower the posterior variance of log(-log P(1)) most (a greedy c-optimal design: Elfving 1952; Chaloner & Verdinelli
    1995). A rollout at alpha informs the height of the path, by P / (1 - P), and with probability P its slope, by the
    inverse variance of a path score. Near alpha = 1 the design would spend all on rollouts that say nothing, at alpha =
    0 on what is far from 1; where in between is best differs from prompt to prompt and is found out on the way.

    Attributes:
      budget: rollouts per prompt.
      batch: rollouts per order. Smaller ones adapt better, larger ones keep more devices busy.
      width: stop earlier once the 95 % interval of this prompt alone spans no more than so many decades; 0 is never.
      share: no alpha gets more than this share of the budget. The design trusts the curve; points on several alphas are
        what can contradict it.
      path_variance: variance of a compliant rollout's path score, in squared nats, that the design reckons with.
      spacing: distance of the alphas, from 0 to 1.
    """

    budget: int = 440
    batch: int = 20
    width: float = 0.0
    share: float = 1 / 3
    path_variance: float = 60.0
    spacing: float = 0.05

    def __post_init__(self):
        for name in ("budget", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if not self.width >= 0:
            raise ValueError(f"width must be 0 (off) or more decades, and is {self.width}.")
        if not 0 < self.path_variance < math.inf:
            raise ValueError(f"path_variance must be positive and finite, and is {self.path_variance}.")
        if not 0 < self.spacing <= 0.5 or abs(1 / self.spacing - round(1 / self.spacing)) > 1e-9:
            raise ValueError(f"spacing must divide the path from 0 to 1 evenly, and is {self.spacing}.")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, and is {self.share}.")
        if self.most_per_cell * len(self.grid) < self.budget:
            raise ValueError(
                f"budget = {self.budget} cannot be spent: share allows {self.most_per_cell} rollouts at each of "
                f"{len(self.grid)} alphas."
            )

    @property
    def grid(self) -> np.ndarray:
        """[A] float64, descending from 1 to 0."""
        steps = round(1 / self.spacing)
        return np.round(np.arange(steps, -1, -1) / steps, 9)

    @property
    def most_per_cell(self) -> int:
        return min(self.budget, max(1, math.floor(self.share * self.budget / self.batch)) * self.batch)

    def init(self) -> PathState:
        zeros = [jnp.zeros(len(self.grid), jnp.int32) for _ in range(3)]
        return PathState(*zeros, bend.default_prior().mean)

    def next(self, state: PathState) -> Draw:
        left = self.budget - jnp.sum(state.drawn)
        fit = self._fit(state, 0)
        room = self.most_per_cell - state.drawn
        gain = jnp.where(room > 0, self._gain(fit), -jnp.inf)
        cell = jnp.argmax(gain)
        sd = jnp.sqrt(fit.covariance[END, END])
        width = 2.0 * jnp.sinh(Z95 * sd) * jnp.exp(fit.theta[END]) / jnp.log(10.0)
        n = jnp.where(
            (width <= self.width) & (jnp.sum(state.drawn) > 0),
            0,
            jnp.minimum(jnp.minimum(left, self.batch), room[cell]),
        )
        return Draw(cell.astype(jnp.int32), n.astype(jnp.int32))

    def update(self, state: PathState, draw: Draw, scored: jax.Array, complied: jax.Array) -> PathState:
        here = jnp.arange(len(self.grid)) == draw.cell

        def add(total, value):
            return total + jnp.where(here, jnp.asarray(value, jnp.int32), 0)

        state = PathState(
            add(state.drawn, draw.n), add(state.scored, scored), add(state.complied, complied), state.theta
        )
        return dataclasses.replace(state, theta=self._fit(state, _STEPS).theta)

    @in_float64(static=("self",))
    def estimate(self, state: PathState) -> Estimate:
        """The bending path through this prompt's counts alone; see `gate.path` for what all prompts tell together."""
        estimate = bend_likelihood(self.counts(state))
        return dataclasses.replace(estimate, rollouts=jnp.sum(state.drawn))

    @in_float64(static=("self",))
    def counts(self, state: PathState) -> Counts:
        return Counts(jnp.asarray(self.grid), state.scored, state.complied)

    def parts(self, state: PathState) -> tuple[Counts, None]:
        """(all counts, None): searching and fitting are one."""
        return self.counts(state), None

    def _fit(self, state: PathState, steps: int) -> Fit:
        data = bend.evidence(Counts(jnp.asarray(self.grid), state.scored, state.complied), None)
        prior = bend.default_prior()
        precision = bend.inverse(prior.covariance)
        point = bend.point_at(state.theta, data)
        point = jax.lax.fori_loop(0, steps, lambda _, p: bend.step(p, data, prior.mean, precision), point)
        return bend.finish(point, prior)

    def _gain(self, fit: Fit) -> jax.Array:
        """How much one more batch at each alpha [A] lowers the variance of log(-log P(1)), to first order in its size.

        c' C I(alpha) C c with c the direction of END, C the posterior's covariance and I one rollout's information;
        divided by 1 + n tr(C I), as information beyond what is unknown is wasted.
        """
        alpha = jnp.asarray(self.grid)
        value, _, _ = bend.curve(fit.theta, alpha)
        height, slope, _ = jax.jacfwd(lambda theta: jnp.stack(bend.curve(theta, alpha)))(fit.theta)  # [A, 4] each
        rate = jnp.exp(jnp.minimum(value, -1e-9))
        # Cells that the fit would leave out as common tell nothing.
        rate = jnp.where(rate < _MOST_COMMON, rate, 0.0)
        weights = rate / -jnp.expm1(jnp.minimum(value, -1e-9)), rate / self.path_variance
        gain, total = 0.0, 0.0
        for weight, by_theta in zip(weights, (height, slope), strict=True):
            moved = by_theta @ fit.covariance  # [A, 4]
            gain += weight * moved[:, END] ** 2
            total += weight * jnp.sum(moved * by_theta, axis=-1)
        return gain / (1.0 + self.batch * total)
