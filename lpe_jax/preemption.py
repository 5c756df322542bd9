"""Machines that are taken away, and Ctrl-C: a run puts on disk what it has and ends, to be gone on with."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

# EX_TEMPFAIL of sysexits.h: what failed may be tried again, as it was.
EXIT_STATUS = 75
# As shells have it of a command that SIGINT ended.
INTERRUPTED = 130


GO_ON = "what is drawn and judged is on disk, and the same command goes on from there"
# How often the others of a run are asked, and how long what is called last may take.
_ASK_SECONDS, _LAST_SECONDS = 1.0, 5.0


class Stopped(Exception):
    """The run is to end now; the same command goes on from what is on disk.

    Attributes:
      signum: the signal that said so.
      kept: what there is to go on from.
    """

    def __init__(self, signum: int = signal.SIGTERM, kept: str = GO_ON):
        super().__init__()
        self.signum, self.kept = signum, kept

    @property
    def status(self) -> int:
        """What the program exits with."""
        return INTERRUPTED if self.signum == signal.SIGINT else EXIT_STATUS

    @property
    def words(self) -> str:
        """For the user."""
        return (
            f"{'stopped by SIGTERM' if self.signum == signal.SIGTERM else 'interrupted'}; {self.kept}:\n  {command()}"
        )


def command() -> str:
    """The command that this program was started by, as a shell takes it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = [sys.argv[0]] if spec is None else ["-m", spec.name]
    return shlex.join(["python", *program, *sys.argv[1:]])


class Notice:
    """Whether this run has been told to end. To be entered by one run at a time; outside the main thread, where Python
    hears of no signal, it hears of none.

    SIGTERM is noted at once, even while the main thread computes or compiles and sees no signal: another thread reads
    of it from a pipe that Python writes to. What runs asks `check` wherever it can end well. If it has not ended within
    so many seconds, `last` is called in that other thread, and the process ends. So it is with SIGINT, as of Ctrl-C,
    once there is something to keep; before, it is what it always is. A second one ends the wait. The other processes of
    a run are told by that thread as well, and it is the one that hears of them: whatever the main threads do, all end.

    Attributes:
      last: puts on disk what can be put there while the main thread is busy; None as long as there is nothing.
      kept: for the user, what there is then to go on from.
    """

    def __init__(self, grace: float, tell: Callable[[], None] | None = None, heard: Callable[[], bool] | None = None):
        """
        Args:
          grace: seconds.
          tell: lets the other processes of the run know; None where there are none.
          heard: whether one of them has let know.
        """
        self.last: Callable[[], None] | None = None
        self.kept = GO_ON
        self._grace, self._tell, self._heard = grace, tell, heard
        self._told: int | None = None
        self._asked = -float("inf")
        self._main = threading.current_thread() is threading.main_thread()

    def check(self) -> None:
        """Raises Stopped if the run is to end."""
        if self._told is None and self._hears():
            self._told = signal.SIGTERM
        if self._told is not None:
            raise Stopped(self._told, self.kept)

    def _hears(self) -> bool:
        """Whether another process is known to have been told; they are not asked all the time."""
        if self._heard is None or time.monotonic() - self._asked < _ASK_SECONDS:
            return False
        self._asked = time.monotonic()
        return self._heard()

    def __enter__(self) -> Notice:
        if not self._main:
            return self
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # A handler of Python's own, or the signal would end the process there and then.
        self._old = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._handle)}
        # Shells have what runs in the background pass it over, and whoever handles it already is to go on.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._old[signal.SIGINT] = signal.signal(signal.SIGINT, self._handle)
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
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
        self._write.close()
        self._thread.join()
        self._read.close()

    def _meant(self, signum: int) -> bool:
        """Whether a signal is one to end well for."""
        return signum == signal.SIGTERM or (signum in self._old and self.last is not None)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._meant(signum):
            raise KeyboardInterrupt
        self._told = self._told or signum

    def _watch(self) -> None:
        until: float | None = None
        while until is None or time.monotonic() < until:
            wait = None if self._heard is None else _ASK_SECONDS
            if until is not None:
                wait = max(until - time.monotonic(), 0.0)
            if not select.select([self._read], [], [], wait)[0]:
                if until is None and (self._told is not None or self._hears()):
                    self._told, until = self._told or signal.SIGTERM, time.monotonic() + self._grace
                continue
            # Every signal that Python handles comes by, as its number; nothing comes when the run has ended.
            if not (data := self._read.recv(16)):
                return
            for signum in filter(self._meant, data):
                if until is None:
                    until = time.monotonic() + self._grace
                    self._told = self._told or signum
                    if self._tell is not None:
                        # Whoever holds the line to the others may be gone.
                        threading.Thread(target=self._tell, daemon=True).start()
                    if signum == signal.SIGINT:
                        within = f"the run ends within {self._grace:g} s, with what is drawn on disk"
                        print(f"\ninterrupted: {within}; Ctrl-C again ends it at once", file=sys.stderr, flush=True)
                elif signum == signal.SIGINT:
                    until = 0.0
        self._end()

    def _end(self) -> None:
        """Ends the process, with what can be kept; a disk that does not answer is not waited for."""
        failed: list[BaseException] = []

        def last() -> None:
            try:
                self.last()
            except BaseException as error:
                failed.append(error)

        stopped = Stopped(self._told, self.kept)
        try:
            thread = threading.Thread(target=last, daemon=True)
            if self.last is not None:
                thread.start()
                thread.join(_LAST_SECONDS)
            if thread.is_alive() or failed:
                why = str(failed[0]) if failed else "the disk does not answer"
                stopped.kept = f"what was not on disk yet is lost ({why}), and the same command goes on from what is"
            print(f"\n{stopped.words}", file=sys.stderr, flush=True)
        finally:
            os._exit(stopped.status)
