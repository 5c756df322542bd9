"""Requests in, rollouts out: rows kept busy, prompts computed once for all rows that read them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpe_jax.decoding import cache
from lpe_jax.decoding.attention import Kernel, choose_kernel, lowered_for
from lpe_jax.decoding.loop import Results, Rows, Tickets, decode
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.schedule import Schedule
from lpe_jax.decoding.verify import check, recorded
from lpe_jax.errors import PromptError, RunError, UserError
from lpe_jax.models.pair import ORIGINAL, Pair
from lpe_jax.types import Request, Rollout

# Prompt slots come in these steps, so that a slightly longer prompt set compiles the same program.
_SLOT_STEP = 8
# Rows of one prompt. More of them read its keys and values together; fewer leave fewer idle at a prompt's end.
ROWS_PER_PROMPT = 8
# Steps between two looks of the host.
STEPS = 16
# With a row's first, enough for rollouts of five tokens; of shorter ones rows stand idle at times.
TICKETS_PER_ROW = 4


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws rollouts of a pair.

    A request's tokens depend on (seed, prompt, alpha, index), and by rounding on the compiled shape (batch_size,
    prompt_slots, devices) and on what computes attention, not on what is drawn beside it, before or after: float32
    rounding is the same for a row wherever it sits in a batch of one shape, and whenever it began.

    Attributes:
      pair: both models; with one of them alone (`alone`) only alpha = 1 is drawn, and logp_variant, path_score and
        path_variance are NaN.
      prompts: token ids of each rendered prompt, by prompt id.
      to_text: turns a rollout's tokens into text.
      prompt_slots: room for the longest prompt; see slots_for.
      mesh: axes ("data", "model"); rows are split over "data". None for one device.
      sums: whether rollouts carry what needs both models' own logits; without, log p under either and the path score
        are NaN, and a large vocabulary is quicker.
      grid: alphas at which each rollout's log p is taken besides, whatever alpha it is drawn at; None takes none.
      attention: "einsum", XLA's products; "pallas", a kernel for GPUs; "auto", that where it can be had. See
        lpe_jax.decoding.attention.
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
    sums: bool = True
    attention: str = "auto"

    def __post_init__(self):
        if not self.sums and self.grid is not None:
            raise ValueError("log p at a grid takes both models' logits; leave sums on")
        if self.pair.models == 1 and self.grid is not None:
            raise ValueError("one model is run, and log p at a grid takes both")
        if self.mesh is not None and self.batch_size % self.mesh.shape["data"]:
            raise ValueError(f"batch_size = {self.batch_size} is not a multiple of the devices of {self.mesh.shape}")

    @functools.cached_property
    def alone(self) -> Sampler:
        """The original alone, at half the cost. Weights that differ are copied, here and now."""
        return dataclasses.replace(self, pair=self.pair.alone(ORIGINAL), grid=None, sums=True)

    @property
    def rows_per_prompt(self) -> int:
        """Rows of a group: the largest divisor of each device's rows up to ROWS_PER_PROMPT."""
        own = self.batch_size // (1 if self.mesh is None else self.mesh.shape["data"])
        return next(n for n in range(min(ROWS_PER_PROMPT, own), 0, -1) if own % n == 0)

    @property
    def groups(self) -> int:
        """Groups of rows."""
        return self.batch_size // self.rows_per_prompt

    @property
    def tickets(self) -> int:
        """Tickets of a group: for what its rows do, and for what they do next until the host looks again."""
        return TICKETS_PER_ROW * self.rows_per_prompt

    @property
    def device(self) -> jax.Device:
        """Where the pair is, or one of the devices that share it."""
        where = self.pair.leaves[0].sharding
        return jax.local_devices()[0] if where is None else next(iter(where.device_set))

    @functools.cached_property
    def kernel(self) -> Kernel | None:
        """What computes attention; None for XLA's products.

        Raises:
          UserError: one is asked for that cannot be had.
        """
        return choose_kernel(self.attention, self.device, self.pair.config.head_dim, self.mesh)

    @functools.cached_property
    def _empty(self) -> Callable[[], tuple[cache.Prompts, Rows, Results]]:
        """Makes what is on the device before anything is drawn; compiled once, however often a sampler draws."""
        # Made in their places: all keys and values together need not fit one device.
        places = None if self.mesh is None else self._places(jax.eval_shape(self._nothing))
        return jax.jit(self._nothing, out_shardings=places)

    def _nothing(self) -> tuple[cache.Prompts, Rows, Results]:
        rows, length = self.batch_size, self.settings.max_new_tokens
        grid = None if self.grid is None else len(self.grid)
        axes = cache.axes_for(self.device.platform, self.kernel)
        responses = cache.empty_responses(self.pair, rows, length, axes, self.kernel)
        return (
            cache.empty_prompts(self.pair, self.groups, self.prompt_slots, axes),
            Rows.idle(self.groups, self.rows_per_prompt, responses, grid),
            Results.none(self.groups, self.tickets, length, grid),
        )

    def shapes(self) -> tuple[cache.Prompts, Tickets, Rows, Results]:
        """What `decode` takes beside the pair, as shapes in their places. Nothing is put on a device."""
        prompts, rows, results = jax.eval_shape(self._nothing)
        tickets = jax.eval_shape(lambda: Tickets.none(self.groups, self.tickets))
        shapes = prompts, tickets, rows, results
        if self.mesh is None:
            return shapes
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, self._places(shapes)
        )

    def lower(self) -> jax.stages.Lowered:
        """The decode as this sampler would run it, traced but not compiled; the pair's leaves may be shapes too."""
        with lowered_for(self.device):
            return self._call(decode.lower, *self.shapes())

    def _call(self, function: Callable[..., Any], *state: Any) -> Any:
        """decode, or decode.lower, of what `shapes` lists."""
        grid = None if self.grid is None else np.asarray(self.grid, np.float32)
        words = np.uint32(self.seed), np.int32(STEPS), self.settings, grid
        return function(self.pair, *state, *words, to_the_end=self.mesh is not None, sums=self.sums)

    def _places(self, tree: Any) -> Any:
        """Groups and rows divided over "data": the first axis, or the second of keys and values, whose heads are
        divided over "model".
        """

        def place(x: Any, heads: int = 2) -> NamedSharding:
            # Written as XLA writes it in what it returns: with other words for the same place all would be compiled
            # twice.
            split = (*[None] * (heads - 2), "model") if self.mesh.shape["model"] > 1 else ()
            spec = PartitionSpec("data") if x.ndim < 5 else PartitionSpec(None, "data", *split)
            return NamedSharding(self.mesh, spec)

        def of_responses(x: Any) -> Any:
            if not isinstance(x, cache.Responses):
                return place(x)
            k, v = (
                tuple(place(a, 2 + order.index("K")) for a in arrays)
                for arrays, order in ((x.k, x.axes.k), (x.v, x.axes.v))
            )
            return dataclasses.replace(x, k=k, v=v)

        return jax.tree.map(of_responses, tree, is_leaf=lambda x: isinstance(x, cache.Responses))

    def draw(
        self, requests: Sequence[Request], busy: Callable[[float], None] = lambda share: None
    ) -> Iterator[Rollout]:
        """Yields one rollout per request, in their order; a request that comes twice is drawn once."""
        order, wanted = deque(requests), Counter(requests)
        left = deque(wanted)
        done: dict[Request, Rollout] = {}

        def more(n: int) -> list[Request]:
            return [left.popleft() for _ in range(min(n, len(left)))]

        for rollouts in self.stream(more, busy):
            done.update({Request(r.prompt_id, r.alpha, r.index): r for r in rollouts})
            while order and order[0] in done:
                request = order.popleft()
                yield done[request]
                wanted[request] -= 1
                if not wanted[request]:
                    del done[request]

    def stream(
        self, more: Callable[[int], Sequence[Request]], busy: Callable[[float], None] = lambda share: None
    ) -> Iterator[list[Rollout]]:
        """Yields rollouts as they finish, in no fixed order, until there is nothing more to draw.

        All that is begun is finished and yielded, so that short rollouts are not preferred to long ones.

        Args:
          more: asked for up to n further requests between steps; it may give fewer, or none as long as some are under
            way. None given with nothing under way is the end.
          busy: told which share of rows has something to do.
        """
        schedule = Schedule(self.groups, self.rows_per_prompt, self.tickets)
        device = _Device(self, schedule)
        while True:
            schedule.add(requests := more(schedule.room))
            if self.pair.models == 1 and any(request.alpha != 1 for request in requests):
                raise ValueError("the original alone draws at alpha = 1 only")
            device.hand_over(*schedule.hand_out())
            if not schedule.held:
                return
            busy(schedule.busy)
            device.go_on()
            if rollouts := device.fetch():
                yield rollouts

    def verify(self, prompt_id: str, rollouts: Sequence[Rollout]) -> float:
        """By how much sums of one prompt's rollouts are off those of a full forward pass, in nats per token.

        Raises:
          RunError: by more than rounding, or a sum is missing.
        """
        whole = self.sums and self.pair.models == 2
        for rollout in rollouts:
            # At alpha = 1 the original may have been run alone.
            sums = rollout.logp_path, rollout.logp_variant, rollout.path_score, rollout.path_variance
            if whole and rollout.alpha != 1 and not np.isfinite(sums).all():
                raise RunError(
                    f"rollout {rollout.index} of {prompt_id!r} at alpha = {rollout.alpha:g} carries sums that are no "
                    "numbers, though both models were run: nothing drawn with it is to be trusted"
                )
        found = [recorded(rollout, self.settings) for rollout in rollouts]
        return check(prompt_id, self.pair, self.prompts[prompt_id], found, self.settings, self.prompt_slots)


class _Device:
    """What is on the device while a sampler streams, and the host's copy of what it sends there."""

    def __init__(self, sampler: Sampler, schedule: Schedule):
        self.sampler, self.schedule = sampler, schedule
        groups, tickets = sampler.groups, sampler.tickets
        self.prompts, self.rows, self.results = sampler._empty()
        self.prompt_of: list[str | None] = [None] * groups
        self.alpha = np.ones((groups, tickets), np.float32)
        self.identity = np.zeros((groups, tickets, 4), np.uint32)
        self.serial = np.zeros((groups, tickets), np.int32)

    def hand_over(self, moved: Mapping[int, str], given: Sequence[tuple[int, int, int, Request]]) -> None:
        """Prompts to their groups, requests to their tickets."""
        for group, prompt_id in moved.items():
            if prompt_id in self.prompt_of:
                source = self.prompt_of.index(prompt_id)
                self.prompts = cache.copy(self.prompts, np.int32(source), np.int32(group))
            else:
                tokens, ids = self.sampler.prompts[prompt_id], np.zeros(self.sampler.prompt_slots, np.int32)
                ids[: len(tokens)] = tokens
                kv = cache.prefill(self.sampler.pair, ids)
                where = np.int32(group), np.int32(len(tokens) - 1), np.int32(tokens[-1])
                self.prompts = cache.place(self.prompts, kv, *where)
            self.prompt_of[group] = prompt_id
        for group, ticket, serial, request in given:
            self.alpha[group, ticket] = request.alpha
            self.identity[group, ticket] = identity_words(request)
            self.serial[group, ticket] = serial

    def go_on(self) -> None:
        """Some more steps."""
        queue, end = self.schedule.queues()
        sampler = self.sampler
        # Copies, as the device may read them while the host writes the next ones.
        tickets = jax.tree.map(np.array, Tickets(self.alpha, self.identity, self.serial, queue, end))
        if sampler.mesh is not None:
            tickets = jax.device_put(tickets, sampler._places(tickets))
        state = self.prompts, tickets, self.rows, self.results
        self.rows, self.results, taken = sampler._call(decode, *state)
        self.schedule.take(np.asarray(taken))

    def fetch(self) -> list[Rollout]:
        """The rollouts that have finished."""
        back = self.schedule.finish(np.asarray(self.results.finished))
        if not back:
            return []
        host = jax.device_get(self.results)
        sums = {name: value for name, value in vars(host.sums).items() if name != "grid_logp"}
        rollouts = []
        for group, ticket, request in back:
            at = group, ticket
            if not np.isfinite(sums["logp_path"][at]):
                raise UserError(
                    f"the models gave logits that are not finite in {self.sampler.pair.dtype.name} for "
                    f"{request.prompt_id!r}; use --dtype=bfloat16 or --dtype=float32"
                )
            # Copies, so that one kept rollout does not keep all of them alive.
            tokens = host.tokens[at][: host.length[at]].copy()
            rollouts.append(
                Rollout(
                    prompt_id=request.prompt_id,
                    alpha=request.alpha,
                    index=request.index,
                    tokens=tokens,
                    text=self.sampler.to_text(tokens.tolist()),
                    finish="stop" if host.stopped[at] else "length",
                    **{name: float(value[at]) for name, value in sums.items()},
                    grid_logp=None if host.sums.grid_logp is None else host.sums.grid_logp[at].copy(),
                )
            )
        return rollouts


def identity_words(request: Request) -> np.ndarray:
    """[4] uint32: 64 bits of the prompt id's sha256, alpha's float32 bits, the index."""
    first, second = _prompt_words(request.prompt_id)
    # Adding 0.0 makes -0.0 the same alpha as 0.0.
    alpha = np.float32(request.alpha) + np.float32(0.0)
    return np.array(
        [
            first,
            second,
            int(alpha.view(np.uint32)),
            request.index,
        ],
        np.uint32,
    )


@functools.lru_cache(maxsize=4096)
def _prompt_words(prompt_id: str) -> tuple[int, int]:
    digest = hashlib.sha256(prompt_id.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


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
    return rounded_slots(max(len(ids) for ids in prompts.values()))


def rounded_slots(longest: int) -> int:
    """Prompt slots for prompts of up to so many tokens."""
    return -(-longest // _SLOT_STEP) * _SLOT_STEP
