"""One judge and what it has said: each distinct response to a prompt is judged once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from lpe_jax.errors import JudgeError
from lpe_jax.judging import text
from lpe_jax.judging.base import Judge, RemoteJudge, source_digest, unscored
from lpe_jax.judging.futures import all_of, done, failed
from lpe_jax.judging.loop import Loop
from lpe_jax.judging.registry import judge_rollouts
from lpe_jax.records.ledger import Key, Ledger
from lpe_jax.types import NO_REASON, Outcome, Prompt, Verdict

# So many responses without a single verdict, and the judge counts as broken.
GIVE_UP = 100
# Verdicts that come within so many seconds of each other are put on disk together.
_TOGETHER = 0.01
# A judge that is called is given so many responses at a time, and what it said is put on disk once in so many seconds.
_PIECE, _EVERY = 64, 1.0


def remembered_as(identity: str, thinking: bool, reasoning: bool = False) -> str:
    """What a ledger knows a judge by: what is cut away before judging decides verdicts too."""
    how = "all" if reasoning else f"text@{source_digest([Path(text.__file__)])}"
    return f"{identity};thinking={thinking};{how}"


class Remembered:
    """A judge in front of what it has said.

    Unscored is remembered on disk where the judge did reply, and was paid for it; else only as long as this lasts: it
    can mean that the judge failed this once, and is asked again when a run is resumed.
    """

    def __init__(self, judge: Judge | RemoteJudge, loop: Loop, thinking: bool, reasoning: bool, again: bool = False):
        self.judge, self.remote = judge, isinstance(judge, RemoteJudge)
        self.identity = remembered_as(judge.identity, thinking, reasoning)
        self._loop, self._thinking, self._reasoning, self._again = loop, thinking, reasoning, again
        self._whole = getattr(judge, "reads_prompts", False)
        self._ledger: Ledger | None = None
        self._before = 0, 0, 0
        self._scored, self._silent = False, 0
        self._lock = threading.Lock()
        self._asked: dict[Key, Future[Verdict]] = {}  # and not answered yet
        self._without: dict[Key, Verdict] = {}  # answered, and unscored
        self._fresh: dict[Key, Verdict] = {}  # and not on disk yet
        self._commit: asyncio.Task | None = None

    def remember(self, ledger: Ledger) -> None:
        """Goes on from a ledger, in which verdicts are kept from now on."""
        self._ledger = ledger
        self._before = ledger.spent(self.identity)
        # With what the first call came to.
        self.put()

    def submit(self, items: Sequence[tuple[Prompt, str]]) -> Future[list[Verdict]]:
        """A verdict for each (prompt, response), in order; those that are known there and then."""
        keys = [self._key(prompt, response) for prompt, response in items]
        known = self._known(set(keys))
        self._scored |= any(verdict.outcome is not Outcome.UNSCORED for verdict in known.values())
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        if self.remote:
            waited = {key: self._waited(key, *item) for key, item in new.items()}
            return all_of([waited[key] if key in waited else done(known[key]) for key in keys])
        try:
            known |= self._called(new)
        except Exception as error:
            return failed(error)
        return done([known[key] for key in keys])

    def unanswered(self, items: Sequence[tuple[Prompt, str]]) -> dict[Key, tuple[Prompt, str]]:
        """What is not known: prompt and judged text by key."""
        keyed = {self._key(prompt, response): (prompt, self._judged(response)) for prompt, response in items}
        known = self._known(keyed.keys())
        return {key: item for key, item in keyed.items() if key not in known and item[1] is not None}

    def put(self) -> None:
        """Puts on disk what is not there yet, and what it has cost.

        Raises:
          RunError: the disk does not take it; the next call tries again.
        """
        if self._ledger is None:
            return
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if fresh or self.remote:
            try:
                self._ledger.put(fresh, self._spent())
            except BaseException:
                with self._lock:
                    self._fresh = fresh | self._fresh
                raise

    def _key(self, prompt: Prompt, response: str) -> Key:
        return Key.of(self.identity, prompt, response, whole=self._whole)

    def _known(self, keys: set[Key]) -> dict[Key, Verdict]:
        """What was said of these before."""
        known = {} if self._ledger is None else self._ledger.get(keys)
        if self._again:
            known = {key: verdict for key, verdict in known.items() if verdict.outcome is not Outcome.UNSCORED}
        return known | {key: self._without[key] for key in keys if key in self._without}

    def _judged(self, response: str) -> str | None:
        """The part of a response that is judged; None where it never came to that."""
        return response if self._reasoning else text.judged_text(response, thinking=self._thinking)

    def _called(self, new: dict[Key, tuple[Prompt, str]]) -> dict[Key, Verdict]:
        if not new:
            return {}
        fresh, keys, size = {}, list(new), max(_PIECE, getattr(self.judge, "at_once", 1))
        put = time.monotonic()
        for begin in range(0, len(keys), size):
            some = keys[begin : begin + size]
            items = [new[key] for key in some]
            answers = judge_rollouts(self.judge, items, thinking=self._thinking, reasoning=self._reasoning)
            for key, verdict in zip(some, answers, strict=True):
                self._take(key, verdict)
                fresh[key] = verdict
            if begin + size >= len(keys) or time.monotonic() - put > _EVERY:
                self.put()
                put = time.monotonic()
            self._give_up()
        return fresh

    def _waited(self, key: Key, prompt: Prompt, response: str) -> Future[Verdict]:
        """The answer that is under way, or asked for here."""
        if (judged := self._judged(response)) is None:
            return done(unscored(text.UNFINISHED))
        with self._lock:
            if key not in self._asked:
                # It may have been answered since it was looked for.
                if (known := self._known({key}).get(key)) is not None:
                    return done(known)
                self._asked[key] = self._loop.submit(self._ask(key, prompt, judged))
            return self._asked[key]

    async def _ask(self, key: Key, prompt: Prompt, judged: str) -> Verdict:
        try:
            try:
                verdict = await self.judge.ask(prompt, judged)
                self._take(key, verdict)
                self._give_up()
            finally:
                # Whatever came of it was paid for.
                if self._commit is None:
                    self._commit = asyncio.ensure_future(self._soon())
                    self._commit.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(self._commit)
            return verdict
        except (SystemExit, KeyboardInterrupt) as error:
            # They would end the loop, and nobody would be told.
            raise JudgeError(f"judge {self.judge.identity} raised {type(error).__name__}: {error}") from None
        finally:
            with self._lock:
                del self._asked[key]

    async def _soon(self) -> None:
        await asyncio.sleep(_TOGETHER)
        self._commit = None
        await asyncio.to_thread(self.put)

    def _take(self, key: Key, verdict: Verdict) -> None:
        """Remembers a verdict, and counts."""
        scored = verdict.outcome is not Outcome.UNSCORED
        with self._lock:
            if scored or "reply" in verdict.fields:
                self._fresh[key] = verdict
            if not scored:
                self._without[key] = verdict
        if scored:
            self._scored = True
            return
        # A response that never came to its answer says nothing of the judge.
        self._silent += verdict.fields.get("reason") != text.UNFINISHED

    def _give_up(self) -> None:
        if not self._scored and self._silent >= GIVE_UP:
            reason = next(reversed(self._without.values())).fields.get("reason", NO_REASON)
            raise JudgeError(
                f"judge {self.judge.identity} could score none of the first {self._silent} responses ({reason}); "
                "mend it and give the same command again: what was drawn is kept"
            )

    def _spent(self) -> dict[str, tuple[int, int, int]]:
        if not self.remote:
            return {}
        meter = self.judge.meter
        own = meter.calls, meter.input_tokens, meter.output_tokens
        return {self.identity: tuple(a + b for a, b in zip(self._before, own, strict=True))}
