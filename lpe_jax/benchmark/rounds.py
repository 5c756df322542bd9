"""Contestants that take turns, and what their times say. Pure Python: no model is known here.

A machine's speed drifts while others use it. So all contestants run once in every round, ratios are taken within a
round, and what is reported of them is the median.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Work:
    """What was drawn: how many rollouts, and their tokens up to and including the first end-of-sequence token."""

    rollouts: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who draws.

    Attributes:
      run: given the round's number, draws rollouts that no other round draws, and says how many.
      kind: what it is one of several ways of; the best of a kind may be what others are held against.
    """

    name: str
    kind: str
    run: Callable[[int], Work]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One contestant in one round; seconds of wall clock."""

    name: str
    round: int
    seconds: float
    rollouts: int
    tokens: int

    def rate(self, unit: str) -> float:
        """Rollouts or tokens per second; unit is "rollouts" or "tokens"."""
        return getattr(self, unit) / self.seconds


@dataclasses.dataclass(frozen=True)
class Standing:
    """One contestant over all rounds: medians, and the range of seconds.

    Attributes:
      ratio: median over rounds of its rate divided by the reference's in the same round.
    """

    name: str
    kind: str
    seconds: float
    fastest: float
    slowest: float
    tokens_per_second: float
    rollouts_per_second: float
    tokens_per_rollout: float
    ratio: float
    ratios: tuple[float, ...]


def take_turns(
    contestants: Sequence[Contestant], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[Turn]:
    """Every contestant once in every round, each round beginning with another one."""
    turns = []
    for number in range(rounds):
        first = number % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            began = clock()
            work = contestant.run(number)
            turns.append(Turn(contestant.name, number, clock() - began, work.rollouts, work.tokens))
    return turns


def fastest(turns: Sequence[Turn], names: Sequence[str], unit: str) -> str:
    """The name with the highest median rate."""
    return max(names, key=lambda name: statistics.median(t.rate(unit) for t in turns if t.name == name))


def standings(contestants: Sequence[Contestant], turns: Sequence[Turn], reference: str, unit: str) -> list[Standing]:
    """Each contestant's medians and its ratios to the reference.

    Args:
      reference: a contestant's name.
      unit: what ratios are of, "rollouts" or "tokens" per second.
    """
    against = {turn.round: turn.rate(unit) for turn in turns if turn.name == reference}
    found = []
    for contestant in contestants:
        own = [turn for turn in turns if turn.name == contestant.name]
        seconds = [turn.seconds for turn in own]
        ratios = tuple(turn.rate(unit) / against[turn.round] for turn in own)
        found.append(
            Standing(
                name=contestant.name,
                kind=contestant.kind,
                seconds=statistics.median(seconds),
                fastest=min(seconds),
                slowest=max(seconds),
                tokens_per_second=statistics.median(turn.rate("tokens") for turn in own),
                rollouts_per_second=statistics.median(turn.rate("rollouts") for turn in own),
                tokens_per_rollout=sum(turn.tokens for turn in own) / sum(turn.rollouts for turn in own),
                ratio=statistics.median(ratios),
                ratios=ratios,
            )
        )
    return found
