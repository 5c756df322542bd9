"""Keys and values of prompts, kept once for all rows that share them, and of what each row has said since.

Legend as in models/qwen3.py, and

    M  models, 2            R  rows of a group, all of one prompt        P  slots of a prompt
    G  groups               B  rows, G · R                               W  slots of a response

A prompt is computed once, without its last token: that is what a row is fed first. So a row starts without any logits
of its own, whatever alpha it is at, and takes its place in a batch between two steps.

A row's slots are its own, the first one its first token, wherever the batch stands. A ring with one place to write for
all rows would need no scatter, but sums over its slots would round by when a row began, and a rollout would depend on
its neighbours.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lpe_jax.models.pair import Pair
from lpe_jax.models.qwen3 import KVCache, Qwen3, finish_block, project_qkv, rms_norm, rope_table


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompt of each group.

    Attributes:
      k, v: [M, L, G, K, P, H]; of which the first seen slots count.
      seen: [G] int32, tokens before the last.
      last: [G] int32, the last token.
    """

    k: jax.Array
    v: jax.Array
    seen: jax.Array
    last: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Responses:
    """k, v: [M, L, B, K, W, H], what each row has been fed since its prompt was computed."""

    k: jax.Array
    v: jax.Array


def empty_prompts(pair: Pair, groups: int, slots: int) -> Prompts:
    """No prompts yet."""
    cache = pair.empty_cache(groups, slots)
    return Prompts(cache.k, cache.v, jnp.zeros(groups, jnp.int32), jnp.zeros(groups, jnp.int32))


def empty_responses(pair: Pair, rows: int, slots: int) -> Responses:
    """Nothing said yet."""
    cache = pair.empty_cache(rows, slots)
    return Responses(cache.k, cache.v)


@jax.jit
def prefill(pair: Pair, tokens: jax.Array) -> KVCache:
    """k, v [M, L, 1, K, P, H] of a prompt's tokens [P], whatever stands right of those that count."""
    return pair.forward(tokens[None], jnp.zeros(1, jnp.int32), pair.empty_cache(1, len(tokens)), 0)[1]


@functools.partial(jax.jit, donate_argnums=0)
def place(prompts: Prompts, kv: KVCache, group: jax.Array, seen: jax.Array, last: jax.Array) -> Prompts:
    """Gives a group [] the prompt that `prefill` computed; what stands right of it counts for nothing and is 0."""
    counts = (jnp.arange(kv.k.shape[4]) < seen)[None, None, None, None, :, None]
    kv = KVCache(*(jnp.where(counts, x, 0) for x in (kv.k, kv.v)))
    k, v = (
        jax.lax.dynamic_update_slice_in_dim(old, new, group, axis=2)
        for old, new in ((prompts.k, kv.k), (prompts.v, kv.v))
    )
    return Prompts(k, v, prompts.seen.at[group].set(seen), prompts.last.at[group].set(last))


@functools.partial(jax.jit, donate_argnums=0)
def copy(prompts: Prompts, source: jax.Array, group: jax.Array) -> Prompts:
    """Gives a group [] the prompt of another."""
    kv = KVCache(*(jax.lax.dynamic_slice_in_dim(x, source, 1, axis=2) for x in (prompts.k, prompts.v)))
    return place(prompts, kv, group, prompts.seen[source], prompts.last[source])


def advance(
    pair: Pair, token: jax.Array, age: jax.Array, prompts: Prompts, responses: Responses
) -> tuple[jax.Array, Responses]:
    """Feeds every row one token.

    Args:
      token: [B] int32.
      age: [B] int32, how many tokens the row has been fed before.

    Returns:
      Hidden states [M, B, D] after the final norm, and the responses with the token's slots written.
    """

    def one(model: Qwen3, k_prompt, v_prompt, k, v):
        hidden, k, v = _advance(model, token, age, prompts.seen, (k_prompt, v_prompt), (k, v))
        return hidden, Responses(k, v)

    return pair.each(one, prompts.k, prompts.v, responses.k, responses.v)


def _advance(model: Qwen3, token, age, seen, of_prompts, of_responses) -> tuple[jax.Array, jax.Array, jax.Array]:
    """advance of one model: keys and values [L, G, K, P, H] and [L, B, K, W, H]."""
    c = model.config
    position = jnp.repeat(seen, len(token) // len(seen)) + age
    rope = rope_table(position[:, None], c)
    in_prompt = jnp.arange(of_prompts[0].shape[3])[None, :] < seen[:, None]  # [G, P]
    in_response = jnp.arange(of_responses[0].shape[3])[None, :] <= age[:, None]  # [B, W]

    def block(carry, inputs):
        x, k_all, v_all = carry
        layer, index, k_prompt, v_prompt = inputs
        q, k, v = project_qkv(layer, x, rope, c)
        k_all, v_all = (_write(old, new[:, :, 0], index, age) for old, new in ((k_all, k), (v_all, v)))
        k, v = (jax.lax.dynamic_index_in_dim(a, index, keepdims=False) for a in (k_all, v_all))
        attended = attend(q[:, 0], (k_prompt, v_prompt, in_prompt), (k, v, in_response), c.head_dim)
        return (finish_block(layer, x, attended[:, None], c), k_all, v_all), None

    x = model.embed_tokens[...][token[:, None]]  # [B, 1, D]
    inputs = (model.layers, jnp.arange(c.num_layers), *of_prompts)
    (x, k, v), _ = jax.lax.scan(block, (x, *of_responses), inputs)
    return rms_norm(x, model.norm[...], c.rms_norm_eps)[:, 0], k, v


def _write(cache: jax.Array, new: jax.Array, layer: jax.Array, age: jax.Array) -> jax.Array:
    """cache [L, B, K, W, H] with new [B, K, H] at one layer [] and each row's own slot [B].

    Written out, as an index array over rows would make devices that share the rows gather them from each other.
    """
    where = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2),
        inserted_window_dims=(0, 3),
        scatter_dims_to_operand_dims=(0, 3),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    indices = jnp.stack([jnp.broadcast_to(layer, age.shape), age], axis=1)
    return jax.lax.scatter(
        cache, indices, new.astype(cache.dtype), where, unique_indices=True, mode="promise_in_bounds"
    )


def attend(q: jax.Array, of_prompts: tuple, of_responses: tuple, head_dim: int) -> jax.Array:
    """Attention of one query per row over its group's prompt and its own response, as one softmax in float32.

    Args:
      q: [B, N, H].
      of_prompts: keys and values [G, K, P, H], and which slots count [G, P].
      of_responses: keys and values [B, K, W, H], and which slots count [B, W]; at least one of each row.

    Returns:
      [B, N, H].
    """
    (k_prompt, v_prompt, in_prompt), (k, v, in_response) = of_prompts, of_responses
    groups, heads = k_prompt.shape[:2]
    rows, width = len(q) // groups, q.shape[1] // heads
    q = q.reshape(groups, rows, heads, width, head_dim)  # [G, R, K, N / K, H]
    f32, scale = jnp.float32, head_dim**-0.5

    to_prompt = jnp.einsum("GRKNH,GKPH->GKRNP", q, k_prompt, preferred_element_type=f32) * scale
    to_prompt = jnp.where(in_prompt[:, None, None, None], to_prompt, -1e30)
    own = q.reshape(-1, heads, width, head_dim)  # [B, K, N / K, H]
    to_response = jnp.einsum("BKNH,BKWH->BKNW", own, k, preferred_element_type=f32) * scale
    to_response = jnp.where(in_response[:, None, None], to_response, -1e30)

    # [G, K, R, ...] and [B, K, ...] are one softmax.
    top_response = jnp.max(to_response, axis=-1).reshape(groups, rows, heads, width).swapaxes(1, 2)
    top = jnp.maximum(jnp.max(to_prompt, axis=-1), top_response)  # [G, K, R, N / K]
    of_rows = top.swapaxes(1, 2).reshape(-1, heads, width)  # [B, K, N / K]
    weight_prompt = jnp.exp(to_prompt - top[..., None])
    weight_response = jnp.exp(to_response - of_rows[..., None])
    total = jnp.sum(weight_prompt, axis=-1).swapaxes(1, 2).reshape(of_rows.shape) + jnp.sum(weight_response, axis=-1)
    from_prompt = jnp.einsum("GKRNP,GKPH->GRKNH", weight_prompt.astype(v.dtype), v_prompt, preferred_element_type=f32)
    from_response = jnp.einsum("BKNW,BKWH->BKNH", weight_response.astype(v.dtype), v, preferred_element_type=f32)
    out = (from_prompt.reshape(from_response.shape) + from_response) / total[..., None]
    return out.reshape(len(own), heads * width, head_dim).astype(v.dtype)
