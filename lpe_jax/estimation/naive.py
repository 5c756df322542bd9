"""Naive sampling: roll the original n times and count."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.procedure import Draw
from lpe_jax.estimation.result import make_estimate
from lpe_jax.types import Counts, Estimate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NaiveState:
    """What has been drawn and judged so far."""

    drawn: Any  # [1] int32
    scored: Any  # [1] int32
    complied: Any  # [1] int32


@dataclasses.dataclass(frozen=True)
class Naive:
    """`n` rollouts of the original, or at another alpha; the rate is the share of scored ones that complied.

    The interval is Clopper–Pearson's. Without a hit the rate and its lower end are -inf in log10 and the upper end is
    finite; without a scored rollout the rate is NaN and the interval all of [0, 1].
    """

    GROWS: ClassVar = ("n",)

    n: int
    alpha: float = 1.0

    def __post_init__(self):
        if self.n < 1:
            raise ValueError(f"n must be at least 1, and is {self.n}.")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be finite, and is {self.alpha}.")

    @property
    def grid(self) -> np.ndarray:
        return np.array([self.alpha])

    @property
    def most_per_cell(self) -> int:
        return self.n

    @property
    def most_rollouts(self) -> int:
        return self.n

    @property
    def fixed(self) -> bool:
        return True

    def init(self) -> NaiveState:
        return NaiveState(*(jnp.zeros(1, jnp.int32) for _ in range(3)))

    def next(self, state: NaiveState) -> Draw:
        n = jnp.where(state.drawn[0] == 0, self.n, 0)
        return Draw(jnp.zeros_like(n), n)

    def update(self, state: NaiveState, draw: Draw, scored: jax.Array, complied: jax.Array) -> NaiveState:
        return NaiveState(
            state.drawn + jnp.asarray(draw.n, jnp.int32),
            state.scored + jnp.asarray(scored, jnp.int32),
            state.complied + jnp.asarray(complied, jnp.int32),
        )

    @in_float64(static=("self",))
    def estimate(self, state: NaiveState) -> Estimate:
        scored, complied = (jnp.asarray(count[0], float) for count in (state.scored, state.complied))
        low, high = clopper_pearson_log10(complied, scored)
        return make_estimate(
            self.counts(state),
            jnp.log10(complied / scored),
            low,
            high,
            used=state.scored > 0,
            rollouts=jnp.sum(state.drawn),
        )

    @in_float64(static=("self",))
    def counts(self, state: NaiveState) -> Counts:
        return Counts(jnp.asarray(self.grid), state.scored, state.complied)

    def parts(self, state: NaiveState) -> tuple[Counts, None]:
        """(all counts, None): there is no search."""
        return self.counts(state), None
