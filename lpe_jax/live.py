"""The live driver: runs a procedure for many prompts side by side against real models and a real judge."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from lpe_jax.decoding.sampler import Sampler
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.procedure import Draw, Procedure
from lpe_jax.judging.desk import Item
from lpe_jax.progress import Watch
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.types import NO_REASON, Counts, Estimate, Outcome, Prompt, Request, Rollout, Verdict

# So many rollouts may wait for their verdicts; then no further ones are drawn until some have theirs.
MOST_WAITING = 4096
# Seconds of waiting for a judge after which is looked whether the run is to end.
_PATIENCE = 0.5
# So many requests at a time are looked up among the rollouts that are stored.
_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Finished:
    """One prompt's result: the estimate on the host, what was drawn for it, and what it took.

    fit is what the estimate rests on, search what was drawn to find where; None for procedures that do not search.
    scores has a row (alpha, path score, path variance) for every compliant rollout: [N, 3]. drawn [A] counts rollouts,
    scored or not, at each alpha of the procedure's grid. reasons counts what the judge said of unscored ones, phases
    what two judges in a row said: (the first, the second or None if it was not asked).
    """

    prompt: Prompt
    estimate: Estimate
    fit: Counts
    search: Counts | None
    outcomes: dict[Outcome, int]
    rollouts: int
    tokens: int
    scores: np.ndarray
    drawn: np.ndarray
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    phases: Counter[tuple[str, str | None]] = dataclasses.field(default_factory=Counter)


@dataclasses.dataclass
class Tally:
    """What has been judged of a prompt's rollouts so far, as Finished has it."""

    outcomes: Counter[Outcome] = dataclasses.field(default_factory=Counter)
    tokens: int = 0
    # (alpha, index, path score, path variance) of one after the other, as plain numbers: there can be many.
    scores: array[float] = dataclasses.field(default_factory=lambda: array("d"))
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    phases: Counter[tuple[str, str | None]] = dataclasses.field(default_factory=Counter)

    def add(self, rollout: Rollout, verdict: Verdict) -> None:
        """Counts one more."""
        self.outcomes[verdict.outcome] += 1
        self.tokens += len(rollout.tokens)
        if verdict.outcome is Outcome.UNSCORED:
            self.reasons[str(verdict.fields.get("reason", NO_REASON))] += 1
        if verdict.outcome is Outcome.COMPLIED:
            self.scores.extend((rollout.alpha, rollout.index, rollout.path_score, rollout.path_variance))
        if verdict.phases is not None:
            self.phases[verdict.phases] += 1

    def finished(
        self, prompt: Prompt, estimate: Estimate, fit: Counts, search: Counts | None, drawn: np.ndarray
    ) -> Finished:
        """All of it, and what it was estimated to be."""
        outcomes = {outcome: self.outcomes[outcome] for outcome in Outcome}
        # In an order of their own, as sums round by it: rollouts finish in another one when a run is resumed.
        scores = np.array(self.scores).reshape(-1, 4)
        scores = scores[np.lexsort((scores[:, 1], scores[:, 0]))][:, [0, 2, 3]]
        rollouts = sum(outcomes.values())
        kept = self.tokens, scores, drawn, self.reasons, self.phases
        return Finished(prompt, estimate, fit, search, outcomes, rollouts, *kept)


@dataclasses.dataclass
class _Progress:
    """A prompt under way: the procedure's state and the order it waits for."""

    state: Any
    taken: np.ndarray  # [A] rollouts asked for so far at each alpha
    tally: Tally = dataclasses.field(default_factory=Tally)
    draw: Draw | None = None
    waiting: int = 0
    scored: int = 0
    complied: int = 0


def tag(alpha: float, index: int) -> str:
    """What tells rollouts of one prompt apart, for a judge."""
    return f"{alpha!r}/{index}"


def tag_of(rollout: Rollout) -> str:
    """A rollout's tag."""
    return tag(rollout.alpha, rollout.index)


def request_of(item: Item) -> Request:
    """What an item's rollout was asked for as."""
    alpha, _, index = item.tag.partition("/")
    return Request(item.prompt.id, float(alpha), int(index))


def item_of(prompt: Prompt, rollout: Rollout) -> Item:
    """A rollout as a judge is given it."""
    return Item(prompt, rollout.text, tag_of(rollout))


def run(
    procedure: Procedure,
    prompts: Sequence[Prompt],
    sampler: Sampler | FromStore,
    judge: Callable[[Sequence[Item]], Future[list[Verdict]]],
    store: RolloutStore,
    on_batch: Callable[[int, int, float], None] = lambda rollouts, tokens, seconds: None,
    spoken_for: Mapping[str, np.ndarray] | None = None,
    check: Callable[[], None] = lambda: None,
    at_once: int = 1,
    watch: Watch | None = None,
) -> Iterator[Finished]:
    """Yields each prompt's result as soon as its procedure is done.

    Prompts advance independently and their orders share one queue, so that the device's rows stay busy while any prompt
    has work, those of prompts that wait for verdicts excepted. Rollouts already in the store are taken from it instead
    of being drawn, which is all that resuming needs: a rollout is a function of its request. They are read as they are
    needed, so that memory does not grow with what is stored.

    Args:
      judge: as lpe_jax.judging.desk.Desk.submit.
      on_batch: told how many rollouts and tokens were drawn anew, and the seconds since it was told last.
      at_once: how many rollouts the judge is best given together; it gets fewer where there is nothing else to draw.
      check: called often, where all that was drawn is in the store; what it raises ends the run.
      watch: told how it goes.
      spoken_for: by prompt id, how many rollouts [A] at each alpha another call has had; what is drawn follows them.
    """
    by_id, watch = {prompt.id: prompt for prompt in prompts}, watch or Watch()
    stored = store.index()
    steps = _Steps(procedure)
    grid = [float(alpha) for alpha in procedure.grid]
    none = np.zeros(len(grid), int)
    had = {p.id: none if spoken_for is None else spoken_for[p.id] for p in prompts}
    progress = {p.id: _Progress(steps.init(), had[p.id].copy()) for p in prompts}
    # Ranges, as a naive order can be a hundred thousand rollouts of each prompt.
    queue: deque[tuple[str, int, range]] = deque()
    missing: deque[Request] = deque()

    def take(most: int) -> list[Request]:
        """The next requests of the queue."""
        requests: list[Request] = []
        while queue and len(requests) < most:
            prompt_id, cell, indices = queue.popleft()
            now, later = indices[: most - len(requests)], indices[most - len(requests) :]
            requests += [Request(prompt_id, grid[cell], index) for index in now]
            if later:
                queue.appendleft((prompt_id, cell, later))
        return requests

    def advance(prompt_id: str) -> Finished | None:
        """Puts the prompt's next order in the queue, or returns its result."""
        at = progress[prompt_id]
        at.draw = steps.next(at.state)
        cell, n = int(at.draw.cell), int(at.draw.n)
        if n == 0:
            estimate, (fit, search) = steps.result(at.state)
            drawn = at.taken - had[prompt_id]
            watch.finished(prompt_id)
            return at.tally.finished(by_id[prompt_id], estimate, fit, search, drawn)
        first = int(at.taken[cell])
        queue.append((prompt_id, cell, range(first, first + n)))
        at.taken[cell] += n
        at.waiting, at.scored, at.complied = n, 0, 0
        watch.ordered(prompt_id, n)
        return None

    def settle(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> None:
        """Counts verdicts and lets the prompts go on whose orders they complete."""
        for rollout, verdict in zip(rollouts, verdicts, strict=True):
            at = progress[rollout.prompt_id]
            at.tally.add(rollout, verdict)
            watch.judged(rollout.prompt_id, verdict.outcome)
            at.waiting -= 1
            at.scored += verdict.outcome is not Outcome.UNSCORED
            at.complied += verdict.outcome is Outcome.COMPLIED
            if at.waiting == 0:
                at.state = steps.update(at.state, at.draw, at.scored, at.complied)
                if (result := advance(rollout.prompt_id)) is not None:
                    done.append(result)

    def handle(rollouts: Sequence[Rollout]) -> None:
        """Hands rollouts to the judge."""
        watch.handed_in(len(rollouts))
        verdicts = judge([item_of(by_id[r.prompt_id], r) for r in rollouts])
        if verdicts.done():
            settle(rollouts, verdicts.result())
        else:
            judging[verdicts] = rollouts

    def hand_in() -> None:
        """Hands in what was gathered."""
        some = gathered.copy()
        gathered.clear()
        handle(some)

    def collect(wait: bool) -> None:
        """Settles what has been judged by now; having waited for some of it, if asked to."""
        while wait and not any(future.done() for future in judging):
            concurrent.futures.wait(judging, _PATIENCE, return_when=concurrent.futures.FIRST_COMPLETED)
            check()
        for verdicts in [future for future in judging if future.done()]:
            settle(judging.pop(verdicts), verdicts.result())

    def crowded() -> bool:
        """Whether the judge has as much to do as may wait for it."""
        return sum(map(len, judging.values())) >= MOST_WAITING

    def more(n: int) -> list[Request]:
        """Up to n requests that are to be drawn; rollouts that are stored are handled here and now."""
        nonlocal under_way
        collect(wait=False)
        while True:
            while queue and len(missing) < n and not crowded():
                check()
                requests = take(_AT_ONCE)
                places = stored.find(requests)
                missing.extend(request for request, place in zip(requests, places, strict=True) if place < 0)
                if (known := places[places >= 0]).size:
                    watch.found(known.size)
                    handle(stored.fetch(known))
            if gathered and len(missing) < n and not crowded():
                # Rows would stand idle, and what is drawn next may be for these verdicts to say.
                hand_in()
                continue
            asked = [] if crowded() else [missing.popleft() for _ in range(min(n, len(missing)))]
            under_way += 0 if isinstance(sampler, FromStore) else len(asked)
            if asked or under_way or not judging:
                return asked
            # The device has nothing to do: what comes next is for the judge to say.
            collect(wait=True)

    done = [result for prompt in prompts if (result := advance(prompt.id)) is not None]
    judging: dict[Future[list[Verdict]], Sequence[Rollout]] = {}
    gathered: list[Rollout] = []
    under_way = 0
    began = time.perf_counter()
    for rollouts in sampler.stream(more, watch.busy):
        under_way -= len(rollouts)
        tokens = sum(len(r.tokens) for r in rollouts)
        watch.drawn(len(rollouts), tokens)
        store.append(rollouts)
        gathered += rollouts
        if len(gathered) >= at_once or not under_way:
            hand_in()
        yield from done
        done.clear()
        check()
        on_batch(len(rollouts), tokens, time.perf_counter() - began)
        began = time.perf_counter()
    yield from done
    store.flush()


class FromStore:
    """In the place of a sampler, where nothing is to be drawn: prompts that miss a rollout never finish."""

    @property
    def alone(self) -> FromStore:
        """As lpe_jax.decoding.sampler.Sampler.alone."""
        return self

    def stream(
        self, more: Callable[[int], Sequence[Request]], busy: Callable[[float], None] | None = None
    ) -> Iterator[list[Rollout]]:
        """Lets everything pass that is stored."""
        while more(_AT_ONCE):
            pass
        return iter(())


class _Steps:
    """A procedure's pure functions, compiled once for all prompts, in float64 as estimation computes."""

    def __init__(self, procedure: Procedure):
        self._procedure = procedure
        self._next = jax.jit(procedure.next)
        self._update = jax.jit(procedure.update)

    def init(self):
        with float64():
            return self._procedure.init()

    def next(self, state) -> Draw:
        with float64():
            return self._next(state)

    def update(self, state, draw: Draw, scored: int, complied: int):
        with float64():
            return self._update(state, draw, np.int32(scored), np.int32(complied))

    def result(self, state) -> tuple[Estimate, tuple[Counts, Counts | None]]:
        with float64():
            return jax.device_get((self._procedure.estimate(state), self._procedure.parts(state)))
