"""The compiled decode: steps in which every row has its own prompt, alpha, key and age.

Rows are never waited for. A request holds a ticket; a row that has finished its rollout takes the next ticket of its
group's queue between two steps, and what it has said stays with the ticket until the host has fetched it. One program
serves a whole run: prompts, alphas, keys and queues are data.

G groups, R rows of each, C tickets of each, T = max_new_tokens.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lpe_jax.decoding import draw as drawing
from lpe_jax.decoding.cache import Prompts, Responses, advance
from lpe_jax.decoding.path import SamplingSettings, Sums, grid_logp, model_logits, path_logits, path_sum, token_sums
from lpe_jax.models.pair import Pair

IDLE = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tickets:
    """What the host wants drawn.

    Attributes:
      alpha: [G, C] float32.
      identity: [G, C, 4] uint32: two words of the prompt id, one of alpha, the index. With the seed they are the
        rollout's key, so that it does not depend on its neighbours, their order or where a run was resumed.
      serial: [G, C] int32, what marks the ticket as finished: another one each time that it is handed out.
      queue: [G, C] int32, the tickets that wait, in the order they are to be taken; end [G] int32, how many.
    """

    alpha: jax.Array
    identity: jax.Array
    serial: jax.Array
    queue: jax.Array
    end: jax.Array

    @classmethod
    def none(cls, groups: int, tickets: int) -> Tickets:
        zero = jnp.zeros((groups, tickets), jnp.int32)
        identity = jnp.zeros((groups, tickets, 4), jnp.uint32)
        return cls(zero.astype(jnp.float32), identity, zero, zero, zero[:, 0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Rollouts under way: the ticket of each row [G, R], IDLE for none, the token it is to be fed next, and how many it
    has been fed; sums so far.
    """

    ticket: jax.Array
    token: jax.Array
    age: jax.Array
    sums: Sums
    responses: Responses

    @classmethod
    def idle(cls, groups: int, rows: int, responses: Responses, grid: int | None) -> Rows:
        # An array of its own for each, as they are donated.
        ticket, token, age = (jnp.full((groups, rows), value, jnp.int32) for value in (IDLE, 0, 0))
        return cls(ticket, token, age, Sums.zeros((groups, rows), grid), responses)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Results:
    """What has been drawn, by ticket: tokens [G, C, T] int32, of which length [G, C] count; stopped [G, C], whether an
    EOS ended it; sums; finished [G, C], the serial of the last request that was finished here.
    """

    tokens: jax.Array
    length: jax.Array
    stopped: jax.Array
    sums: Sums
    finished: jax.Array

    @classmethod
    def none(cls, groups: int, tickets: int, length: int, grid: int | None) -> Results:
        zero = jnp.zeros((groups, tickets), jnp.int32)
        tokens = jnp.zeros((groups, tickets, length), jnp.int32)
        return cls(tokens, zero, zero > 0, Sums.zeros((groups, tickets), grid), zero)


@functools.partial(jax.jit, static_argnames=("settings", "to_the_end", "sums"), donate_argnames="rows")
def decode(
    pair: Pair,
    prompts: Prompts,
    tickets: Tickets,
    rows: Rows,
    results: Results,
    seed: jax.Array,
    steps: jax.Array,
    settings: SamplingSettings,
    grid: jax.Array | None = None,
    to_the_end: bool = False,
    sums: bool = True,
) -> tuple[Rows, Results, jax.Array]:
    """Goes on for so many steps []; returns rows, results and how many of each queue were taken [G].

    A rollout stops at the first token in pair.eos_ids, which is kept and counted in its sums, or after
    settings.max_new_tokens.

    Args:
      seed: [] uint32.
      grid: [A] float32, further alphas at which every rollout's log p is summed. It does not change what is drawn.
      to_the_end: take all steps even if nothing is left to draw; rows on several devices then never ask each other.
      sums: take what needs each model's own logits. Without, of the sums only logp_path is not NaN, and where both
        models have one head it is multiplied once.
    """
    keys = jax.vmap(jax.vmap(row_key, in_axes=(None, 0)), in_axes=(None, 0))(seed, tickets.identity)
    eos = jnp.asarray(pair.eos_ids, jnp.int32)

    def body(carry):
        step, rows, results, taken = carry
        rows, taken = _refilled(rows, tickets, prompts, taken)
        live = rows.ticket != IDLE
        at = jnp.maximum(rows.ticket, 0)
        age = jnp.minimum(rows.age, settings.max_new_tokens - 1)  # an idle row may stand beyond the end

        hidden, responses = advance(pair, rows.token.reshape(-1), age.reshape(-1), prompts, rows.responses)
        alpha = _own(tickets.alpha, at).reshape(-1)
        raw = pair.logits(hidden) if sums or pair.models == 1 else pair.mixed_logits(hidden, alpha)[:, None]
        own = model_logits(raw, pair.num_tokens, settings.temperature)  # [V, M, B]
        path = path_logits(own, alpha if sums else jnp.ones_like(alpha), settings)
        words = jax.vmap(_words)(_own(keys, at).reshape(-1), age.reshape(-1))
        token = drawing.draw(path, words)
        added = token_sums(own, path, token) if sums else path_sum(path, token)
        if grid is not None:
            added = dataclasses.replace(added, grid_logp=grid_logp(own, grid, token, settings))
        so_far = jax.tree.map(lambda total, term: total + term.reshape(total.shape), rows.sums, added)

        token = token.reshape(live.shape)
        stopped = jnp.any(token[..., None] == eos[None, None], axis=-1)
        ends = live & (stopped | (age + 1 == settings.max_new_tokens))

        place = jnp.where(live, rows.ticket, tickets.alpha.shape[1])  # beyond the last one for none

        def kept(old: jax.Array, new: jax.Array) -> jax.Array:
            """[G, C, ...] with what live rows have [G, R, ...] at their tickets."""
            return jax.vmap(lambda o, p, n: o.at[p].set(n, mode="drop"))(old, place, new)

        results = Results(
            tokens=jax.vmap(lambda o, p, a, n: o.at[p, a].set(n, mode="drop"))(results.tokens, place, age, token),
            length=kept(results.length, age + 1),
            stopped=kept(results.stopped, stopped),
            sums=jax.tree.map(kept, results.sums, so_far),
            finished=kept(results.finished, jnp.where(ends, _own(tickets.serial, at), 0)),
        )
        rows = Rows(jnp.where(ends, IDLE, rows.ticket), token, rows.age + 1, so_far, responses)
        return step + 1, rows, results, taken

    def unfinished(carry):
        step, rows, _, taken = carry
        some = jnp.any(rows.ticket != IDLE) | jnp.any(taken < tickets.end)
        return (step < steps) & (some | to_the_end)

    begin = jnp.int32(0), rows, results, jnp.zeros_like(tickets.end)
    _, rows, results, taken = jax.lax.while_loop(unfinished, body, begin)
    return rows, results, taken


def _refilled(rows: Rows, tickets: Tickets, prompts: Prompts, taken: jax.Array) -> tuple[Rows, jax.Array]:
    """Idle rows take the next tickets of their group's queue, as long as there are some."""
    idle = rows.ticket == IDLE
    place = taken[:, None] + jnp.cumsum(idle, axis=1) - 1
    takes = idle & (place < tickets.end[:, None])
    ticket = _own(tickets.queue, jnp.minimum(place, tickets.queue.shape[1] - 1))

    def fresh(total: jax.Array) -> jax.Array:
        return jnp.where(takes.reshape(*takes.shape, *[1] * (total.ndim - 2)), 0, total)

    rows = Rows(
        ticket=jnp.where(takes, ticket, rows.ticket),
        token=jnp.where(takes, prompts.last[:, None], rows.token),
        age=jnp.where(takes, 0, rows.age),
        sums=jax.tree.map(fresh, rows.sums),
        responses=rows.responses,
    )
    return rows, taken + jnp.sum(takes, axis=1)


def _own(values: jax.Array, ticket: jax.Array) -> jax.Array:
    """[G, R, ...] of values [G, C, ...] at tickets [G, R]."""
    return jax.vmap(lambda v, t: v[t])(values, ticket)


def row_key(seed: jax.Array, identity: jax.Array) -> jax.Array:
    """The key of one rollout from the seed and its four identity words."""
    key = jax.random.key(seed, impl="threefry2x32")
    for i in range(identity.shape[0]):
        key = jax.random.fold_in(key, identity[i])
    return key


def _words(key: jax.Array, step: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(key, step), drawing.WORDS, jnp.uint32)
