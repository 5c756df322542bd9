"""Sums of finished rollouts, computed anew by teacher forcing: a full forward pass over prompt and response.

No cache, no batch-mates, no queue, no tree: of the engine only the models and the formulas of one step are shared.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.decoding.path import SamplingSettings, Sums, model_logits, path_logits, token_sums
from lpe_jax.errors import RunError
from lpe_jax.models.pair import Pair
from lpe_jax.types import Rollout

# Nats per token by which a sum may be off, by the dtype of the weights. Halves round every product of a forward pass.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 2e-2}
_CHUNK = 32
# What is compared; each is a sum over tokens.
_COMPARED = ("logp_path", "path_score", "path_variance")


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A rollout's tokens [T] and what was recorded of it: a Sums field by name, its values [A] at some alphas [A].

    NaN stands for what was not recorded.
    """

    tokens: Sequence[int]
    alphas: np.ndarray
    sums: dict[str, np.ndarray]


def recorded(rollout: Rollout, settings: SamplingSettings) -> Recorded:
    """What a rollout of the sampler says of itself: at its own alpha and, without truncation, at 1 and 0."""
    own = {name: [getattr(rollout, name)] for name in _COMPARED}
    alphas = [rollout.alpha]
    if not settings.truncates:
        ends = {1.0: rollout.logp_original, 0.0: rollout.logp_variant}
        alphas += ends
        own["logp_path"] += ends.values()
    sums = {name: np.array(values + [np.nan] * (len(alphas) - len(values))) for name, values in own.items()}
    return Recorded(rollout.tokens, np.array(alphas), sums)


def deviation(
    pair: Pair, prompt: Sequence[int], rollouts: Sequence[Recorded], settings: SamplingSettings, slots: int
) -> float:
    """The largest difference between recorded and recomputed sums, in nats per token; 0 without rollouts.

    An average over tokens: what is wrong with one token of many shows in float32, and in halves only if it is gross.

    Args:
      pair: both models, or one alone.
      prompt: token ids.
      slots: at least the tokens of the prompt; one number for all calls, and as many alphas, compile once.
    """
    worst = 0.0
    for rollout in rollouts:
        n = len(rollout.tokens)
        tokens = np.zeros(slots + settings.max_new_tokens + _CHUNK, np.int32)
        tokens[: len(prompt) + n] = [*prompt, *rollout.tokens]
        alphas = rollout.alphas.astype(np.float32)
        # Rounding of the models' logits is stretched as the logits are.
        stretched = np.maximum(1, np.maximum(np.abs(alphas), np.abs(1 - alphas))) / min(1.0, settings.temperature)
        again = jax.device_get(_teacher_forced(pair, tokens, np.int32(len(prompt)), np.int32(n), alphas, settings))
        for name, values in rollout.sums.items():
            off = np.abs(getattr(again, name).astype(np.float64) - values) / n / stretched
            if name == "path_variance":  # in squared nats: as a share of itself where it is large
                off = off / (1 + np.abs(values) / n)
            off = off[~np.isnan(values)]
            worst = max(worst, float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0)))
    return worst


def some(n: int, most: int, seed: int) -> list[int]:
    """Which of n rollouts to compute anew, at most so many."""
    return np.random.default_rng(seed).choice(n, min(most, n), replace=False).tolist()


def check(prompt_id: str, pair: Pair, *arguments, **named) -> float:
    """`deviation` of one prompt's rollouts.

    Raises:
      RunError: it is more than rounding in the pair's dtype explains.
    """
    off, dtype = deviation(pair, *arguments, **named), jnp.dtype(pair.dtype).name
    if not off <= TOLERANCE[dtype]:
        raise RunError(
            f"rollouts of {prompt_id!r} carry sums that are off by up to {off:.2g} nats per token from those of a full "
            f"forward pass, more than {TOLERANCE[dtype]:g} for {dtype}: on this device or with these settings the "
            "engine is wrong, and nothing drawn with it is to be trusted"
        )
    return off


def words(each: int, prompts: int, off: float) -> str:
    """What a run says of its check of up to so many rollouts of each of some prompts."""
    if not prompts:
        return "verified nothing: no prompt was drawn"
    return (
        f"verified: the sums of up to {each} rollouts of each of {prompts} prompts are within {off:.1e} nats per token "
        "of those of a full forward pass"
    )


@functools.partial(jax.jit, static_argnames="settings")
def _teacher_forced(
    pair: Pair, tokens: jax.Array, prompt: jax.Array, length: jax.Array, alphas: jax.Array, settings: SamplingSettings
) -> Sums:
    """Sums [A] of a response at each alpha: tokens [S] are a prompt of so many [], then a response of so many []."""
    hidden, _ = pair.forward(tokens[None], jnp.zeros(1, jnp.int32))  # [M, 1, S, D]
    size = -(-settings.max_new_tokens // _CHUNK) * _CHUNK
    before = jax.lax.dynamic_slice_in_dim(hidden[:, 0], prompt - 1, size, axis=1)  # [M, T, D]
    token = jax.lax.dynamic_slice_in_dim(tokens, prompt, size)

    def of_chunk(chunk: tuple[jax.Array, jax.Array, jax.Array]) -> Sums:
        before, token, counts = chunk
        own = model_logits(pair.logits(before), pair.num_tokens, settings.temperature)

        def at_alpha(alpha: jax.Array) -> Sums:
            terms = token_sums(own, path_logits(own, jnp.broadcast_to(alpha, _CHUNK), settings), token)
            return jax.tree.map(lambda term: jnp.sum(jnp.where(counts, term, 0.0)), terms)

        return jax.lax.map(at_alpha, alphas)

    # A few tokens and one alpha at a time, as the logits of all need not fit.
    before = before.reshape(len(before), -1, _CHUNK, before.shape[-1]).swapaxes(0, 1)
    counts = jnp.arange(size) < length
    sums = jax.lax.map(of_chunk, (before, token.reshape(-1, _CHUNK), counts.reshape(-1, _CHUNK)))
    return jax.tree.map(lambda total: jnp.sum(total, axis=0), sums)
