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

from lpe_jax.decoding.attention import Kernel, by_group, by_row
from lpe_jax.models.pair import Pair
from lpe_jax.models.qwen3 import KVCache, Qwen3, finish_block, project_qkv, rms_norm, rope_table


@dataclasses.dataclass(frozen=True)
class Axes:
    """How keys and values lie: the order of their axes, of prompts' keys after M and G, of responses' after M and B.
    Values of prompts are [M, G, K, P, H] everywhere.
    """

    prompt_k: str
    k: str
    v: str


# Where what is not summed over comes last in either product, a CPU multiplies it many at a time; a GPU copies nothing
# of responses then.
CPU, GPU = Axes("KHP", "KHW", "KWH"), Axes("KPH", "KHW", "KWH")
# A TPU would copy all of them when a decode begins and when it ends, unless what is written at a step, one slot's
# heads, lies together.
TPU = Axes("KPH", "WKH", "WKH")
# The kernel reads responses as prompts are kept.
KERNEL = Axes("KPH", "KWH", "KWH")


def axes_for(platform: str, kernel: Kernel | None = None) -> Axes:
    """What suits XLA's products on a platform, as JAX names it, or the kernel."""
    if kernel is not None:
        return KERNEL
    return {"cpu": CPU, "tpu": TPU}.get(platform, GPU)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompt of each group.

    Attributes:
      k, v: L x [M, G, ...], keys with the axes that `axes` names and values [M, G, K, P, H]; of which the first seen
        slots count.
      seen: [G] int32, tokens before the last.
      last: [G] int32, the last token.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    seen: jax.Array
    last: jax.Array
    axes: Axes = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Responses:
    """What each row has been fed since its prompt was computed.

    Attributes:
      k, v: L x [M, B, ...], then the axes that `axes` names.
      kernel: what reads them, with the axes KERNEL; None for XLA's products.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    axes: Axes = dataclasses.field(metadata={"static": True})
    kernel: Kernel | None = dataclasses.field(default=None, metadata={"static": True})


def empty_prompts(pair: Pair, groups: int, slots: int, axes: Axes) -> Prompts:
    """No prompts yet."""
    size = {"P": slots}
    k, v = _empty(pair, groups, axes.prompt_k, size), _empty(pair, groups, "KPH", size)
    return Prompts(k, v, jnp.zeros(groups, jnp.int32), jnp.zeros(groups, jnp.int32), axes)


def empty_responses(pair: Pair, rows: int, slots: int, axes: Axes, kernel: Kernel | None = None) -> Responses:
    """Nothing said yet."""
    size = {"W": slots}
    return Responses(_empty(pair, rows, axes.k, size), _empty(pair, rows, axes.v, size), axes, kernel)


def _empty(pair: Pair, rows: int, order: str, size: dict[str, int]) -> tuple[jax.Array, ...]:
    """L x [M, rows, ...] of zeros."""
    size = {"K": pair.config.num_kv_heads, "H": pair.config.head_dim} | size
    shape = (pair.models, rows, *(size[axis] for axis in order))
    return tuple(jnp.zeros(shape, pair.dtype) for _ in range(pair.config.num_layers))


@jax.jit
def prefill(pair: Pair, tokens: jax.Array) -> KVCache:
    """k, v, L x [M, 1, K, P, H], of a prompt's tokens [P], whatever stands right of those that count."""
    return pair.forward(tokens[None], jnp.zeros(1, jnp.int32), pair.empty_cache(1, len(tokens)), 0)[1]


@functools.partial(jax.jit, donate_argnums=0)
def place(prompts: Prompts, kv: KVCache, group: jax.Array, seen: jax.Array, last: jax.Array) -> Prompts:
    """Gives a group [] the prompt that `prefill` computed; what stands right of it counts for nothing and is 0."""
    counts = (jnp.arange(kv.k[0].shape[3]) < seen)[None, None, None, :, None]
    k, v = (tuple(jnp.where(counts, x, 0) for x in xs) for xs in (kv.k, kv.v))
    k = tuple(jnp.einsum(f"MGKPH->MG{prompts.axes.prompt_k}", x) for x in k)
    return _put(prompts, k, v, group, seen, last)


@functools.partial(jax.jit, donate_argnums=0)
def copy(prompts: Prompts, source: jax.Array, group: jax.Array) -> Prompts:
    """Gives a group [] the prompt of another."""
    k, v = (tuple(jax.lax.dynamic_slice_in_dim(x, source, 1, axis=1) for x in xs) for xs in (prompts.k, prompts.v))
    return _put(prompts, k, v, group, prompts.seen[source], prompts.last[source])


def _put(prompts: Prompts, k: tuple, v: tuple, group: jax.Array, seen: jax.Array, last: jax.Array) -> Prompts:
    """Gives a group [] keys and values L x [M, 1, ...] as those of prompts lie."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, group, axis=1)

    k, v = (tuple(map(put, old, new)) for old, new in ((prompts.k, k), (prompts.v, v)))
    return Prompts(k, v, prompts.seen.at[group].set(seen), prompts.last.at[group].set(last), prompts.axes)


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

    def one(model: Qwen3, of_prompts: KVCache, of_responses: Responses):
        return _advance(model, token, age, prompts.seen, of_prompts, of_responses)

    return pair.each(one, KVCache(prompts.k, prompts.v), responses)


def _advance(
    model: Qwen3, token, age, seen, of_prompts: KVCache, of_responses: Responses
) -> tuple[jax.Array, Responses]:
    """advance of one model: keys and values without M."""
    c, axes, kernel = model.config, of_responses.axes, of_responses.kernel
    slots = 1 + axes.k.index("W"), 1 + axes.v.index("W")
    position = jnp.repeat(seen, len(token) // len(seen)) + age
    rope = rope_table(position[:, None], c)
    in_prompt = jnp.arange(of_prompts.v[0].shape[2])[None, :] < seen[:, None]  # [G, P]
    in_response = jnp.arange(of_responses.v[0].shape[slots[1]])[None, :] <= age[:, None]  # [B, W]
    x = model.embed(token[:, None])  # [B, 1, D]
    written: list[tuple[jax.Array, jax.Array]] = []
    for i, layer in enumerate(model.layers):
        q, k, v = project_qkv(layer, x, rope, c)
        k = _write(of_responses.k[i], k[:, :, 0], age, slots[0])
        v = _write(of_responses.v[i], v[:, :, 0], age, slots[1])
        written.append((k, v))
        prompt = of_prompts.k[i], of_prompts.v[i]
        if kernel is None:
            attended = attend(q[:, 0], (*prompt, in_prompt), (k, v, in_response), c.head_dim, axes)
        else:
            attended = kernel.attend(q[:, 0], (*prompt, seen), (k, v, age + 1))
        x = finish_block(layer, x, attended[:, None], c)
    return rms_norm(x, model.norm[...], c.rms_norm_eps)[:, 0], Responses(*zip(*written, strict=True), axes, kernel)


def _write(cache: jax.Array, new: jax.Array, age: jax.Array, axis: int) -> jax.Array:
    """cache [B, K, ...] with new [B, K, H] at each row's own slot [B] of an axis.

    Written out, as an index array over rows would make devices that share the rows gather them from each other.
    """
    where = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2),
        inserted_window_dims=(axis,),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=(0,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(
        cache, age[:, None], new.astype(cache.dtype), where, unique_indices=True, mode="promise_in_bounds"
    )


def attend(q: jax.Array, of_prompts: tuple, of_responses: tuple, head_dim: int, axes: Axes) -> jax.Array:
    """Attention of one query per row over its group's prompt and its own response, as one softmax in float32.

    Args:
      q: [B, N, H].
      of_prompts: keys, G and then their axes, values [G, K, P, H], and which slots count [G, P].
      of_responses: keys and values, B and then their axes, and which slots count [B, W]; at least one of each row.

    Returns:
      [B, N, H].
    """
    (k_prompt, v_prompt, in_prompt), (k, v, in_response) = of_prompts, of_responses
    groups, heads = v_prompt.shape[:2]
    rows, width = len(q) // groups, q.shape[1] // heads
    f32, scale = jnp.float32, head_dim**-0.5
    own = q.reshape(-1, heads, width, head_dim)  # [B, K, N / K, H]
    # Turned around here, as XLA's own way of it for a product with several axes of rows is slower on a CPU.
    together = by_group(own, groups)  # [G, K, J, H], with J = R · N / K

    to_prompt = jnp.einsum(f"GKJH,G{axes.prompt_k}->GKJP", together, k_prompt, preferred_element_type=f32) * scale
    to_prompt = jnp.where(in_prompt[:, None, None], to_prompt, -1e30)
    to_response = jnp.einsum(f"BKNH,B{axes.k}->BKNW", own, k, preferred_element_type=f32) * scale
    to_response = jnp.where(in_response[:, None, None], to_response, -1e30)

    top = jnp.maximum(jnp.max(to_prompt, axis=-1), by_group(jnp.max(to_response, axis=-1), groups))  # [G, K, J]
    weight_prompt = jnp.exp(to_prompt - top[..., None])
    weight_response = jnp.exp(to_response - by_row(top, rows)[..., None])
    total = by_row(jnp.sum(weight_prompt, axis=-1), rows) + jnp.sum(weight_response, axis=-1)
    from_prompt = jnp.einsum("GKJP,GKPH->GKJH", weight_prompt.astype(v.dtype), v_prompt, preferred_element_type=f32)
    from_response = jnp.einsum(f"BKNW,B{axes.v}->BKNH", weight_response.astype(v.dtype), v, preferred_element_type=f32)
    out = (by_row(from_prompt, rows) + from_response) / total[..., None]
    return out.reshape(len(own), heads * width, head_dim).astype(v.dtype)
