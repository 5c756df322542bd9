"""An event loop in a thread of its own, for judges that are waited for while the main thread keeps a device busy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
    """Runs coroutines; started at the first, and over when the process is, whatever is still under way."""

    def __init__(self):
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Its result, when there is one."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="judges")
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self, seconds: float, last: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()) -> None:
        """Gives what is under way so many seconds to end, ends the rest, and awaits what comes last."""
        if self._loop is None:
            return
        self.submit(self._end(seconds, last)).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    @staticmethod
    async def _end(seconds: float, last: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, late = await asyncio.wait(others, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for end in last:
            await end()
        await asyncio.get_running_loop().shutdown_default_executor()
