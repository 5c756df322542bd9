"""How many calls are under way at once: more while all goes well, fewer when the server says that it is too much."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

_START = 16
_SHRINK = 0.7
# Seconds, in which a server that is overrun for a moment makes the limit shrink once.
_AT_MOST_EVERY = 1.0


class Pace:
    """Additive increase, multiplicative decrease, and pauses; `async with` it around each call.

    In a round of calls the limit doubles until it first was too much, and grows by one from then on. Calls that were
    under way when it became too much fail together: they count once.
    """

    def __init__(
        self,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        """most: calls under way at once, whatever the server would take."""
        self._most, self._clock, self._sleep = most, clock, sleep
        self._limit = float(min(most, _START))
        self._enough = float(most)
        self._shrunk = self._until = -float("inf")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.under_way = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way now."""
        return int(self._limit)

    @property
    def paused(self) -> float:
        """Seconds for which nothing is sent."""
        return max(0.0, self._until - self._clock())

    def well(self) -> None:
        """A call was answered."""
        if 2 * self.under_way >= self.limit:  # else the limit is not what holds it back
            self._limit += 1.0 if self._limit < self._enough else 1.0 / self._limit
            self._limit = min(self._limit, float(self._most))
            self._wake()

    def slow(self, turn: float) -> None:
        """A call is told that it is too much. turn: what `async with` gave it."""
        now = self._clock()
        if turn >= self._shrunk and now - self._shrunk >= _AT_MOST_EVERY:
            self._limit = self._enough = max(1.0, _SHRINK * min(self.limit, self.under_way))
            self._shrunk = now

    def pause(self, seconds: float) -> None:
        """Sends nothing for so long."""
        self._until = max(self._until, self._clock() + seconds)

    async def __aenter__(self) -> float:
        if self.under_way < self.limit and not self._waiting:
            self.under_way += 1
        else:
            await self._turn()
        try:
            while self.paused:
                await self._sleep(self.paused)
        except BaseException:
            self._leave()
            raise
        return self._clock()

    async def __aexit__(self, *exc: object) -> None:
        self._leave()

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came just then
                self._leave()
            raise

    def _leave(self) -> None:
        self.under_way -= 1
        self._wake()

    def _wake(self) -> None:
        """Gives those that wait their turn, first come first served, as far as there is room."""
        while self._waiting and self.under_way < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.under_way += 1
                turn.set_result(None)
