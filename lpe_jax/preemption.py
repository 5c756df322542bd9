"""Machines that are taken away: on SIGTERM a run puts on disk what it has and ends, to be gone on with."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

# EX_TEMPFAIL of sysexits.h: what failed may be tried again, as it was.
EXIT_STATUS = 75


GO_ON = "what is drawn and judged is on disk, and the same command goes on from there"


class Stopped(Exception):
    """The run is to end now; the same command goes on from what is on disk."""


class Notice:
    """Whether this run has been told to end. To be entered by one run at a time; outside the main thread, where Python
    hears of no signal, it hears of none.

    SIGTERM is noted at once, even while the main thread computes or compiles and sees no signal: another thread reads
    of it from a pipe that Python writes to. What runs asks `check` wherever it can end well. If it has not ended within
    so many seconds, `last` is called in that other thread, and the process ends.

    Attributes:
      last: puts on disk what can be put there while the main thread is busy.
    """

    def __init__(
        self, grace: float, tell: Callable[[], None] = lambda: None, heard: Callable[[], bool] = lambda: False
    ):
        """
        Args:
          grace: seconds.
          tell: lets the other processes of the run know.
          heard: whether one of them has let know.
        """
        self.last: Callable[[], None] = lambda: None
        self._grace, self._tell, self._heard = grace, tell, heard
        self._told, self._over = threading.Event(), threading.Event()
        self._main = threading.current_thread() is threading.main_thread()

    def check(self) -> None:
        """Raises Stopped if the run is to end."""
        if self._told.is_set():
            self._tell()
            raise Stopped
        if self._heard():
            raise Stopped

    def __enter__(self) -> Notice:
        if not self._main:
            return self
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # A handler of Python's own, or the signal would end the process there and then.
        self._old = signal.signal(signal.SIGTERM, self._handle)
        self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="preemption")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._main:
            return
        signal.set_wakeup_fd(self._old_fd)
        signal.signal(signal.SIGTERM, self._old)
        self._over.set()
        self._write.close()
        self._thread.join()
        self._read.close()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._told.set()

    def _watch(self) -> None:
        # Every signal that Python handles comes by, as its number.
        while (data := self._read.recv(16)) and signal.SIGTERM not in data:
            pass
        if not data:
            return
        self._told.set()
        if not self._over.wait(self._grace):
            try:
                self._last_words()
            finally:
                os._exit(EXIT_STATUS)

    def _last_words(self) -> None:
        self.last()
        print(f"\nstopped by SIGTERM, {self._grace:g} s ago; {GO_ON}", file=sys.stderr, flush=True)
