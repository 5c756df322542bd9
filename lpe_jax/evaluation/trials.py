"""Estimators tried on random subsets of a bank, over many repeats and budgets.

What is drawn in a repeat is a function of (seed, repeat, prompt id, alpha), so that methods with one allocation see the
same rollouts, and more repeats extend fewer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation.doubt import doubted
from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.registry import ESTIMATORS
from lpe_jax.evaluation.measures import Panel
from lpe_jax.evaluation.subsets import (
    Adaptively,
    AlongThePath,
    Drawn,
    Shares,
    pack,
    prime_at_most,
    prompt_numbers,
    rollout_order,
    totals,
)
from lpe_jax.machine import cores
from lpe_jax.types import Bank, Counts, Estimate, Sums

ADAPTIVE = (60, 100, 160, 240, 320, 440)  # rollouts per prompt of the adaptive procedure
COUNTED = (0.3, 0.4, 0.5, 0.6)  # alphas at which the plain count is tried
# Rows are padded to a multiple of this, so that a few more compliant rollouts do not compile anew.
_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """A method: an estimator on an allocation of rollouts, at several budgets.

    Attributes:
      estimator: a name in ESTIMATORS; "" is the allocation's own procedure.
      allocation: how many rollouts are drawn at each alpha.
      budgets: ascending; what they count is the allocation's to say.
      refused: whether the estimator wants the sums of refused rollouts too.
      sums: whether an estimator that can do without the sums is given them; LPE's own procedure then doubts its line.
      slow: too dear for as many repeats as the others.
    """

    name: str
    estimator: str
    allocation: AlongThePath | Adaptively | Shares
    budgets: tuple[int, ...]
    refused: bool = False
    slow: bool = False
    sums: bool = False

    @property
    def needs_sums(self) -> bool:
        return self.sums or (bool(self.estimator) and ESTIMATORS[self.estimator].needs_sums)

    @property
    def weighs(self) -> bool:
        return bool(self.estimator) and ESTIMATORS[self.estimator].weighs

    @property
    def claims_rate(self) -> bool:
        return not self.estimator or ESTIMATORS[self.estimator].claims_rate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What a method said of P prompts in R repeats at B budgets, and what that cost; NumPy, [R, B, P].

    low, high and identified are None where only ranks were wanted. passes: forward passes of one model over one token.
    """

    log10_rate: Any
    rollouts: Any
    tokens: Any
    passes: Any
    low: Any = None
    high: Any = None
    identified: Any = None

    def first(self, repeats: int) -> Outcomes:
        """The first so many repeats."""
        return jax.tree.map(lambda x: x[:repeats], self)


def make_plans(n_fit: Sequence[int], sizes: Sequence[int], lpe: LPE | None = None) -> dict[str, Plan]:
    """All methods but naive sampling, by name; every estimator of ESTIMATORS is in one.

    n_fit: LPE's budgets; the estimators not named below run on LPE's rollouts. sizes: rollouts of the others.
    """
    n_fit, sizes = tuple(sorted(n_fit)), tuple(sorted(sizes))
    path, variant = AlongThePath(lpe or LPE()), Shares((0.0,))
    plans = [
        Plan("lpe", "", path, n_fit),
        Plan("lpe doubted", "", path, n_fit, slow=True, sums=True),
        Plan("importance", "importance", variant, sizes),
        Plan("self_normalised", "self_normalised", variant, sizes, refused=True),
        Plan("defensive", "defensive", Shares((1.0, 0.0), (0.5, 0.5)), sizes),
        *(Plan(f"count at {alpha:g}", "count", Shares((alpha,)), sizes) for alpha in COUNTED),
    ]
    taken = {"naive", "lpe", *(plan.estimator for plan in plans)}
    plans = [plan for plan in plans if not plan.estimator or plan.estimator in ESTIMATORS]
    plans += [
        Plan(e.name + " of lpe's" * (e.name == "path"), e.name, path, n_fit, slow=True, sums=True)
        for e in ESTIMATORS.values()
        if e.name not in taken
    ]
    plans.append(Plan("path", "path", Adaptively(), ADAPTIVE, slow=True))
    return {plan.name: plan for plan in plans}


def run(bank: Bank, plan: Plan, *, repeats: int, seed: int, intervals: bool = False) -> Outcomes:
    """Tries one method.

    Raises:
      ValueError: the bank lacks an alpha, rollouts or log-probabilities that the plan needs; the message says which.
    """
    prime = prime_at_most(bank.complied.shape[-1])
    cells = _cells(bank, plan.allocation.alphas)
    most = max(plan.allocation.ends(plan.budgets))
    if most > prime:
        raise ValueError(
            f"{plan.name} takes {most} rollouts at one alpha, and subsets are of {prime} (the largest prime up to the "
            f"bank's {bank.complied.shape[-1]}): lower its budgets."
        )
    table = _Table.of(bank, cells, prime, sums=plan.needs_sums, weighs=plan.weighs, name=plan.name)
    with float64():
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(np.arange(repeats))
        rows = 0
        if plan.needs_sums:
            rows = int(np.max(_in_threads(_most_rows, table, keys, plan, most, prime)))
            rows = max(-(-rows // _ROWS), 1) * _ROWS
        return _in_threads(_repeats, table, keys, plan, most, prime, rows, intervals)


def run_naive(
    bank: Bank, budgets: Sequence[int], *, repeats: int, seed: int, rate: np.ndarray | None = None, intervals=False
) -> Outcomes:
    """Naive sampling: k hits of Binomial(budget, rate), as the post does it.

    rate: [P], by default that of the bank's naive rollouts. Tokens are those of the bank's mean response at alpha = 1.
    """
    if rate is None:
        rate = bank.naive_complied / np.maximum(bank.naive_scored, 1)
    n = np.asarray(budgets)[:, None]  # [B, 1]
    hits = np.stack(
        [
            np.random.default_rng([seed, number]).binomial(n[:, 0], p, (repeats, len(n)))
            for number, p in zip(prompt_numbers(bank.prompt_ids), rate, strict=True)
        ],
        axis=-1,
    )  # [R, B, P]
    n = np.broadcast_to(n, hits.shape)
    with np.errstate(divide="ignore"):
        log10_rate = np.log10(hits / n)
    tokens = n * _tokens_at_one(bank)
    bounds = {}
    if intervals:
        pairs, back = np.unique(np.stack([hits, n], axis=-1).reshape(-1, 2), axis=0, return_inverse=True)
        ends = clopper_pearson_log10(pairs[:, 0], pairs[:, 1])
        low, high = (np.asarray(end)[back].reshape(hits.shape) for end in ends)
        bounds = {"low": low, "high": high, "identified": np.ones(hits.shape, bool)}
    return Outcomes(log10_rate, n, tokens, tokens, **bounds)


def paths(bank: Bank, procedure: LPE, prompts: Sequence[int], *, seed: int) -> list[Panel]:
    """LPE's line for some prompts [indices], from one random subset, beside the truth.

    Where no truth is known, the naive rate with its interval stands for it.
    """
    allocation = AlongThePath(procedure)
    prime = prime_at_most(bank.complied.shape[-1])
    table = _Table.of(bank, _cells(bank, allocation.alphas), prime, sums=False, weighs=False, name="lpe")
    ends = allocation.ends((procedure.n_fit,))
    with float64():
        _, packed = _take(table, jax.random.fold_in(jax.random.key(seed), 0), max(ends), prime)
        state = jax.tree.map(lambda x: x[0], allocation.draw(totals(packed, ends), (procedure.n_fit,)).state)
        fitted, searched = jax.vmap(procedure.parts)(state)
        estimate, fitted = jax.device_get((jax.vmap(procedure.fit)(fitted, searched), fitted))
    low, high = clopper_pearson_log10(bank.naive_complied, bank.naive_scored)
    with np.errstate(divide="ignore", invalid="ignore"):
        naive = np.log10(bank.naive_complied / bank.naive_scored)
    known, half = np.isfinite(bank.truth), 1.96 * np.nan_to_num(bank.truth_error)
    truth = np.where(known, bank.truth, np.where(bank.naive_complied > 0, naive, np.nan))
    low, high = np.where(known, bank.truth - half, low), np.where(known, bank.truth + half, high)
    return [
        Panel(
            bank.prompt_ids[p],
            jax.tree.map(lambda x, p=p: x[p], fitted),
            estimate.used[p],
            *(float(x[p]) for x in (estimate.slope, estimate.intercept, truth, low, high)),
        )
        for p in prompts
    ]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Table:
    """A bank on the device, at the alphas of one allocation; logp and below are None unless sums are needed."""

    numbers: Any  # [P] uint32
    packed: Any  # [P, A, N] int64: scored, complied and tokens, see subsets.pack
    logp: Any = None  # [P, A, N, A] float32
    logp_original: Any = None  # [P, A, N]
    logp_variant: Any = None  # [P, A, N]
    path_score: Any = None  # [P, A, N]
    path_variance: Any = None  # [P, A, N]

    @classmethod
    def of(cls, bank: Bank, cells: np.ndarray, n: int, *, sums: bool, weighs: bool, name: str) -> _Table:
        def own(x):
            return x[:, cells, :n]

        complied = own(bank.complied & bank.scored)
        packed = pack(own(bank.scored), complied, own(bank.tokens))
        table = {"numbers": prompt_numbers(bank.prompt_ids), "packed": packed}
        if sums:
            logp = own(bank.logp)
            ends = {"logp_original": _cells(bank, (1.0,))[0], "logp_variant": _cells(bank, (0.0,))[0]}
            table |= {field: np.ascontiguousarray(logp[..., cell]) for field, cell in ends.items()}
            table["logp"] = np.ascontiguousarray(logp[..., cells])
            table |= {field: own(getattr(bank, field)) for field in ("path_score", "path_variance")}
            lacking = np.isnan(table["logp"]).any(axis=-1) | np.isnan(table["logp_original"])
            if weighs and lacking[complied].any():
                raise ValueError(
                    f"{name} weighs rollouts by log p at every alpha it draws at and at 1, which this bank lacks: "
                    "sample it with log p over the grid, or leave the method out."
                )
        with float64():
            return cls(**jax.device_put(table))


def _cells(bank: Bank, alphas: Sequence[float]) -> np.ndarray:
    """Where in the bank these alphas are."""
    gap = np.abs(np.asarray(bank.alpha, float) - np.asarray(alphas, float)[:, None])
    for alpha, least in zip(alphas, gap.min(axis=1), strict=True):
        if least > 1e-6:
            raise ValueError(f"the bank has no rollouts at alpha {alpha:g}; it has {np.round(bank.alpha, 6).tolist()}.")
    return gap.argmin(axis=1)


def _tokens_at_one(bank: Bank) -> np.ndarray:
    """[P] mean tokens of a response at alpha = 1."""
    return bank.tokens[:, _cells(bank, (1.0,))[0]].mean(axis=-1)


def _take(table: _Table, key: jax.Array, most: int, prime: int) -> tuple[jax.Array, jax.Array]:
    """A random order [P, A, most] and what stands there, packed, likewise."""
    order = rollout_order(key, table.numbers, table.packed.shape[1], most, prime)
    return order, jnp.take_along_axis(table.packed, order, axis=2, mode="promise_in_bounds")


def _draw(table: _Table, key: jax.Array, plan: Plan, most: int, prime: int) -> tuple[Drawn, jax.Array, jax.Array]:
    """What the plan draws in one repeat; the order [P, A, most]; which of it has a row at the largest budget."""
    order, packed = _take(table, key, most, prime)
    drawn = plan.allocation.draw(totals(packed, plan.allocation.ends(plan.budgets)), plan.budgets)
    wanted = packed & pack(plan.refused, not plan.refused, 0) > 0
    return drawn, order, wanted & (jnp.arange(most)[None, None] < jnp.max(drawn.drawn, axis=0)[..., None])


def _in_threads(function: Any, table: _Table, keys: jax.Array, *static: Any) -> Any:
    """function(table, keys, *static), jitted and [R, ...] in every output, the repeats divided over the cores.

    XLA runs a loop over repeats on one core, as each of its steps is small.
    """
    workers = min(cores(), len(keys)) if jax.default_backend() == "cpu" else 1
    each = -(-len(keys) // workers)
    parts = [keys[np.arange(i * each, (i + 1) * each) % len(keys)] for i in range(workers)]  # alike in shape

    def part(keys):
        with float64():  # the mode is a thread's own
            return jax.device_get(function(table, keys, *static))

    first = function(table, parts[0], *static)  # compiles for all, and runs beside the others
    with ThreadPoolExecutor(workers) as pool:
        found = [*pool.map(part, parts[1:])]
    found = [jax.device_get(first), *found]
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(keys)], *found)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _most_rows(table: _Table, keys: jax.Array, plan: Plan, most: int, prime: int) -> jax.Array:
    """How many rows the prompt with the most needs; [R]."""

    def one(key):
        return jnp.max(jnp.sum(_draw(table, key, plan, most, prime)[2], axis=(1, 2)))

    return jax.lax.map(one, keys)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _repeats(table: _Table, keys: jax.Array, plan: Plan, most: int, prime: int, rows: int, intervals: bool) -> Outcomes:
    """Outcomes of every repeat, one after the other; what they do not hold, XLA does not compute."""
    alphas = np.asarray(plan.allocation.alphas)
    # One model is run at either end of the path, both between; weights and scores take both anywhere.
    models = np.where(plan.needs_sums | ((alphas > 0) & (alphas < 1)), 2.0, 1.0)

    def one(key):
        drawn, order, wanted = _draw(table, key, plan, most, prime)
        if not plan.estimator and not plan.sums:
            estimate = jax.vmap(jax.vmap(plan.allocation.lpe.estimate))(drawn.state)
        elif not plan.needs_sums:
            estimate = jax.vmap(ESTIMATORS[plan.estimator])(drawn.counts)
        else:
            estimate = _with_sums(table, plan, drawn, order, wanted, rows)
        tokens = drawn.counts.tokens
        bounds = {name: getattr(estimate, name) for name in ("low", "high", "identified")} if intervals else {}
        return Outcomes(
            estimate.log10_rate,
            jnp.sum(drawn.drawn, axis=-1),
            jnp.sum(tokens, axis=-1),
            jnp.sum(tokens * models[None, None], axis=-1),
            **bounds,
        )

    return jax.lax.map(one, keys)


def _with_sums(table: _Table, plan: Plan, drawn: Drawn, order: jax.Array, wanted: jax.Array, rows: int) -> Estimate:
    """Estimates [B, P] from counts and the rows marked in `wanted` [P, A, m], packed to `rows` of them.

    The rows of the largest budget serve all: a smaller one counts those it has drawn, and what an estimator computes
    of rows alone, vmap computes once.
    """
    prompts, cells, most = wanted.shape
    reached = jnp.cumsum(wanted.reshape(prompts, -1), axis=1, dtype=jnp.int32)
    place = jax.vmap(lambda x: jnp.searchsorted(x, jnp.arange(1, rows + 1, dtype=jnp.int32)))(reached)  # [P, rows]
    real = place < cells * most
    place = jnp.where(real, place, 0)
    cell, position = place // most, place % most
    rollout = jnp.take_along_axis(order.reshape(prompts, -1), place, axis=1)
    prompt = jnp.arange(prompts)[:, None]

    def row(x):
        return x.at[prompt, cell, rollout].get(mode="promise_in_bounds")

    sums = Sums(
        cell=cell,
        count=None,
        complied=row(table.packed) & pack(0, 1, 0) > 0,
        **{f: row(getattr(table, f)) for f in ("logp", "logp_original", "logp_variant", "path_score", "path_variance")},
    )
    has = jax.vmap(lambda drawn: jnp.take_along_axis(drawn, cell, axis=1))(drawn.drawn)  # [B, P, rows]
    count = (real[None] & (position[None] < has)).astype(jnp.float64)

    def at(counts: Counts, state: Any, count: jax.Array) -> Estimate:
        own = dataclasses.replace(sums, count=count)
        if plan.estimator:
            return ESTIMATORS[plan.estimator](counts, own)
        lpe = plan.allocation.lpe
        return jax.vmap(lambda state, own: doubted(lpe.estimate(state), lpe.parts(state)[0], own))(state, own)

    return jax.vmap(at)(drawn.counts, drawn.state, count)
