"""The adaptive procedure: every batch goes where it tells most about the rate at alpha = 1."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation import bend, design
from lpe_jax.estimation.bend import Evidence, Fit
from lpe_jax.estimation.likelihood import of_fit
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.procedure import Draw
from lpe_jax.types import Counts, Estimate

# Levenberg steps after each batch: the mode moves little from one to the next.
_STEPS = 3


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
    lower the posterior variance of log(-log P(1)) most (`design.gain`). Near alpha = 1 the design would spend all on
    rollouts that say nothing, at alpha = 0 on what is far from 1; where in between is best differs from prompt to
    prompt and is found out on the way.

    The first rollouts are scouts, at fixed alphas. As long as nothing complied a design goes by its prior alone, and
    would look far up the path where there may be nothing to see.

    Attributes:
      budget: rollouts per prompt.
      batch: rollouts per order. Smaller ones adapt better, larger ones keep more devices busy.
      width: stop earlier once the 95 % interval of this prompt alone spans no more than so many decades; 0 is never.
      share: no alpha gets more than this share of the budget, one batch excepted. The design trusts the curve; points
        on several alphas are what can contradict it.
      path_variance: variance of a compliant rollout's path score, in squared nats, that the design reckons with.
      spacing: distance of the alphas, from 0 to 1.
      scouts: alphas of the first rollouts, multiples of spacing; n_scout: how many at each.
      sensitivity, false_alarm: the shares of complying and of refusing rollouts that the judge is taken to call
        compliant.
    """

    GROWS: ClassVar = ("budget",)

    budget: int = 440
    batch: int = 20
    width: float = 0.0
    share: float = 1 / 3
    path_variance: float = design.PATH_VARIANCE
    spacing: float = 0.05
    scouts: tuple[float, ...] = (0.6, 0.45, 0.3, 0.15)
    n_scout: int = 10
    sensitivity: float = 1.0
    false_alarm: float = 0.0

    def __post_init__(self):
        for name in ("budget", "batch", "n_scout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if not self.width >= 0:
            raise ValueError(f"width must be 0 (off) or more decades, and is {self.width}.")
        if not 0 < self.path_variance < math.inf:
            raise ValueError(f"path_variance must be positive and finite, and is {self.path_variance}.")
        if not 0 < self.spacing <= 0.5 or abs(1 / self.spacing - round(1 / self.spacing)) > 1e-9:
            raise ValueError(f"spacing must divide the path from 0 to 1 evenly, and is {self.spacing}.")
        if len(self.scout_cells) != len(self.scouts):
            raise ValueError(f"scouts must be distinct alphas of the grid, from 0 to 1, and are {self.scouts}.")
        if not 0 <= self.false_alarm < self.sensitivity <= 1:
            raise ValueError(
                f"sensitivity = {self.sensitivity} and false_alarm = {self.false_alarm} must be shares, the latter the "
                "smaller one."
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, and is {self.share}.")
        batch, scouted = min(self.batch, self.budget), len(self.scouts) * self.n_scout
        room = [self.most_per_cell - self.n_scout * (cell in self.scout_cells) for cell in range(len(self.grid))]
        if scouted + sum(most // batch * batch for most in room) < self.budget:
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
    def scout_cells(self) -> np.ndarray:
        """Where in the grid the scouts go, each once."""
        near = np.abs(self.grid[None, :] - np.asarray(self.scouts, float).reshape(-1, 1)) < 1e-9
        return np.flatnonzero(near.any(axis=0))

    @property
    def most_per_cell(self) -> int:
        batches = max(1, math.floor(self.share * self.budget / self.batch))
        return min(self.budget, max(batches * self.batch, self.n_scout))

    @property
    def most_rollouts(self) -> int:
        return self.budget

    @property
    def fixed(self) -> bool:
        return not self.width

    def init(self) -> PathState:
        zeros = [jnp.zeros(len(self.grid), jnp.int32) for _ in range(3)]
        return PathState(*zeros, bend.default_prior().mean)

    def next(self, state: PathState) -> Draw:
        left = self.budget - jnp.sum(state.drawn)
        fit = self._fit(state, 0)
        # Whole batches only, so that all prompts take them in step.
        room = state.drawn + jnp.minimum(self.batch, left) <= self.most_per_cell
        judge = self.sensitivity, self.false_alarm
        gain = design.gain(fit, jnp.asarray(self.grid), self.batch, self.path_variance, judge)
        cell, n = jnp.argmax(jnp.where(room, gain, -jnp.inf)), self.batch
        if self.scouts:
            unseen = state.drawn[self.scout_cells] == 0
            scouting = jnp.any(unseen)
            cell = jnp.where(scouting, jnp.asarray(self.scout_cells)[jnp.argmax(unseen)], cell)
            n = jnp.where(scouting, self.n_scout, n)
        narrow = (design.decades(fit) <= self.width) & (jnp.sum(state.drawn) > 0)
        return Draw(cell.astype(jnp.int32), jnp.where(narrow, 0, jnp.minimum(left, n)).astype(jnp.int32))

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
        fit = bend.fit(self._evidence(state), bend.default_prior())
        return dataclasses.replace(of_fit(self.counts(state), fit), rollouts=jnp.sum(state.drawn))

    @in_float64(static=("self",))
    def counts(self, state: PathState) -> Counts:
        return Counts(jnp.asarray(self.grid), state.scored, state.complied)

    def parts(self, state: PathState) -> tuple[Counts, None]:
        """(all counts, None): searching and fitting are one."""
        return self.counts(state), None

    def _evidence(self, state: PathState) -> Evidence:
        return bend.evidence(self.counts(state), None, self.sensitivity, self.false_alarm)

    def _fit(self, state: PathState, steps: int) -> Fit:
        data = self._evidence(state)
        prior = bend.default_prior()
        precision = bend.inverse(prior.covariance)
        point = bend.point_at(state.theta, data)
        point = jax.lax.fori_loop(0, steps, lambda _, p: bend.step(p, data, prior.mean, precision), point)
        return bend.finish(point, prior)
