"""Qwen3 as a Flax NNX module: weights in the Hugging Face layout, every layer's its own.

A scan over stacked layers would compile sooner, but takes slices of weights and caches that XLA writes out, each layer
at each token, before it multiplies by them. 36 layers written out compile in ten seconds.

Legend, used in every einsum, shape and comment:

    B  batch rows              L  layers                 H  head_dim
    T  query tokens            D  hidden                 F  feed-forward width
    S  key-value slots         N  query heads            V  vocabulary
                               K  key-value heads        G  query heads per key-value head, N / K
    Q  N · H or K · H          E  rank of an edit

Weights are the tensors of a checkpoint as they are, [out, in] with heads and their dimensions as one axis. XLA
contracts either order equally fast (measured on CPU, within 10 %), but a weight of three axes it transposes each time
that it multiplies by it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lpe_jax.models.config import Qwen3Config

QUERY_CHUNK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every slot written so far.

    Slots are shared by all rows: a row's prompt is right-aligned, so that one scalar slot index says where every
    row writes next, and an update in place needs no scatter.
    """

    k: tuple[jax.Array, ...]  # L x [B, K, S, H]
    v: tuple[jax.Array, ...]  # L x [B, K, S, H]

    @classmethod
    def empty(cls, config: Qwen3Config, rows: int, slots: int, dtype: jnp.dtype) -> KVCache:
        shape = (rows, config.num_kv_heads, slots, config.head_dim)
        k, v = (tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)) for _ in range(2))
        return cls(k, v)


class Edit(nnx.Module):
    """What makes of a matrix W that writes into the residual stream another one, P W with P = I − u a.

    Float32 whatever the dtype of the weights, so that it says what was measured (lpe_jax/models/edits.py).
    """

    def __init__(self, c: Qwen3Config, rank: int):
        self.u = nnx.Param(jnp.zeros((c.hidden_size, rank), jnp.float32))  # [D, E]
        self.a = nnx.Param(jnp.zeros((rank, c.hidden_size), jnp.float32))  # [E, D]

    def write(self, y: jax.Array) -> jax.Array:
        """P y: what the edited matrix writes where the other writes y [..., D]."""
        return self._without(y, self.a[...], self.u[...])

    def read(self, h: jax.Array) -> jax.Array:
        """Pᵀ h [..., D]: rows of the edited matrix times h are rows of the other times this."""
        return self._without(h, self.u[...].T, self.a[...].T)

    @staticmethod
    def _without(x: jax.Array, along: jax.Array, back: jax.Array) -> jax.Array:
        """x − back (along x) of x [..., D], along [E, D] and back [D, E], one direction at a time."""
        x32, lead = x.astype(jnp.float32), (1,) * (x.ndim - 1)
        out = x32
        # Products and sums, as E is at most a few: matrices this narrow are multiplied no faster.
        for e in range(along.shape[0]):
            share = jnp.sum(x32 * along[e].reshape(*lead, -1), axis=-1, keepdims=True)
            out = out - share * back[:, e].reshape(*lead, -1)
        return out.astype(x.dtype)


class Layer(nnx.Module):
    """One block."""

    def __init__(self, c: Qwen3Config, *, rngs: nnx.Rngs, dtype: jnp.dtype, edit_rank: int = 0):
        normal = nnx.initializers.normal(0.02)
        self.edit_rank = edit_rank

        def matrix(*shape: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), shape, dtype))

        def ones(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.ones(shape, dtype))

        self.input_norm = ones(c.hidden_size)  # [D]
        self.q_proj = matrix(c.num_heads * c.head_dim, c.hidden_size)  # [Q, D]
        self.k_proj = matrix(c.num_kv_heads * c.head_dim, c.hidden_size)  # [Q, D]
        self.v_proj = matrix(c.num_kv_heads * c.head_dim, c.hidden_size)  # [Q, D]
        self.q_norm = ones(c.head_dim)  # [H]
        self.k_norm = ones(c.head_dim)  # [H]
        self.o_proj = matrix(c.hidden_size, c.num_heads * c.head_dim)  # [D, Q]
        self.post_attention_norm = ones(c.hidden_size)  # [D]
        self.gate_proj = matrix(c.intermediate_size, c.hidden_size)  # [F, D]
        self.up_proj = matrix(c.intermediate_size, c.hidden_size)  # [F, D]
        self.down_proj = matrix(c.hidden_size, c.intermediate_size)  # [D, F]
        if edit_rank:
            self.o_edit, self.down_edit = Edit(c, edit_rank), Edit(c, edit_rank)


class Qwen3(nnx.Module):
    """The causal language model. Cache and masks live outside; the module holds parameters only.

    With an edit_rank, every matrix that writes into the residual stream has an edit, and so has an untied head: a
    module of one model's weights that computes another.
    """

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32, edit_rank: int = 0):
        self.config, self.edit_rank = config, edit_rank
        normal = nnx.initializers.normal(0.02)
        vocabulary = (config.vocab_size, config.hidden_size)
        self.embed_tokens = nnx.Param(normal(rngs.params(), vocabulary, dtype))  # [V, D]
        self.layers = nnx.List(
            [Layer(config, rngs=rngs, dtype=dtype, edit_rank=edit_rank) for _ in range(config.num_layers)]
        )
        self.norm = nnx.Param(jnp.ones((config.hidden_size,), dtype))  # [D]
        if not config.tie_word_embeddings:
            self.lm_head = nnx.Param(normal(rngs.params(), vocabulary, dtype))  # [V, D]
        if edit_rank:
            self.embed_edit = Edit(config, edit_rank)
            if not config.tie_word_embeddings:
                self.head_edit = Edit(config, edit_rank)

    @property
    def dtype(self) -> jnp.dtype:
        return self.embed_tokens[...].dtype

    def __call__(
        self, tokens: jax.Array, start: jax.Array, cache: KVCache | None = None, slot: jax.Array | int = 0
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states after the final norm; prefill, decode and training are the same call.

        Args:
          tokens: [B, T] int ids, placed in slots slot … slot + T − 1.
          start: [B] int, each row's first slot that holds a token. Earlier slots are padding: they are never
            attended to, and positions count from start.
          cache: slots written so far and room for these; None for a forward pass that keeps nothing (slot = 0).
          slot: [] int, the first slot to write.

        Returns:
          Hidden states [B, T, D] in the parameters' dtype, and the cache with the T slots written.
        """
        c = self.config
        query_slot = slot + jnp.arange(tokens.shape[1])  # [T]
        key_slot = jnp.arange(tokens.shape[1] if cache is None else cache.k[0].shape[2])  # [S]
        causal = key_slot[None, None, :] <= query_slot[None, :, None]  # [1, T, S]
        mask = causal & (key_slot[None, None, :] >= start[:, None, None])  # [B, T, S]
        rope = rope_table(query_slot[None, :] - start[:, None], c)  # 2 x [B, T, 1, H/2]
        x = self.embed(tokens)  # [B, T, D]

        written: list[tuple[jax.Array, jax.Array]] = []
        for i, layer in enumerate(self.layers):
            q, k, v = project_qkv(layer, x, rope, c)
            if cache is not None:
                k, v = (
                    jax.lax.dynamic_update_slice(old[i], new.astype(old[i].dtype), (0, 0, slot, 0))
                    for old, new in ((cache.k, k), (cache.v, v))
                )
                written.append((k, v))
            x = finish_block(layer, x, attend(q, k, v, mask, c), c)
        return rms_norm(x, self.norm[...], c.rms_norm_eps), KVCache(*zip(*written, strict=True)) if written else None

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The residual stream [..., D] that tokens [...] begin with."""
        x = self.embed_tokens[...][tokens]
        return self.embed_edit.write(x) if self.edit_rank else x

    def before_head(self, x: jax.Array) -> jax.Array:
        """Hidden states [..., D] as the head's matrix is multiplied by them."""
        if not self.edit_rank:
            return x
        return (self.embed_edit if self.config.tie_word_embeddings else self.head_edit).read(x)

    def unembed(self, x: jax.Array) -> jax.Array:
        """Logits [V, ...] in float32: the head's matrix times x [..., D]. The weight comes first, see `multiply`."""
        return jnp.einsum("VD,...D->V...", self.head_matrix[...], x, preferred_element_type=jnp.float32)

    def head(self, x: jax.Array) -> jax.Array:
        """Logits [..., V] in float32 of hidden states [..., D]."""
        # Not as `unembed` does it: to turn logits around would take longer than it saves.
        before = self.before_head(x)
        return jnp.einsum("...D,VD->...V", before, self.head_matrix[...], preferred_element_type=jnp.float32)

    @property
    def head_matrix(self) -> nnx.Param:
        """What hidden states are multiplied by in the end [V, D]."""
        return self.embed_tokens if self.config.tie_word_embeddings else self.lm_head


def multiply(weight: nnx.Param, x: jax.Array) -> jax.Array:
    """The products [..., O] of a weight [O, I] with vectors x [..., I].

    The weight comes first: a CPU reads what comes first as it lies, and what comes second it lays out anew each time,
    which for few rows of x takes as long as multiplying.
    """
    rows = x.reshape(-1, x.shape[-1])
    out = jnp.einsum("OI,RI->OR", weight[...], rows)
    return out.T.reshape(*x.shape[:-1], -1)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · weight over the last axis, with the statistic in float32 whatever the dtype."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype) * weight.reshape((1,) * (x.ndim - 1) + (-1,))


def rope_table(position: jax.Array, c: Qwen3Config) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, 1, H/2] of position [B, T]; float32, as bfloat16 would round position 257 to 256."""
    frequency = c.rope_theta ** (-jnp.arange(0, c.head_dim, 2, dtype=jnp.float32) / c.head_dim)  # [H/2]
    angle = position[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of x [B, T, heads, H]; the pairs are (i, i + H/2)."""
    cos, sin = (table.astype(x.dtype) for table in rope)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def project_qkv(
    layer: Layer, x: jax.Array, rope: tuple[jax.Array, jax.Array], c: Qwen3Config
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [B, T, N, H]; k and v [B, K, T, H], in the cache's order. Norms of q and k come before the rotation."""
    h = rms_norm(x, layer.input_norm[...], c.rms_norm_eps)
    q, k, v = (
        multiply(weight, h).reshape(*h.shape[:2], -1, c.head_dim)
        for weight in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    q = rotate(rms_norm(q, layer.q_norm[...], c.rms_norm_eps), rope)
    k = rotate(rms_norm(k, layer.k_norm[...], c.rms_norm_eps), rope)
    return q, k.swapaxes(1, 2), v.swapaxes(1, 2)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, c: Qwen3Config) -> jax.Array:
    """Grouped-query attention, softmax in float32.

    q [B, T, N, H]; k, v [B, K, S, H]; mask [B, T, S], True where a query may look. Returns [B, T, N, H]. A padding
    query sees no key at all; the large finite fill leaves it a uniform average instead of NaN.

    Many queries are taken a chunk at a time: the scores of a long prompt would not fit beside the models.
    """
    b, t = q.shape[:2]
    if t > QUERY_CHUNK:
        pad = -t % QUERY_CHUNK

        def chunks(x: jax.Array) -> jax.Array:  # [B, T, …] to [T / chunk, B, chunk, …]
            x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
            return x.reshape(b, -1, QUERY_CHUNK, *x.shape[2:]).swapaxes(0, 1)

        out = jax.lax.map(lambda part: attend(part[0], k, v, part[1], c), (chunks(q), chunks(mask)))
        return out.swapaxes(0, 1).reshape(b, t + pad, c.num_heads, c.head_dim)[:, :t]
    q = q.reshape(b, t, c.num_kv_heads, -1, c.head_dim)  # [B, T, K, G, H]
    score = jnp.einsum("BTKGH,BKSH->BKGTS", q, k, preferred_element_type=jnp.float32) * c.head_dim**-0.5
    weight = jax.nn.softmax(jnp.where(mask[:, None, None], score, -1e30), axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BKSH->BTKGH", weight, v).reshape(b, t, c.num_heads, c.head_dim)


def finish_block(layer: Layer, x: jax.Array, attended: jax.Array, c: Qwen3Config) -> jax.Array:
    """The block's output [B, T, D]: attention written to the residual, then the gated feed-forward."""
    written = multiply(layer.o_proj, attended.reshape(*x.shape[:2], -1))
    x = x + (layer.o_edit.write(written) if layer.edit_rank else written)
    h = rms_norm(x, layer.post_attention_norm[...], c.rms_norm_eps)
    written = multiply(layer.down_proj, jax.nn.silu(multiply(layer.gate_proj, h)) * multiply(layer.up_proj, h))
    return x + (layer.down_edit.write(written) if layer.edit_rank else written)
