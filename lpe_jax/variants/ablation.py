"""Directional ablation: a less safe variant made by removing one direction from what a model writes.

The direction is the difference of the mean residual activations on harmful and harmless prompts, and removing it
from every matrix that writes into the residual stream equals projecting it out of every write (Arditi et al. 2024,
"Refusal in Language Models Is Mediated by a Single Direction", arXiv 2406.11717, sections 2.3, 2.4 and 4.1). The
difference may first be made orthogonal to the harmless mean, so that zeroing it leaves harmless activations where
they were on average ("projected abliteration", J. Lai 2025; the option orthogonalize_direction of Heretic).

Layer letters and axis order are those of lpe_jax/models/qwen3.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpe_jax.models.qwen3 import Qwen3, attend, finish_block, project_qkv, rope_table


@jax.jit
def residual_stream(model: Qwen3, tokens: jax.Array, start: jax.Array) -> jax.Array:
    """The residual stream [L + 1, B, T, D]: the embeddings, then the output of every block, before the final norm.

    Args:
      tokens: [B, T] int ids.
      start: [B] int, each row's first slot that holds a token.
    """
    c = model.config
    slot = jnp.arange(tokens.shape[1])  # [T]
    causal = slot[None, None, :] <= slot[None, :, None]
    mask = causal & (slot[None, None, :] >= start[:, None, None])  # [B, T, T]
    rope = rope_table(slot[None, :] - start[:, None], c)
    stream = [model.embed_tokens[...][tokens]]
    for layer in model.layers:
        q, k, v = project_qkv(layer, stream[-1], rope, c)
        stream.append(finish_block(layer, stream[-1], attend(q, k, v, mask, c), c))
    return jnp.stack(stream)


def mean_activations(
    model: Qwen3, tokens: np.ndarray, start: np.ndarray, chosen: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Mean residual activation over the chosen positions, of every layer: [L + 1, D] float64.

    Args:
      tokens: [N, T] int ids.
      start: [N] int, each row's first slot that holds a token.
      chosen: [N, T] bool, the positions to average over.

    Raises:
      ValueError: no position is chosen.
    """
    if not chosen.any():
        raise ValueError("chosen marks no position to average over")
    total = np.zeros((model.config.num_layers + 1, model.config.hidden_size))
    for begin in range(0, len(tokens), batch_size):
        rows = slice(begin, begin + batch_size)
        stream = np.asarray(residual_stream(model, tokens[rows], start[rows]), np.float64)
        total += np.einsum("LBTD,BT->LD", stream, chosen[rows].astype(np.float64))
    return total / chosen.sum()


def difference_of_means(harmful: np.ndarray, harmless: np.ndarray, project: bool = True) -> np.ndarray:
    """Mean harmful minus mean harmless activation [D], without its part along the harmless mean if project."""
    difference = harmful - harmless
    if project:
        difference = difference - harmless * (harmless @ difference) / (harmless @ harmless)
    return difference


def joint_direction(differences: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """One unit direction [D] out of several: the weighted sum of the differences, each scaled to length one.

    Refusals may be decided at several places (the end of the prompt, the middle of a response); each place gives a
    difference of means of its own.
    """
    weights = [1.0] * len(differences) if weights is None else weights
    total = sum(w * d / np.linalg.norm(d) for w, d in zip(weights, differences, strict=True))
    return total / np.linalg.norm(total)


def writers(model: Qwen3) -> list[tuple[nnx.Param, int]]:
    """The parameters that write into the residual stream, each with its axis D."""
    return [(model.embed_tokens, 1)] + [(p, 0) for layer in model.layers for p in (layer.o_proj, layer.down_proj)]


def without(values: jax.Array, direction: jax.Array, axis: int) -> jax.Array:
    """values − r (r · values) along one axis, for a unit direction r [D]."""
    moved = jnp.moveaxis(values, axis, -1)
    along = jnp.einsum("...D,D->...", moved, direction)
    return jnp.moveaxis(moved - along[..., None] * direction.reshape((1,) * along.ndim + (-1,)), -1, axis)


def ablate(model: Qwen3, direction: np.ndarray) -> Qwen3:
    """A new module whose every write into the residual stream is orthogonal to the direction [D].

    Each of embed_tokens, o_proj and down_proj becomes W − r rᵀ W, an edit of rank one. A tied head changes with the
    embeddings: it is the same matrix. Computed in float64 and stored in the module's dtype.

    Raises:
      ValueError: the direction has the wrong length or is zero or not finite.
    """
    size = model.config.hidden_size
    r = np.asarray(direction, np.float64)
    if r.shape != (size,) or not np.isfinite(r).all() or not r.any():
        raise ValueError(f"the direction must be {size} finite numbers that are not all zero")
    r = r / np.linalg.norm(r)
    graph, params = nnx.split(model)
    edited = nnx.merge(graph, jax.tree.map(lambda a: a, params))
    for parameter, axis in writers(edited):
        w = np.moveaxis(np.asarray(parameter[...], np.float64), axis, -1)
        parameter[...] = jnp.asarray(np.moveaxis(w - (w @ r)[..., None] * r, -1, axis), parameter[...].dtype)
    return edited
