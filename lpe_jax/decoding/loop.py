"""The compiled decode: a batch in which every row has its own prompt, alpha and key."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lpe_jax.decoding import draw as drawing
from lpe_jax.decoding.path import SamplingSettings, Sums, grid_logp, model_logits, path_logits, token_sums
from lpe_jax.models.pair import Pair
from lpe_jax.models.qwen3 import KVCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The rows of one decode.

    Attributes:
      prompt: [B, P] int32, right-aligned; what stands left of a prompt is never read.
      start: [B] int32, the slot of each prompt's first token.
      alpha: [B] float32.
      identity: [B, 4] uint32: two words of the prompt id, one of alpha, the index. With the seed they are the row's
        key, so that a rollout does not depend on its neighbours, their order or where a run was resumed.
      wanted: [B] bool; the rest is padding up to the batch size.
    """

    prompt: jax.Array
    start: jax.Array
    alpha: jax.Array
    identity: jax.Array
    wanted: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoded:
    """tokens [B, T] int32, the first length [B] of which count; stopped [B]: whether an EOS ended the row."""

    tokens: jax.Array
    length: jax.Array
    stopped: jax.Array
    sums: Sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    step: jax.Array  # []
    logits: jax.Array  # [2, B, V] of the next token
    cache: KVCache
    running: jax.Array  # [B] bool
    decoded: Decoded


@functools.partial(jax.jit, static_argnames="settings")
def decode(
    pair: Pair, batch: Batch, seed: jax.Array, settings: SamplingSettings, grid: jax.Array | None = None
) -> Decoded:
    """Draws one rollout per row. One compiled program serves any alphas, prompts, seeds and keys of one shape.

    Every row stops at the first token in pair.eos_ids, which is kept and counted in its sums, or after
    settings.max_new_tokens.

    Args:
      seed: [] uint32.
      grid: [G] float32, further alphas at which every row's log p is summed. It does not change what is drawn.
    """
    rows, slots = batch.prompt.shape
    keys = jax.vmap(row_key, in_axes=(None, 0))(seed, batch.identity)
    eos = jnp.asarray(pair.eos_ids, jnp.int32)
    hidden, cache = pair.forward(
        batch.prompt, batch.start, pair.empty_cache(rows, slots + settings.max_new_tokens), jnp.int32(0)
    )

    def body(state: _State) -> _State:
        own = model_logits(state.logits, pair.num_tokens, settings.temperature)
        path = path_logits(own, batch.alpha, settings)
        words = jax.vmap(lambda key: _words(key, state.step))(keys)
        token = drawing.draw(path, words)
        done = state.decoded
        added = token_sums(own, path, token)
        if grid is not None:
            added = dataclasses.replace(added, grid_logp=grid_logp(own, grid, token, settings))

        def add(total: jax.Array, term: jax.Array) -> jax.Array:
            return total + jnp.where(state.running.reshape(-1, *[1] * (term.ndim - 1)), term, 0)

        sums = jax.tree.map(add, done.sums, added)
        # Rows that have stopped go on being computed, as the shape is fixed; they write token 0 past their end.
        token = jnp.where(state.running, token, 0)
        stopped_now = state.running & jnp.any(token[:, None] == eos[None, :], axis=-1)
        decoded = Decoded(
            tokens=jax.lax.dynamic_update_slice(done.tokens, token[:, None], (0, state.step)),
            length=done.length + state.running,
            stopped=done.stopped | stopped_now,
            sums=sums,
        )
        hidden, cache = pair.forward(token[:, None], batch.start, state.cache, slots + state.step)
        return _State(state.step + 1, pair.head(hidden[:, :, -1]), cache, state.running & ~stopped_now, decoded)

    def unfinished(state: _State) -> jax.Array:
        return (state.step < settings.max_new_tokens) & jnp.any(state.running)

    nothing = Decoded(
        tokens=jnp.zeros((rows, settings.max_new_tokens), jnp.int32),
        length=jnp.zeros(rows, jnp.int32),
        stopped=jnp.zeros(rows, bool),
        sums=Sums.zeros(rows, None if grid is None else len(grid)),
    )
    first = _State(jnp.int32(0), pair.head(hidden[:, :, -1]), cache, batch.wanted, nothing)
    return jax.lax.while_loop(unfinished, body, first).decoded


def row_key(seed: jax.Array, identity: jax.Array) -> jax.Array:
    """The key of one rollout from the seed and its four identity words."""
    key = jax.random.key(seed, impl="threefry2x32")
    for i in range(identity.shape[0]):
        key = jax.random.fold_in(key, identity[i])
    return key


def _words(key: jax.Array, step: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(key, step), drawing.WORDS, jnp.uint32)
