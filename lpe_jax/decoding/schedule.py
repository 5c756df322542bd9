"""Which request goes to which group of rows: host bookkeeping, without a device.

All rows of a group read one prompt, so a group takes another prompt only when it has nothing left to do. Requests wait
by prompt; a group gets tickets for those of its own as long as there are some, and beyond its rows so many more that
none of them stands idle until the host looks again. Tickets that no row has taken yet may go to another group: towards
the end of a prompt's requests its groups share what is left, and groups that have nothing to do take part.
"""

from __future__ import annotations

import dataclasses
import math
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
        running_dry = self._running_dry()
        for number in running_dry:
            self._recall(self._groups[number])
        moved = self._move()
        # One that had nothing left but what was recalled has another prompt already.
        running_dry -= moved.keys()
        self._recall_uneven(running_dry)
        given: list[tuple[int, int, int, Request]] = []
        # In turns, so that all groups of a prompt have something to go on with.
        for most in range(1, self.tickets + 1):
            for number, group in enumerate(self._groups):
                if len(group.held) < most and number not in running_dry:
                    self._give(number, group, given)
        return moved, given

    def _running_dry(self) -> set[int]:
        """Groups that get nothing more, so that prompts without a group come to their turn: one for each of those, of
        prompts that have several groups. A prompt with a hundred thousand requests would else keep all for itself.
        """
        by_prompt = self._by_prompt()
        missing = sum(prompt_id not in by_prompt for prompt_id in self._waiting)
        missing -= sum(not group.held for group in self._groups)
        spare = [number for own in by_prompt.values() for number in sorted(own, key=self._held_by)[: len(own) - 1]]
        return set(sorted(spare, key=self._held_by)[: max(missing, 0)])

    def _move(self) -> dict[int, str]:
        """Prompts for the groups that have nothing to do. Returns those that have another one now.

        A group keeps its prompt if no other has it: it would have to be computed anew. Else a prompt without a group
        comes first, whichever has waited longest; then the one with most requests to each of its groups.
        """
        free = [number for number, group in enumerate(self._groups) if not group.held]
        if not free:
            return {}
        groups = {prompt_id: len(own) for prompt_id, own in self._by_prompt().items()}
        # Requests beyond the rows that their prompt has.
        backlog = {prompt_id: len(requests) for prompt_id, requests in self._waiting.items()}
        for group in self._groups:
            if group.held:
                backlog[group.prompt_id] = backlog.get(group.prompt_id, 0) + len(group.held) - self.rows
        left = {prompt_id: n for prompt_id, n in backlog.items() if n > 0}
        moved = {}

        def take(number: int, prompt_id: str) -> None:
            free.remove(number)
            if self._groups[number].prompt_id != prompt_id:
                self._groups[number].prompt_id = moved[number] = prompt_id
            groups[prompt_id] = groups.get(prompt_id, 0) + 1
            left[prompt_id] -= self.rows
            if left[prompt_id] <= 0:
                del left[prompt_id]

        for number in tuple(free):
            own = self._groups[number].prompt_id
            if own in left and own not in groups:
                take(number, own)
        while free and left:
            prompt_id = min(left, key=lambda p: -backlog[p] / (1 + groups[p]) if p in groups else -math.inf)
            take(next((n for n in free if self._groups[n].prompt_id == prompt_id), free[0]), prompt_id)
        return moved

    def _recall_uneven(self, running_dry: set[int]) -> None:
        """Where too little waits to give all groups of a prompt as much as one of them has, they share what no row has
        taken.
        """
        for prompt_id, own in self._by_prompt(idle=True).items():
            held = [self._held_by(number) for number in own if number not in running_dry]
            waiting = len(self._waiting.get(prompt_id, ()))
            if held and max(held) > max(self.rows, min(held) + 1) and waiting < len(held) * max(held) - sum(held):
                for number in own:
                    self._recall(self._groups[number])

    def _by_prompt(self, idle: bool = False) -> dict[str, list[int]]:
        """The groups of each prompt; with those, too, that have nothing to do."""
        found: dict[str, list[int]] = {}
        for number, group in enumerate(self._groups):
            if group.held or (idle and group.prompt_id is not None):
                found.setdefault(group.prompt_id, []).append(number)
        return found

    def _held_by(self, number: int) -> int:
        return len(self._groups[number].held)

    def _recall(self, group: _Group) -> None:
        """Takes back the tickets that no row has taken."""
        requests = [group.held.pop(ticket)[1] for ticket in group.queue]
        group.free.extend(reversed(group.queue))
        group.queue.clear()
        if requests:
            self._waiting.setdefault(group.prompt_id, deque()).extendleft(reversed(requests))
            self.waiting += len(requests)

    def _give(self, number: int, group: _Group, given: list) -> None:
        """A group's next request, if there is one."""
        waiting = self._waiting.get(group.prompt_id)
        if not waiting:
            return
        ticket, request = group.free.pop(), waiting.popleft()
        # Never 0, which a ticket that was not handed out yet shows.
        self._serial = self._serial % (2**31 - 1) + 1
        group.held[ticket] = self._serial, request
        group.queue.append(ticket)
        given.append((number, ticket, self._serial, request))
        self.waiting -= 1
        if not waiting:
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
