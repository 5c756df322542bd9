"""The path step: two sets of logits to one next-token distribution, and the sums every rollout carries.

V is the vocabulary, M the models, B rows. The vocabulary comes first, see `Pair.logits`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lpe_jax.models.pair import ORIGINAL, VARIANT


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """What decides the distribution rollouts are drawn from; static under jit.

    The order is: mix the raw logits, divide by temperature, truncate. top_k = 0 and top_p = 1 truncate nothing.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature} must be above 0 and finite")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k} must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must be above 0 and at most 1 (off)")

    @property
    def truncates(self) -> bool:
        """Whether a truncation is on; then the support changes along the path and importance weights mean nothing."""
        return self.top_k > 0 or self.top_p < 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Float32 sums over the tokens of each rollout, all [...], in nats; lpe_jax.types.Rollout names them.

    grid_logp is [..., A], or None where no grid of alphas was asked for.
    """

    logp_path: jax.Array
    logp_original: jax.Array
    logp_variant: jax.Array
    path_score: jax.Array
    path_variance: jax.Array
    grid_logp: jax.Array | None = None

    @classmethod
    def zeros(cls, shape: tuple[int, ...], grid: int | None = None) -> Sums:
        names = [field.name for field in dataclasses.fields(cls) if field.name != "grid_logp"]
        zero = {name: jnp.zeros(shape, jnp.float32) for name in names}
        return cls(**zero, grid_logp=None if grid is None else jnp.zeros((*shape, grid), jnp.float32))


def model_logits(raw: jax.Array, num_tokens: int, temperature: float) -> jax.Array:
    """Each model's own logits [V, M, B] at temperature, padding rows of the vocabulary at -inf."""
    real = jnp.arange(len(raw)) < num_tokens
    return jnp.where(real[:, None, None], raw / temperature, -jnp.inf)


def path_logits(own: jax.Array, alpha: jax.Array, settings: SamplingSettings) -> jax.Array:
    """logits(alpha) = alpha·original + (1 − alpha)·variant [V, B], truncated if asked.

    Mixing before or after the temperature is the same thing, as both are linear.

    Args:
      own: [V, M, B] from model_logits.
      alpha: [B], any real number; outside [0, 1] this is Logit Diff Amplification with a = alpha − 1.
    """
    original, variant = own[:, ORIGINAL], own[:, -1]  # of one model alone they are the same
    padding = jnp.isneginf(original)
    # -inf times a negative or zero alpha would turn padding into +inf or NaN.
    original, variant = (jnp.where(padding, 0.0, l) for l in (original, variant))
    mixed = jnp.where(padding, -jnp.inf, alpha[None] * original + (1 - alpha)[None] * variant)
    if settings.top_k:
        kth = jax.lax.top_k(mixed.T, min(settings.top_k, len(mixed)))[0][:, -1]
        mixed = jnp.where(mixed >= kth[None], mixed, -jnp.inf)
    if settings.top_p < 1:
        # With the vocabulary last, which is sorted and summed a third quicker on a CPU.
        ordered = -jnp.sort(-mixed.T, axis=-1)
        p = jax.nn.softmax(ordered, axis=-1)
        # A token stays if the mass before it has not reached top_p, so that the set reaches it.
        kept = (jnp.cumsum(p, axis=-1) - p) < settings.top_p
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1)
        mixed = jnp.where(mixed >= least[None], mixed, -jnp.inf)
    return mixed


def token_sums(own: jax.Array, path: jax.Array, token: jax.Array) -> Sums:
    """What one drawn token adds to each sum.

    With D = original − variant logits, the path score's term is D(token) − E_path[D] and its variance term
    Var_path[D]; d/dalpha log p_alpha(rollout) is the sum of the former.

    Args:
      own: [V, 2, B] from model_logits; [V, 1, B] of the original alone, and what takes the variant is NaN then.
      path: [V, B] from path_logits.
      token: [B] int.
    """
    if own.shape[1] == 1:
        logp, unknown = _logp(path, token), jnp.full(token.shape, jnp.nan)
        return Sums(logp, logp, unknown, unknown, unknown)
    original, variant = own[:, ORIGINAL], own[:, VARIANT]
    difference = jnp.where(jnp.isneginf(original), 0.0, original - variant)
    p = jax.nn.softmax(path, axis=0)
    mean = jnp.sum(p * difference, axis=0, keepdims=True)
    return Sums(
        logp_path=_logp(path, token),
        logp_original=_logp(original, token),
        logp_variant=_logp(variant, token),
        path_score=_at(difference, token) - mean[0],
        path_variance=jnp.sum(p * jnp.square(difference - mean), axis=0),
    )


def path_sum(path: jax.Array, token: jax.Array) -> Sums:
    """token_sums where only the path's own logits [V, B] are known: all but logp_path is NaN."""
    unknown = jnp.full(token.shape, jnp.nan)
    return Sums(_logp(path, token), unknown, unknown, unknown, unknown)


def grid_logp(own: jax.Array, grid: jax.Array, token: jax.Array, settings: SamplingSettings) -> jax.Array:
    """What one drawn token adds to log p at each alpha of a grid: [B, G], in nats; -inf where it is truncated away.

    One alpha at a time, as the logits of all at once, [V, G, B], need not fit the device.

    Args:
      own: [V, 2, B] from model_logits.
      grid: [G] any real numbers.
      token: [B] int.
    """

    def at_alpha(alpha: jax.Array) -> jax.Array:
        return _logp(path_logits(own, jnp.broadcast_to(alpha, token.shape), settings), token)

    return jax.lax.map(at_alpha, grid).T


def _logp(logits: jax.Array, token: jax.Array) -> jax.Array:
    return _at(logits, token) - jax.nn.logsumexp(logits, axis=0)


def _at(values: jax.Array, token: jax.Array) -> jax.Array:
    """[B] from values [V, B] at token [B]."""
    return jnp.take_along_axis(values, token[None], axis=0)[0]
