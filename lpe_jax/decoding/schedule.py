"""Which request goes to which group of rows: host bookkeeping, without a device.

All rows of a group read one prompt, so a group takes another prompt only when it has nothing left to do. Requests wait
by prompt; a group gets tickets for those of its own as long as there are some, and beyond its rows so many more that
none of them stands idle until the host looks again.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable

import numpy as np

from lpe_jax.types import Request

# So many times the tickets there are.
_AHEAD = 4


@dataclasses.dataclass
class _Group:
    prompt_id: str | None
    free: list[int]  # tickets nobody holds
    held: dict[int, tuple[int, Request]]  # by ticket: its serial and what it is for
    queue: list[int]  # tickets that no row has taken yet, in order


class Schedule:
    """Requests that wait, and the tickets of those that do not.

    Attributes:
      groups, rows, tickets: how many groups, rows of each and tickets of each; tickets >= rows.
    """

    def __init__(self, groups: int, rows: int, tickets: int):
        self.groups, self.rows, self.tickets = groups, rows, tickets
        self._groups = [_Group(None, list(range(tickets))[::-1], {}, []) for _ in range(groups)]
        self._waiting: dict[str, deque[Request]] = {}
        self._serial = 0
        self.waiting = 0

    @property
    def held(self) -> int:
        """Requests that hold a ticket."""
        return sum(len(group.held) for group in self._groups)

    @property
    def busy(self) -> float:
        """The share of rows that have something to do."""
        return sum(min(len(group.held), self.rows) for group in self._groups) / (self.groups * self.rows)

    @property
    def room(self) -> int:
        """How many further requests to let wait: enough to find several of one prompt among those of many."""
        return max(_AHEAD * self.groups * self.tickets - self.held - self.waiting, 0)

    def add(self, requests: Iterable[Request]) -> None:
        """Lets requests wait."""
        for request in requests:
            self._waiting.setdefault(request.prompt_id, deque()).append(request)
            self.waiting += 1

    def hand_out(self) -> tuple[dict[int, str], list[tuple[int, int, int, Request]]]:
        """Gives waiting requests tickets as far as there are some.

        Returns:
          The groups that got another prompt, by number, and (group, ticket, serial, request) of every new ticket.
        """
        moved, given = {}, []
        running_dry = self._running_dry()
        # First so that every row has something to do, then so that it has something to go on with.
        for most in (self.rows, self.tickets):
            for number, group in enumerate(self._groups):
                if number not in running_dry:
                    self._give(number, group, most, given)
            for number, group in enumerate(self._groups):
                if not group.held and self._waiting:
                    # Whoever has waited longest, of those without a group if there are any.
                    served = {other.prompt_id for other in self._groups if other.held}
                    group.prompt_id = min(self._waiting, key=lambda p: p in served)
                    moved[number] = group.prompt_id
                    self._give(number, group, most, given)
        return moved, given

    def _running_dry(self) -> set[int]:
        """Groups that get nothing more, so that prompts without a group come to their turn: one for each of those, of
        prompts that have several groups. A prompt with a hundred thousand requests would else keep all for itself.
        """
        by_prompt: dict[str, list[int]] = {}
        for number, group in enumerate(self._groups):
            if group.held:
                by_prompt.setdefault(group.prompt_id, []).append(number)
        missing = sum(prompt_id not in by_prompt for prompt_id in self._waiting)
        missing -= sum(not group.held for group in self._groups)
        spare = [number for own in by_prompt.values() for number in sorted(own, key=self._held_by)[: len(own) - 1]]
        return set(sorted(spare, key=self._held_by)[: max(missing, 0)])

    def _held_by(self, number: int) -> int:
        return len(self._groups[number].held)

    def _give(self, number: int, group: _Group, most: int, given: list) -> None:
        waiting = self._waiting.get(group.prompt_id)
        while waiting and len(group.held) < most:
            ticket, request = group.free.pop(), waiting.popleft()
            # Never 0, which a ticket that was not handed out yet shows.
            self._serial = self._serial % (2**31 - 1) + 1
            group.held[ticket] = self._serial, request
            group.queue.append(ticket)
            given.append((number, ticket, self._serial, request))
            self.waiting -= 1
        if waiting is not None and not waiting:
            del self._waiting[group.prompt_id]

    def queues(self) -> tuple[np.ndarray, np.ndarray]:
        """Tickets that no row has taken yet, first come first: [groups, tickets] int32, and how many [groups]."""
        queue = np.zeros((self.groups, self.tickets), np.int32)
        for number, group in enumerate(self._groups):
            queue[number, : len(group.queue)] = group.queue
        return queue, np.array([len(group.queue) for group in self._groups], np.int32)

    def take(self, taken: np.ndarray) -> None:
        """Rows have taken so many [groups] from the front of each queue."""
        for group, n in zip(self._groups, taken.tolist(), strict=True):
            del group.queue[:n]

    def finish(self, finished: np.ndarray) -> list[tuple[int, int, Request]]:
        """Takes back tickets whose serial stands in finished [groups, tickets]: (group, ticket, request) of each."""
        back = []
        for number, group in enumerate(self._groups):
            for ticket, (serial, request) in list(group.held.items()):
                if finished[number, ticket] == serial:
                    del group.held[ticket]
                    group.free.append(ticket)
                    back.append((number, ticket, request))
        return back
