"""Requests in, rollouts out: packing rows into fixed batches, keeping the device busy, unpacking results."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpe_jax.decoding.loop import Batch, Decoded, decode
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.errors import PromptError, UserError
from lpe_jax.models.pair import Pair
from lpe_jax.types import Request, Rollout

# Prompt slots come in these steps, so that a slightly longer prompt set compiles the same program.
_SLOT_STEP = 8


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws rollouts of a pair.

    A request's tokens depend on (seed, prompt, alpha, index) and on the compiled shape (batch_size, prompt_slots),
    not on its batch-mates: float32 rounding is the same for a row wherever it sits in a batch of one shape.

    Attributes:
      prompts: token ids of each rendered prompt, by prompt id.
      to_text: turns a rollout's tokens into text.
      prompt_slots: room for the longest prompt; see slots_for.
      mesh: axes ("data", "model"); rows are split over "data". None for one device.
      grid: alphas at which each rollout's log p is taken besides, whatever alpha it is drawn at; None takes none.
    """

    pair: Pair
    prompts: Mapping[str, Sequence[int]]
    to_text: Callable[[Sequence[int]], str]
    settings: SamplingSettings
    seed: int
    batch_size: int
    prompt_slots: int
    mesh: Mesh | None = None
    grid: tuple[float, ...] | None = None

    def draw(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Yields one rollout per request, in their order.

        The next batch is dispatched before the last one is fetched, so that the device does not wait for text.
        """
        pending: tuple[Sequence[Request], Decoded] | None = None
        grid = None if self.grid is None else np.array(self.grid, np.float32)
        for begin in range(0, len(requests), self.batch_size):
            chunk = requests[begin : begin + self.batch_size]
            dispatched = chunk, decode(self.pair, self._pack(chunk), np.uint32(self.seed), self.settings, grid)
            if pending is not None:
                yield from self._unpack(*pending)
            pending = dispatched
        if pending is not None:
            yield from self._unpack(*pending)

    def _pack(self, requests: Sequence[Request]) -> Batch:
        rows = self.batch_size
        prompt = np.zeros((rows, self.prompt_slots), np.int32)
        start = np.full(rows, self.prompt_slots - 1, np.int32)
        alpha, identity = np.ones(rows, np.float32), np.zeros((rows, 4), np.uint32)
        for row, request in enumerate(requests):
            ids = self.prompts[request.prompt_id]
            start[row] = self.prompt_slots - len(ids)
            prompt[row, start[row] :] = ids
            alpha[row] = request.alpha
            identity[row] = identity_words(request)
        batch = Batch(prompt, start, alpha, identity, np.arange(rows) < len(requests))
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec("data")))

    def _unpack(self, requests: Sequence[Request], decoded: Decoded) -> Iterator[Rollout]:
        host = jax.device_get(decoded)
        if not np.isfinite(host.sums.logp_path[: len(requests)]).all():
            raise UserError(
                f"the models gave logits that are not finite in {self.pair.dtype.name}, and nothing was kept of that "
                "batch; use --dtype=bfloat16 or --dtype=float32"
            )
        sums = {name: value for name, value in vars(host.sums).items() if name != "grid_logp"}
        grid_logp = host.sums.grid_logp
        for row, request in enumerate(requests):
            # A copy, so that one kept rollout does not keep its whole batch alive.
            tokens = host.tokens[row, : host.length[row]].copy()
            yield Rollout(
                prompt_id=request.prompt_id,
                alpha=request.alpha,
                index=request.index,
                tokens=tokens,
                text=self.to_text(tokens.tolist()),
                finish="stop" if host.stopped[row] else "length",
                **{name: float(value[row]) for name, value in sums.items()},
                grid_logp=None if grid_logp is None else grid_logp[row].copy(),
            )


def identity_words(request: Request) -> np.ndarray:
    """[4] uint32: 64 bits of the prompt id's sha256, alpha's float32 bits, the index."""
    digest = hashlib.sha256(request.prompt_id.encode("utf-8")).digest()
    # Adding 0.0 makes -0.0 the same alpha as 0.0.
    alpha = np.float32(request.alpha) + np.float32(0.0)
    return np.array(
        [
            int.from_bytes(digest[:4], "little"),
            int.from_bytes(digest[4:8], "little"),
            int(alpha.view(np.uint32)),
            request.index,
        ],
        np.uint32,
    )


def slots_for(prompts: Mapping[str, Sequence[int]], max_positions: int, max_new_tokens: int) -> int:
    """Prompt slots that hold every prompt, rounded up.

    Raises:
      PromptError: a prompt is empty, or with max_new_tokens runs past the positions the models know.
    """
    for prompt_id, ids in prompts.items():
        if not len(ids):
            raise PromptError(f"prompt {prompt_id!r} renders to no tokens")
        if len(ids) + max_new_tokens > max_positions:
            raise PromptError(
                f"prompt {prompt_id!r} has {len(ids)} tokens, which with --max_new_tokens={max_new_tokens} is over the "
                f"models' {max_positions} positions; shorten one of them"
            )
    longest = max(len(ids) for ids in prompts.values())
    return -(-longest // _SLOT_STEP) * _SLOT_STEP
