"""A judge's model run in batches of few shapes: short replies, and how likely given words are to come next."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.errors import JudgeError
from lpe_jax.models.qwen3 import KVCache, Qwen3

# Prompts are padded to a power of two from here on, so that nearly all run in one compiled program.
LEAST_SLOTS = 256


@dataclasses.dataclass(frozen=True)
class JudgeModel:
    """A causal language model that is asked many things.

    What comes of a prompt depends on it and the compiled shape alone, which follows from `rows` and its own length, not
    on what else is asked. Padding stands before prompts and is never attended to.

    Attributes:
      load: loads its weights, when it is first asked.
      positions: tokens that it can read and write, together.
      num_tokens: ids at or above it are padding rows of the vocabulary and are never said.
      eos_ids: any of these ends a reply.
      rows: of a compiled batch.
    """

    load: Callable[[], Qwen3]
    positions: int
    num_tokens: int
    eos_ids: tuple[int, ...]
    rows: int

    @functools.cached_property
    def module(self) -> Qwen3:
        """The model on the device."""
        return self.load()

    def replies(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """The likeliest next tokens of each prompt, one after the other, up to and with one of eos_ids, or `most`.

        Raises:
          JudgeError: a batch does not fit the device.
        """
        static = {"num_tokens": self.num_tokens, "eos_ids": self.eos_ids, "most": most}
        found = self._run(functools.partial(_reply, **static), prompts, most)
        return [tokens[:length].tolist() for tokens, length in found]

    def next_log_probs(self, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> np.ndarray:
        """Log-probabilities, in nats, of the tokens ids [M] to come next after each of N prompts: [N, M] float32.

        Raises:
          JudgeError: a batch does not fit the device.
        """
        of_ids = functools.partial(_next_log_probs, ids=tuple(ids), num_tokens=self.num_tokens)
        return np.array([row for (row,) in self._run(of_ids, prompts, 0)], np.float32).reshape(-1, len(ids))

    def longest(self, most: int) -> int:
        """Tokens that a prompt may have, if `most` tokens are to come of it."""
        return self.positions - most

    def _run(
        self, program: Callable[..., tuple[jax.Array, ...]], prompts: Sequence[Sequence[int]], most: int
    ) -> list[tuple[np.ndarray, ...]]:
        """What program(module, tokens [B, T], start [B]) gives, for each prompt its rows, in order."""
        by_slots: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            by_slots.setdefault(slots_for(len(prompt), self.longest(most)), []).append(i)
        found: dict[int, tuple[np.ndarray, ...]] = {}
        for slots, members in by_slots.items():
            for begin in range(0, len(members), self.rows):
                some = members[begin : begin + self.rows]
                out = self._fetched(program, *self._batch([prompts[i] for i in some], slots))
                found |= {i: tuple(array[row] for array in out) for row, i in enumerate(some)}
        return [found[i] for i in range(len(prompts))]

    def _batch(self, prompts: Sequence[Sequence[int]], slots: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompts right-aligned in tokens [B, T], and where each begins [B]; the last one fills rows that are over."""
        tokens, start = np.zeros((self.rows, slots), np.int32), np.empty(self.rows, np.int32)
        for row in range(self.rows):
            prompt = prompts[min(row, len(prompts) - 1)]
            start[row] = slots - len(prompt)
            tokens[row, start[row] :] = prompt
        return tokens, start

    def _fetched(self, program: Callable[..., Any], tokens: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return jax.device_get(program(self.module, tokens, start))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise JudgeError(
                f"the device has too little memory for the judge's batch of {self.rows} x {tokens.shape[1]} tokens; "
                "lower --judge_batch_size"
            ) from None


def slots_for(length: int, longest: int) -> int:
    """Slots that a prompt of so many tokens is padded to: a power of two, or all there are.

    Raises:
      ValueError: it is longer than the longest.
    """
    if not 0 < length <= longest:
        raise ValueError(f"{length} tokens do not fit {longest}")
    return min(max(LEAST_SLOTS, 1 << (length - 1).bit_length()), longest)


def _spoken(logits: jax.Array, num_tokens: int) -> jax.Array:
    """Logits [..., V] without those of padding rows of the vocabulary."""
    return logits.at[..., num_tokens:].set(-jnp.inf)


@functools.partial(jax.jit, static_argnames=("ids", "num_tokens"))
def _next_log_probs(
    module: Qwen3, tokens: jax.Array, start: jax.Array, *, ids: tuple[int, ...], num_tokens: int
) -> tuple[jax.Array]:
    """[B, M] of ids [M]."""
    hidden, _ = module(tokens, start)
    log_p = jax.nn.log_softmax(_spoken(module.head(hidden[:, -1]), num_tokens))
    return (log_p[:, jnp.array(ids)],)


@functools.partial(jax.jit, static_argnames=("num_tokens", "eos_ids", "most"))
def _reply(
    module: Qwen3, tokens: jax.Array, start: jax.Array, *, num_tokens: int, eos_ids: tuple[int, ...], most: int
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, most] and how many of them [B] each row's reply has; the others mean nothing."""
    rows, slots = tokens.shape
    ends = jnp.array(eos_ids)

    def likeliest(hidden: jax.Array) -> jax.Array:  # [B, D] to [B]
        return jnp.argmax(_spoken(module.head(hidden), num_tokens), axis=-1).astype(jnp.int32)

    def ended(token: jax.Array) -> jax.Array:  # [B] to [B]
        return (token[:, None] == ends[None, :]).any(axis=-1)

    def step(state):
        said, length, done, cache, n = state
        token = jax.lax.dynamic_slice_in_dim(said, n - 1, 1, axis=1)  # [B, 1]
        hidden, cache = module(token, start, cache, slots + n - 1)
        token = likeliest(hidden[:, 0])
        said = jax.lax.dynamic_update_slice_in_dim(said, token[:, None], n, axis=1)
        return said, jnp.where(done, length, n + 1), done | ended(token), cache, n + 1

    def goes_on(state) -> jax.Array:
        _, _, done, _, n = state
        return (n < most) & ~done.all()

    hidden, cache = module(tokens, start, KVCache.empty(module.config, rows, slots + most, module.dtype), 0)
    first = likeliest(hidden[:, -1])
    said = jnp.zeros((rows, most), jnp.int32).at[:, 0].set(first)
    state = said, jnp.ones(rows, jnp.int32), ended(first), cache, jnp.int32(1)
    said, length, *_ = jax.lax.while_loop(goes_on, step, state)
    return said, length
