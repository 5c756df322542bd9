"""How a run gets on: one line on a terminal, a line a minute elsewhere, and a file for other programs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lpe_jax.errors import RunError, UserError
from lpe_jax.judging.base import Meter
from lpe_jax.preemption import Stopped
from lpe_jax.records.files import read_bytes, write_json
from lpe_jax.reporting.text import duration
from lpe_jax.types import Outcome

NAME = "status.json"
# Seconds between two lines on a terminal, two plain ones, two writes of the file, and two looks at how fast it goes.
_REDRAW, _PLAIN, _FILE, _LOOK = 0.2, 60.0, 2.0, 1.0
# Rates are of the last so many looks, and of so many seconds at least.
_LOOKS, _LEAST = 60, 2.0


class Watch:
    """What is told of a run by those who draw and judge; this one does not listen."""

    def ordered(self, prompt_id: str, n: int) -> None:
        """n more rollouts of a prompt are asked for."""

    def found(self, n: int) -> None:
        """n of those were drawn before and are stored."""

    def drawn(self, n: int, tokens: int) -> None:
        """n were drawn now."""

    def handed_in(self, n: int) -> None:
        """The judge has been given n."""

    def judged(self, prompt_id: str, outcome: Outcome, n: int = 1) -> None:
        """n of a prompt's have a verdict."""

    def finished(self, prompt_id: str) -> None:
        """A prompt asks for nothing more."""

    def busy(self, share: float) -> None:
        """The share of a device's rows that have something to do."""


class Line:
    """Where progress is shown: a line that is drawn again and again on a terminal, else now and then a line of its own,
    without a carriage return, as logs have it.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream, self._clock = stream, clock
        self.redrawn = stream is not None and stream.isatty()
        self._length, self._last = 0, clock()

    def show(self, text: Callable[[int], str]) -> None:
        """Shows text(columns), if it is time."""
        if self._stream is None or self._clock() - self._last < (_REDRAW if self.redrawn else _PLAIN):
            return
        self._last = self._clock()
        if not self.redrawn:
            print(text(200), file=self._stream, flush=True)
            return
        columns = shutil.get_terminal_size().columns - 1
        line = text(columns)[:columns]
        # Blanks over what was longer: not every terminal knows how to clear a line.
        self._stream.write("\r" + line.ljust(self._length))
        self._stream.flush()
        self._length = len(line)

    def clear(self) -> None:
        """Leaves nothing on a terminal's line, so that something else can be printed there."""
        if self._length:
            self._stream.write("\r" + " " * self._length + "\r")
            self._stream.flush()
            self._length = 0


class Progress(Watch):
    """Counts what it is told, shows it, and keeps it in a file. To be used within `with`: how that is left is how the
    run ended.

    Rollouts and verdicts that were there before count; speeds are of those that are new.
    """

    def __init__(
        self,
        prompts: int | None,
        path: Path | None,
        *,
        processes: int = 1,
        spent: Callable[[], tuple[Meter, float | None]] = lambda: (Meter(), None),
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
          prompts: how many there are; None where rollouts alone are counted.
          path: the file; None neither writes nor shows anything.
          processes: how many share the run, of which this is the first, and knows its own share.
          spent: what judges have cost since this process began, and that in money, if prices are known.
          stream: where it is shown; stderr by default.
        """
        self._prompts, self._path, self._spent, self._clock = prompts, path, spent, clock
        self._line = Line(None if path is None else stream or sys.stderr, clock)
        self._processes, self._lock, self._written = processes, threading.Lock(), -float("inf")
        self._began, self._started = clock(), _now()
        self.state, self._error = "running", None
        self._phase, self._most, self._exact, self._later = "starting", None, False, 0
        self._done = self._stored = self._drawn = self._tokens = self._in = self._judged = 0
        self._hits = self._unscored = 0
        self._busy: float | None = None
        self._open: dict[str, list[int]] = {}  # of a prompt under way: rollouts ordered, and judged
        self._of_finished: list[int] = []
        # From the first that is new: what comes before is loading and compiling.
        self._looks: deque[tuple[float, int, int, int]] = deque(maxlen=_LOOKS)
        self._skipped = 0, 0  # drawn and judged when the phase began

    def expect(
        self, phase: str, prompt_ids: Iterable[str], most: int, *, exact: bool, later: int = 0, done: int = 0
    ) -> None:
        """Begins a phase.

        Args:
          most: rollouts that each of these prompts can take; exact where each takes as many.
          later: rollouts of phases that follow.
          done: further prompts that are finished already.
        """
        self._phase, self._most, self._exact, self._later = phase, most, exact, later
        self._open, self._of_finished = {prompt_id: [0, 0] for prompt_id in prompt_ids}, []
        self._done = max(self._done, done)
        # Another phase may compile programs of its own.
        self._looks.clear()
        self._skipped = self._drawn, self._fresh()
        self.tick()

    def ordered(self, prompt_id: str, n: int) -> None:
        """See Watch."""
        self._open[prompt_id][0] += n

    def found(self, n: int) -> None:
        """See Watch."""
        self._stored += n

    def drawn(self, n: int, tokens: int) -> None:
        """See Watch."""
        self._drawn += n
        self._tokens += tokens

    def handed_in(self, n: int) -> None:
        """See Watch."""
        self._in += n

    def judged(self, prompt_id: str, outcome: Outcome, n: int = 1) -> None:
        """See Watch."""
        self._open[prompt_id][1] += n
        self._judged += n
        self._hits += n * (outcome is Outcome.COMPLIED)
        self._unscored += n * (outcome is Outcome.UNSCORED)

    def finished(self, prompt_id: str) -> None:
        """See Watch."""
        self._of_finished.append(self._open.pop(prompt_id)[1])
        # In a phase that comes back to prompts they are not done once more.
        self._done += self._prompts is not None and self._done < self._prompts

    def busy(self, share: float) -> None:
        """See Watch."""
        self._busy = share

    def say(self, line: str) -> None:
        """Prints a line, and lets progress go on below."""
        self._line.clear()
        print(line, flush=True)

    def tick(self) -> None:
        """Shows and writes what is due; to be called often."""
        now = self._clock()
        fresh = self._fresh()
        if now - self._looks[-1][0] >= _LOOK if self._looks else (self._drawn, fresh) != self._skipped:
            self._looks.append((now, self._drawn, self._tokens, fresh))
        self._line.show(self.words)
        if now - self._written >= _FILE:
            self._write(now)

    def left(self) -> tuple[int, bool]:
        """Rollouts that have no verdict yet and, about, will need one; and whether that is the most it can be.

        A prompt under way is taken to need as many as those that are finished took on average, unless its procedure
        always draws as many.
        """
        most = self._most or 0
        if self._exact or not self._of_finished:
            each, bound = most, not self._exact and bool(self._open)
        else:
            each, bound = sum(self._of_finished) / len(self._of_finished), False
        return round(sum(max(each, n) - judged for n, judged in self._open.values())) + self._later, bound

    def rates(self) -> tuple[float, float, float]:
        """New rollouts, tokens and verdicts a second: of the last minute after the first ones, 0 for the first seconds,
        and of all the time once it has ended.
        """
        now = (self._clock(), self._drawn, self._tokens, self._fresh())
        if self.state != "running":
            first = self._began, 0, 0, 0
        elif not self._looks or now[0] - self._looks[0][0] < _LEAST:
            return 0.0, 0.0, 0.0
        else:
            first = self._looks[0]
        seconds = max(now[0] - first[0], 1e-9)
        return tuple((b - a) / seconds for a, b in zip(first[1:], now[1:], strict=True))

    def status(self) -> dict[str, Any]:
        """What the file holds; docs/architecture.md has the fields."""
        rollouts, tokens, judged = self.rates()
        left, bound = self.left()
        running = self.state == "running"
        # Where a judge is asked about a whole prompt at its end, drawing is what tells how quick it goes.
        speed, to_do = (judged, left) if self._in else (rollouts, left - self._stored - self._drawn + self._judged)
        seconds = to_do / speed if running and speed > 0 else None
        meter, cost = self._spent()
        return {
            "state": self.state,
            "phase": self._phase,
            "error": self._error,
            "pid": os.getpid(),
            "processes": self._processes,
            "started": self._started,
            "updated": _now(),
            "seconds": round(self._clock() - self._began, 1),
            "prompts": self._prompts,
            "prompts_done": None if self._prompts is None else self._done,
            "rollouts": self._stored + self._drawn,
            "rollouts_stored": self._stored,
            "tokens": self._tokens,
            "judged": self._judged,
            "waiting": max(self._in - self._judged, 0),
            "hits": self._hits,
            "unscored": self._unscored,
            "rollouts_per_second": round(rollouts, 2),
            "tokens_per_second": round(tokens, 1),
            "judged_per_second": round(judged, 2),
            "rows_busy": None if self._busy is None or not running else round(self._busy, 3),
            "judge_calls": meter.calls,
            "judge_failures": sum(meter.failures.values()),
            "judge_cost": None if cost is None else round(cost, 4),
            "rollouts_left": left if self.state != "finished" else 0,
            "rollouts_left_at_most": bound and self.state != "finished",
            "eta_seconds": 0 if self.state == "finished" else None if seconds is None else round(seconds),
        }

    def words(self, columns: int) -> str:
        """The line, of what matters most if it is not to be longer than so many columns."""
        now = self.status()
        judge = [f"judged {_rate(now['judged_per_second'])}"] * bool(now["judged_per_second"])
        judge += [f"{now['waiting']:,} wait for a verdict"] * bool(now["waiting"])
        calls = f"{now['judge_calls']:,} calls" * bool(now["judge_calls"])
        calls += "".join(f", {n:,} x {what}" for what, n in sorted(self._spent()[0].failures.items()))
        calls += "" if now["judge_cost"] is None else f", {now['judge_cost']:,.2f} spent"
        eta = now["eta_seconds"]
        most = "at most " if now["rollouts_left_at_most"] else ""
        total = now["judged"] + now["rollouts_left"]
        prompts = None if now["prompts"] is None else f"{now['prompts_done']:,}/{now['prompts']:,} prompts"
        rollouts = f"{now['judged']:,}/{total:,} rollouts" if prompts is None else f"{now['rollouts']:,} rollouts"
        # In the order they are shown in; the higher the number, the sooner one is left out.
        parts = [
            (0, prompts or ""),
            (2, rollouts),
            (3, _rate(now["rollouts_per_second"]) if now["rollouts_per_second"] else ""),
            (5, f"{now['tokens_per_second']:,.0f} tokens/s" if now["tokens_per_second"] else ""),
            (6, "" if now["rows_busy"] is None else f"{100 * now['rows_busy']:.0f} % of rows busy"),
            (7, ", ".join(judge)),
            (4, f"{now['hits']:,} hits" + f", {now['unscored']:,} unscored" * bool(now["unscored"])),
            (8, calls),
            (1, "" if eta is None else f"{most}about {duration(eta)} left"),
        ]
        parts = [part for part in parts if part[1]]
        while len(line := ", ".join(text for _, text in parts)) > columns and len(parts) > 1:
            parts.remove(max(parts))
        return line

    def end(self, state: str, error: str | None = None) -> None:
        """Says how it ended; what is told afterwards changes nothing. Any thread may call it."""
        with self._lock:
            if self.state != "running":
                return
            self.state, self._error = state, error
            self._put()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.clear()
        if kind is None:
            self.end("finished")
        elif issubclass(kind, Stopped | KeyboardInterrupt):
            self.end("stopped")
        else:
            # Ours are sentences for the user; what others say may be anything.
            self.end("failed", str(error) if isinstance(error, UserError) else kind.__name__)

    def _fresh(self) -> int:
        """Verdicts on rollouts that were not stored; those come first, and in no time."""
        return max(self._judged - self._stored, 0)

    def _write(self, now: float) -> None:
        with self._lock:
            self._written = now
            if self.state == "running":
                self._put()

    def _put(self) -> None:
        # A disk that does not take it is for the records to tell of.
        if self._path is not None:
            with contextlib.suppress(RunError):
                write_json(self._path, self.status())


def mark_stopped(folder: Path) -> None:
    """Has a run's file no longer say that it is finished, if it does."""
    with contextlib.suppress(RunError, ValueError, AttributeError):
        told = json.loads(read_bytes(folder / NAME))
        if told.get("state") == "finished":
            left = {"rollouts_left": None, "eta_seconds": None}
            write_json(folder / NAME, told | {"state": "stopped", "updated": _now()} | left)


def _rate(each_second: float) -> str:
    return f"{each_second:,.0f}/s" if each_second >= 10 else f"{each_second:.2g}/s"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
