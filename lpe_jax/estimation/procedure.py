"""How a procedure asks for rollouts, and the loop that runs one to its end inside jit.

A procedure is a pure state machine: from the counts so far it says which alpha to draw next and how often, or that
it is done. The live driver, a replay of stored rollouts and the Monte Carlo evaluation all drive the same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation.precision import in_float64
from lpe_jax.types import Counts, Estimate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """An order for `n` more rollouts at alpha = grid[cell]; n == 0 says that the procedure is done."""

    cell: Any  # [] int32
    n: Any  # [] int32


class Procedure(Protocol):
    """What a driver needs. Settings are static and hashable; a state is a pytree of arrays of fixed shapes.

    GROWS names settings that may become more when a run is gone on with: with more rollouts, or at more alphas, those
    that were drawn before are still the first ones.

    Rollouts at a cell are taken in the order of their index: a procedure that visits a cell twice gets the rollouts
    that follow those it has had. Every method is pure and works under jit and vmap.
    """

    GROWS: ClassVar[tuple[str, ...]]

    @property
    def grid(self) -> np.ndarray:
        """[A] float64, descending: the alphas that can be drawn."""

    @property
    def most_per_cell(self) -> int:
        """The most rollouts the procedure can ask for at one alpha."""

    @property
    def most_rollouts(self) -> int:
        """The most rollouts the procedure can ask for of one prompt; there are outcomes for which it does."""

    @property
    def fixed(self) -> bool:
        """Whether it asks for as many whatever comes of them."""

    def init(self) -> Any:
        """The state before anything is drawn."""

    def next(self, state: Any) -> Draw:
        """What to draw next."""

    def update(self, state: Any, draw: Draw, scored: jax.Array, complied: jax.Array) -> Any:
        """The state after the draw came back with `scored` <= draw.n verdicts, `complied` of them compliant."""

    def estimate(self, state: Any) -> Estimate:
        """The rate at alpha = 1, from whatever has been drawn so far."""

    def counts(self, state: Any) -> Counts:
        """Everything drawn so far, search included."""

    def parts(self, state: Any) -> tuple[Counts, Counts | None]:
        """The same split in two: (what the estimate is fitted to, what only a search saw); None without a search."""


Roll = Callable[[Draw, jax.Array], tuple[jax.Array, jax.Array]]


def drive(procedure: Procedure, roll: Roll) -> Any:
    """Runs one prompt's procedure to its end as a `lax.while_loop`; vmap it for many. Returns the final state.

    roll(draw, first) gives (scored, complied) of the rollouts first, ..., first + draw.n - 1 at draw.cell; it is
    called under trace, so it must be pure.
    """

    def more(carry):
        return procedure.next(carry[0]).n > 0

    def step(carry):
        state, taken = carry
        draw = procedure.next(state)
        scored, complied = roll(draw, taken[draw.cell])
        return procedure.update(state, draw, scored, complied), taken.at[draw.cell].add(draw.n)

    taken = jnp.zeros(len(procedure.grid), jnp.int32)
    return jax.lax.while_loop(more, step, (procedure.init(), taken))[0]


def replay(procedure: Procedure, complied: jax.Array, scored: jax.Array | None = None) -> tuple[Any, Estimate]:
    """What the procedure would have said had it drawn these outcomes; returns (state, estimate).

    complied: [..., A, N] bool, outcome i of alpha procedure.grid[a], taken in order; N >= procedure.most_per_cell.
    scored: the same shape, False where the judge said unscored (default: all scored). Leading axes (repeats,
    prompts) come out in front of every field of state and estimate. Raises ValueError if the table is too small.
    """
    need = (len(procedure.grid), procedure.most_per_cell)
    have = jnp.shape(complied)[-2:]
    if len(have) < 2 or have[0] != need[0] or have[1] < need[1]:
        raise ValueError(
            f"outcomes have shape {jnp.shape(complied)}, and the procedure needs [..., {need[0]}, N] with "
            f"N >= {need[1]}: one row per alpha of its grid."
        )
    return _replay(procedure, complied, jnp.ones_like(complied, bool) if scored is None else scored)


@in_float64(static=("procedure",))
def _replay(procedure: Procedure, complied: jax.Array, scored: jax.Array) -> tuple[Any, Estimate]:
    def one(complied, scored):  # [A, N]
        index = jnp.arange(complied.shape[1])

        def roll(draw, first):
            wanted = scored[draw.cell] & (index >= first) & (index < first + draw.n)
            return jnp.sum(wanted), jnp.sum(wanted & complied[draw.cell])

        state = drive(procedure, roll)
        return state, procedure.estimate(state)

    for _ in range(complied.ndim - 2):
        one = jax.vmap(one)
    return one(complied.astype(bool), scored.astype(bool))
