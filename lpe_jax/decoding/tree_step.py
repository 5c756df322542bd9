"""The device's part of the prefix tree: rows that each walk down a branch, one token at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.decoding import cache
from lpe_jax.decoding.cache import Prompts, Responses
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.models.pair import ORIGINAL, Pair

# Prompt and response lengths are rounded up to this many slots, so that few shapes are compiled.
_SLOTS = 16
# So many rows are moved at a time.
_MOVED = 8
# What `_load` writes and `_step` reads, on any platform.
_AXES = cache.CPU


class Evaluator:
    """M models (both, or the original alone) on rows that hold the keys and values of one prefix each.

    A row goes on with a child of its own prefix at no cost but the token's; for any other it is loaded first.

    Attributes:
      grid: [G] float64, the alphas at which log Z is computed: those given, then 1 and 0.
      vocab: how many ids can be drawn, V.
      rows: how many, B.
      entry_shape: (M, L, 2, K, H), the keys and values of one token.
    """

    def __init__(
        self,
        pair: Pair,
        prompt: Sequence[int],
        alphas: np.ndarray,
        settings: SamplingSettings,
        original_only: bool,
        rows: int,
    ):
        self.pair = pair.alone(ORIGINAL) if original_only else pair
        c = pair.config
        self.dtype = np.dtype(pair.dtype)
        self.vocab = min(pair.num_tokens, c.vocab_size)
        self.entry_shape = (self.pair.models, c.num_layers, 2, c.num_kv_heads, c.head_dim)
        self.entry_bytes = int(np.prod(self.entry_shape)) * self.dtype.itemsize
        self.temperature, self.rows = settings.temperature, rows
        self.grid = np.concatenate([alphas, [1.0, 0.0]])  # [G]
        # The last token of the prompt is the root's; the others are seen by every row.
        self.last = prompt[-1]
        padded = np.zeros(_rounded(len(prompt)), np.int32)
        padded[: len(prompt)] = prompt
        computed = cache.prefill(self.pair, padded)
        empty = cache.empty_prompts(self.pair, 1, len(padded), _AXES)
        self.prompt = cache.place(empty, computed, np.int32(0), np.int32(len(prompt) - 1), np.int32(self.last))
        self.responses = cache.empty_responses(self.pair, rows, _rounded(settings.max_new_tokens), _AXES)

    def load(self, rows: np.ndarray, pool: np.ndarray, ancestors: np.ndarray) -> None:
        """Gives rows [n] the keys and values of other prefixes.

        Args:
          pool: [E, M, L, 2, K, H] keys and values of tokens.
          ancestors: [n, T] the entries of each prefix's tokens, the first one first; what stands right of them counts
            for nothing.
        """
        slots = self.responses.v[0].shape[3]
        ancestors = np.pad(ancestors, ((0, 0), (0, slots - ancestors.shape[1])))
        for begin in range(0, len(rows), _MOVED):
            some = slice(begin, begin + _MOVED)
            # Those there are, again and again: all parts have one shape.
            places, entries = (np.resize(x, (_MOVED, *x.shape[1:])) for x in (rows[some], ancestors[some]))
            self.responses = _load(self.responses, places.astype(np.int32), pool[entries])

    def __call__(self, token: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Feeds every row its prefix's last token.

        Args:
          token: [B] int32; the root's is not read.
          depth: [B] int32 tokens of each prefix.

        Returns:
          Own logits [M, B, V] and log Z [B, G] in float32, and the tokens' keys and values [B, M, L, 2, K, H].
        """
        own, logz, kv, self.responses = _step(
            self.pair,
            self.prompt,
            self.responses,
            np.where(depth > 0, token, self.last).astype(np.int32),
            depth.astype(np.int32),
            self.grid.astype(np.float32),
            np.float32(self.temperature),
            self.vocab,
        )
        return np.asarray(own), np.asarray(logz), np.asarray(kv)


def _rounded(slots: int) -> int:
    return -(-slots // _SLOTS) * _SLOTS


@functools.partial(jax.jit, donate_argnums=0)
def _load(responses: Responses, rows: jax.Array, past: jax.Array) -> Responses:
    """responses with past [R, W, M, L, 2, K, H] in the place of rows [R]."""
    k, v = past[:, :, :, :, 0], past[:, :, :, :, 1]  # [R, W, M, L, K, H]

    def put(old: tuple[jax.Array, ...], new: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(x.at[:, rows].set(new[i]) for i, x in enumerate(old))

    k, v = put(responses.k, k.transpose(3, 2, 0, 4, 5, 1)), put(responses.v, v.transpose(3, 2, 0, 4, 1, 5))
    return Responses(k, v, _AXES)


@functools.partial(jax.jit, donate_argnums=2, static_argnames="vocab")
def _step(
    pair: Pair,
    prompt: Prompts,
    responses: Responses,
    token: jax.Array,
    depth: jax.Array,
    grid: jax.Array,
    temperature: jax.Array,
    vocab: int,
) -> tuple[jax.Array, jax.Array, jax.Array, Responses]:
    """The next-token distributions after each row's prefix.

    Args:
      token: [B] each prefix's own last token, which goes to slot depth [B] of its row.
      grid: [G] alphas for log Z.
      vocab: entries of the vocabulary that can be drawn.

    Returns:
      Logits [M, B, V] at temperature, less their maximum, so that float32 is at its finest where the probability
      is; log Z [B, G] of their mixtures; the tokens' keys and values [B, M, L, 2, K, H]; and the responses.
    """
    hidden, responses = cache.advance(pair, token, depth, prompt, responses)
    own = pair.head(hidden)[..., :vocab] / temperature
    own = own - jnp.max(own, axis=-1, keepdims=True)
    # With one model both are it, and every mixture is the model itself.
    original, variant = own[0][:, None], own[-1][:, None]
    alpha = grid[None, :, None]
    logz = jax.nn.logsumexp(alpha * original + (1 - alpha) * variant, axis=-1)

    def at_depth(x: jax.Array, axis: int) -> jax.Array:  # [M, B, K, H]
        where = depth.reshape(1, -1, 1, 1, 1)
        return jnp.take_along_axis(x, where, axis=axis).squeeze(axis)

    kv = [jnp.stack([at_depth(k, 4), at_depth(v, 3)]) for k, v in zip(responses.k, responses.v, strict=True)]
    return own, logz, jnp.stack(kv).transpose(3, 2, 0, 1, 4, 5), responses
