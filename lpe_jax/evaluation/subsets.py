"""Random subsets of a bank's rollouts, and how many of them a method takes at each alpha.

A repeat puts the rollouts of every (prompt, alpha) in a random order; a method takes them from the front. So every
allocation is a number per cell, `drawn`, and larger budgets extend smaller ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation.adaptive import Path
from lpe_jax.estimation.lpe import DONE, LPE, LPEState
from lpe_jax.types import Counts

# The largest prime whose square is an int32.
_LARGEST = 46337


def prime_at_most(n: int) -> int:
    """The largest prime <= n (and <= 46337); ValueError below 2."""
    if n < 2:
        raise ValueError(f"a bank needs at least 2 rollouts per alpha to draw subsets of, and has {n}.")
    return next(p for p in range(min(n, _LARGEST), 1, -1) if all(p % divisor for divisor in range(2, int(p**0.5) + 1)))


def prompt_numbers(prompt_ids: Sequence[str]) -> np.ndarray:
    """[P] uint32, from the ids alone: what is drawn for a prompt does not depend on its neighbours or its place."""
    digests = (hashlib.sha256(i.encode("utf-8", "surrogatepass")).digest() for i in prompt_ids)
    return np.array([int.from_bytes(digest[:4], "little") for digest in digests], np.uint32)


def rollout_order(key: jax.Array, numbers: jax.Array, cells: int, most: int, prime: int) -> jax.Array:
    """The first `most` of `prime` rollouts in random order: [P, cells, most] int32, without repetition.

    Place j holds rollout (offset + j stride) mod prime, offset and stride random for every prompt (numbers [P]) and
    cell. As `prime` is one, any two places hold any two rollouts with equal probability, so that the number of hits
    among the first n has the hypergeometric mean and variance exactly, and no sorting is needed. Its further moments
    rest on the order in the bank being random.
    """

    def prompt(number):
        offset_key, stride_key = jax.random.split(jax.random.fold_in(key, number))
        offset = jax.random.randint(offset_key, (cells, 1), 0, prime, jnp.int32)
        stride = jax.random.randint(stride_key, (cells, 1), 1, prime, jnp.int32)
        return jax.lax.rem(offset + stride * jnp.arange(most, dtype=jnp.int32)[None], jnp.int32(prime))

    return jax.vmap(prompt)(numbers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
    """Totals over some rollouts of every cell."""

    scored: Any  # [..., A]
    complied: Any  # [..., A]
    tokens: Any  # [..., A] of all, scored or not

    def __add__(self, other: Seen) -> Seen:
        return jax.tree.map(jnp.add, self, other)

    def __sub__(self, other: Seen) -> Seen:
        return jax.tree.map(jnp.subtract, self, other)

    def where(self, cells: jax.Array) -> Seen:
        """0 outside the cells marked."""
        return jax.tree.map(lambda x: jnp.where(cells, x, 0), self)


def pack(scored: np.ndarray, complied: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Three numbers of a rollout in one int64, so that one sum adds all three up; see `totals`."""
    scored, complied, tokens = (np.asarray(x, np.int64) for x in (scored, complied, tokens))
    return scored + (complied << 16) + (tokens << 32)


def totals(packed: jax.Array, ends: Sequence[int]) -> Seen:
    """Totals over the first end rollouts, for each of E ends; packed [P, A, m] int64 by `pack`, m < 2^16.

    Returns fields [E, P, A] int32. Use inside `float64()`.
    """
    # Part by part and then along the parts: XLA sums each while it gathers it.
    edges = sorted({0, *ends})
    parts = [jnp.sum(packed[:, :, first:last], axis=2) for first, last in itertools.pairwise(edges)]
    reached = jnp.cumsum(jnp.stack([jnp.zeros_like(parts[0]), *parts]), axis=0)
    chosen = reached[np.searchsorted(edges, ends)]
    fields = chosen & 0xFFFF, (chosen >> 16) & 0xFFFF, chosen >> 32
    return Seen(*(field.astype(jnp.int32) for field in fields))


def lpe_state(lpe: LPE, search: Seen, fit: Seen, n_fit: jax.Array | int | None = None) -> LPEState:
    """The state in which LPE ends, without its loop; one prompt, fields [A].

    search, fit: what every cell of lpe.grid would yield if it were searched and fitted. n_fit: [] in the place of
    lpe.n_fit. Equal to `procedure.replay` in every field.
    """
    index = jnp.arange(len(lpe.grid), dtype=jnp.int32)
    last = index[-1]
    searchable = index >= lpe.init().cell
    rate = search.complied / jnp.maximum(search.scored, 1)
    found = searchable & (search.scored > 0) & (rate >= lpe.threshold)
    first = jnp.argmax(found).astype(jnp.int32)
    start = jnp.where(jnp.any(found), first, last if lpe.no_start == "lowest" else -1)
    searched = searchable & (index <= jnp.where(jnp.any(found), first, last))

    seen = fit + search.where(searched) if lpe.reuse_search else fit
    below = index <= start
    barren = below & (seen.scored > 0) & (seen.complied == 0)
    # The fit comes to a cell from below, unless a barren one lies between.
    fitted = below & (jnp.cumsum(barren[::-1])[::-1] == barren)
    search_drawn = jnp.where(searched, lpe.n_search, 0).astype(jnp.int32)
    fit_drawn = (lpe.n_fit if n_fit is None else n_fit) - (search_drawn if lpe.reuse_search else 0)
    search, fit = search.where(searched), fit.where(fitted)
    return LPEState(
        search_drawn=search_drawn,
        search_scored=search.scored,
        search_complied=search.complied,
        fit_drawn=jnp.where(fitted, fit_drawn, 0).astype(jnp.int32),
        fit_scored=fit.scored,
        fit_complied=fit.complied,
        phase=jnp.asarray(DONE, jnp.int32),
        cell=jnp.where(start >= 0, jnp.maximum(jnp.argmax(fitted).astype(jnp.int32) - 1, 0), last),
        start=start.astype(jnp.int32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a method has of each of P prompts at each of B budgets."""

    drawn: Any  # [B, P, A] int32: so many from the front
    counts: Counts  # [B, P, A], tokens included
    state: LPEState | None = None  # [B, P, ...] of the procedure that drew


@dataclasses.dataclass(frozen=True)
class AlongThePath:
    """LPE decides what is drawn; a budget is its n_fit."""

    lpe: LPE = dataclasses.field(default_factory=LPE)

    @property
    def alphas(self) -> tuple[float, ...]:
        return tuple(self.lpe.grid.tolist())

    def with_budget(self, n_fit: int) -> LPE:
        """The procedure at one budget."""
        return dataclasses.replace(self.lpe, n_fit=n_fit)

    def ends(self, budgets: Sequence[int]) -> tuple[int, ...]:
        """At how many rollouts totals are needed: the search, then two for each budget."""
        tops = (self.with_budget(n).most_per_cell for n in budgets)
        return (self.lpe.n_search, *tops, *budgets)

    def draw(self, seen: Seen, budgets: Sequence[int]) -> Drawn:
        """From totals at the ends [E, P, A] to what is drawn."""
        size, n_fit = len(budgets), jnp.asarray(budgets, jnp.int32)
        search, top, alone = (
            jax.tree.map(lambda x, at=at: x[at], seen) for at in (0, slice(1, 1 + size), slice(1 + size, None))
        )
        # Fit rollouts follow those of the search, where there was one.
        searchable = (jnp.arange(len(self.lpe.grid)) >= self.lpe.init().cell)[None, None]
        follow = top - jax.tree.map(lambda x: x[None], search)
        fit = follow.where(searchable) + alone.where(~searchable)
        one = jax.vmap(lambda search, fit, n: lpe_state(self.lpe, search, fit, n), in_axes=(0, 0, None))
        state = jax.vmap(one, in_axes=(None, 0, 0))(search, fit, n_fit)
        tokens = jnp.where(state.search_drawn > 0, search.tokens[None], 0)
        tokens = tokens + jnp.where(state.fit_drawn > 0, fit.tokens, 0)
        counts = Counts(
            jnp.broadcast_to(jnp.asarray(self.lpe.grid), tokens.shape),
            state.search_scored + state.fit_scored,
            state.search_complied + state.fit_complied,
            tokens,
        )
        return Drawn(state.search_drawn + state.fit_drawn, counts, state)


@dataclasses.dataclass(frozen=True)
class Adaptively:
    """The adaptive procedure decides; a budget is a number of rollouts, rounded down to whole orders.

    Smaller budgets are what a run at the largest had after so many rollouts.
    """

    path: Path = dataclasses.field(default_factory=Path)

    @property
    def alphas(self) -> tuple[float, ...]:
        return tuple(self.path.grid.tolist())

    @property
    def _unit(self) -> int:
        """Orders are multiples of this many rollouts."""
        return math.gcd(self.path.batch, self.path.n_scout)

    def ends(self, budgets: Sequence[int]) -> tuple[int, ...]:
        """At how many rollouts totals are needed: all that orders can add up to at one alpha."""
        first = len(self.path.scouts) * self.path.n_scout or self.path.batch
        if min(budgets) < first:
            raise ValueError(f"budgets must be {first} or more, what the first orders take, and one is {min(budgets)}.")
        path = dataclasses.replace(self.path, budget=max(budgets))
        return tuple(range(self._unit, path.most_per_cell + 1, self._unit))

    def draw(self, seen: Seen, budgets: Sequence[int]) -> Drawn:
        """From totals at the ends [E, P, A] to what is drawn."""
        scouted = len(self.path.scouts) * self.path.n_scout
        batches = [(budget - scouted) // self.path.batch for budget in budgets]
        path = dataclasses.replace(self.path, budget=scouted + max(batches) * self.path.batch)
        reached = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x]), seen)  # [E + 1, P, A]

        def one(reached):  # [E + 1, A] of one prompt
            def step(state, _):
                draw = path.next(state)
                had = state.drawn[draw.cell]
                has = (had + draw.n) // self._unit
                got = jax.tree.map(lambda x: x[has, draw.cell] - x[had // self._unit, draw.cell], reached)
                state = path.update(state, draw, got.scored, got.complied)
                return state, state.drawn

            return jax.lax.scan(step, path.init(), None, length=len(path.scouts) + max(batches))[1]

        drawn = jax.vmap(one, in_axes=1, out_axes=1)(reached)  # [steps, P, A]
        drawn = drawn[np.array(batches) + len(path.scouts) - 1]  # [B, P, A]

        def at(x):
            return jnp.take_along_axis(jnp.moveaxis(x, 0, -1)[None], drawn[..., None] // self._unit, axis=-1)[..., 0]

        alpha = jnp.broadcast_to(jnp.asarray(self.path.grid), drawn.shape)
        got = jax.tree.map(at, reached)
        return Drawn(drawn, Counts(alpha, got.scored, got.complied, got.tokens))


@dataclasses.dataclass(frozen=True)
class Shares:
    """A budget of N rollouts divided over fixed alphas, shares[i] of them at alphas[i]."""

    alphas: tuple[float, ...]
    shares: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        if len(self.alphas) != len(self.shares) or abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"shares must be one for each of alphas {self.alphas} and sum to 1: {self.shares}.")

    def divided(self, budget: int) -> tuple[int, ...]:
        """Rollouts at each alpha."""
        return tuple(round(share * budget) for share in self.shares)

    def ends(self, budgets: Sequence[int]) -> tuple[int, ...]:
        """At how many rollouts totals are needed: for each alpha, each budget's part."""
        return tuple(n for parts in zip(*map(self.divided, budgets), strict=True) for n in parts)

    def draw(self, seen: Seen, budgets: Sequence[int]) -> Drawn:
        """From totals at the ends [E, P, A] to what is drawn."""
        size, cells = len(budgets), len(self.alphas)

        def own(x):  # [cells x B, P, A] to [B, P, A]: each alpha's totals at its own ends
            return jnp.stack([x[a * size : (a + 1) * size, :, a] for a in range(cells)], axis=-1)

        seen = jax.tree.map(own, seen)
        drawn = jnp.asarray([self.divided(n) for n in budgets], jnp.int32)[:, None]
        alpha = jnp.broadcast_to(jnp.asarray(self.alphas), seen.scored.shape)
        counts = Counts(alpha, seen.scored, seen.complied, seen.tokens)
        return Drawn(jnp.broadcast_to(drawn, seen.scored.shape), counts)
