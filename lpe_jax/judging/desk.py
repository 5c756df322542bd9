"""Where responses are handed in and verdicts come back: every distinct response judged once, by one judge or by two.

A judge that is called answers there and then; one that is waited for (RemoteJudge) answers while the caller goes on.
Either way what is handed in gives a Future of its verdicts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from lpe_jax.errors import JudgeError
from lpe_jax.judging import text
from lpe_jax.judging.base import Judge, RemoteJudge, source_digest, unscored
from lpe_jax.judging.cascade import AnyJudge, Cascade, audited, joined
from lpe_jax.judging.loop import Loop
from lpe_jax.judging.registry import judge_rollouts
from lpe_jax.records.ledger import Key, Ledger
from lpe_jax.types import Outcome, Prompt, Verdict

# So many responses without a single verdict, and the judge counts as broken.
GIVE_UP = 100
# Verdicts that come within so many seconds of each other are put on disk together.
_TOGETHER = 0.01
# What is under way when a run stops may end within so many seconds: it is paid for.
_GRACE = 3.0


@dataclasses.dataclass(frozen=True)
class Item:
    """What is handed in: a response to a prompt. tag tells rollouts of one prompt apart, whatever their text."""

    prompt: Prompt
    response: str
    tag: str = ""


class Desk:
    """Judges responses and remembers the verdicts.

    Unscored is not remembered: it can mean that the judge failed this once, and is asked again when a run is resumed.
    """

    def __init__(self, judge: AnyJudge, *, thinking: bool, reasoning: bool = False):
        """
        Args:
          thinking: responses begin with reasoning.
          reasoning: reasoning is judged too.
        """
        self._loop, self._cascade = Loop(), judge if isinstance(judge, Cascade) else None
        judges = (judge.screen, judge.confirm) if isinstance(judge, Cascade) else (judge,)
        self._judges = [_Remembered(j, self._loop, thinking, reasoning) for j in judges]

    def open(self) -> None:
        """Has judges show that they can be used.

        Raises:
          JudgeError: one cannot.
        """
        for judge in self.remote:
            self._loop.submit(judge.open()).result()

    def remember(self, ledger: Ledger) -> None:
        """Goes on from a ledger, in which verdicts are kept from now on."""
        for remembered in self._judges:
            remembered.remember(ledger)

    def submit(self, items: Sequence[Item]) -> Future[list[Verdict]]:
        """One verdict for each item, in order.

        The future raises JudgeError where judging cannot go on; what was judged until then is kept.
        """
        if self._cascade is None:
            return self._judges[0].submit([(item.prompt, item.response) for item in items])
        out: Future[list[Verdict]] = Future()
        screen, confirm = self._judges

        def confirmed(first: Sequence[Verdict], chosen: Sequence[int], second: Sequence[Verdict]) -> None:
            found = dict(zip(chosen, second, strict=True))
            out.set_result([joined(verdict, found.get(i)) for i, verdict in enumerate(first)])

        def screened(first: Sequence[Verdict]) -> None:
            chosen = self._chosen(items, first)
            asked = confirm.submit([(items[i].prompt, items[i].response) for i in chosen])
            _then(asked, lambda second: confirmed(first, chosen, second), out)

        _then(screen.submit([(item.prompt, item.response) for item in items]), screened, out)
        return out

    def _chosen(self, items: Sequence[Item], first: Sequence[Verdict]) -> list[int]:
        """Which of the items the second judge looks at."""
        pairs = enumerate(zip(items, first, strict=True))
        share = self._cascade.audit
        return [
            i for i, (item, v) in pairs if v.outcome is not Outcome.REFUSED or audited(item.prompt.id, item.tag, share)
        ]

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """submit, waited for."""
        return self.submit(items).result()

    def unanswered(self, items: Sequence[Item]) -> dict[Key, tuple[Prompt, str]]:
        """What the judge, or the second of two, has not been asked yet and is to be: prompt and judged text by key."""
        if self._cascade is not None:
            first = self._judges[0].submit([(item.prompt, item.response) for item in items]).result()
            items = [items[i] for i in self._chosen(items, first)]
        return self._judges[-1].unanswered([(item.prompt, item.response) for item in items])

    @property
    def remote(self) -> list[RemoteJudge]:
        """The judges that are waited for."""
        return [remembered.judge for remembered in self._judges if remembered.remote]

    @property
    def notes(self) -> list[str]:
        """What judges have to say of themselves, a sentence each."""
        judges = (remembered.judge for remembered in self._judges)
        return [judge.note for judge in judges if getattr(judge, "note", None)]

    @property
    def at_once(self) -> int:
        """How many responses are best handed in together."""
        return max(getattr(remembered.judge, "at_once", 1) for remembered in self._judges)

    def close(self) -> None:
        """Lets what is under way end, for a moment, and goes."""
        self._loop.close(_GRACE, [judge.close for judge in self.remote])

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def remembered_as(identity: str, thinking: bool, reasoning: bool = False) -> str:
    """What a ledger knows a judge by: what is cut away before judging decides verdicts too."""
    how = "all" if reasoning else f"text@{source_digest([Path(text.__file__)])}"
    return f"{identity};thinking={thinking};{how}"


class _Remembered:
    """One judge and what it has said."""

    def __init__(self, judge: Judge | RemoteJudge, loop: Loop, thinking: bool, reasoning: bool):
        self.judge, self.remote = judge, isinstance(judge, RemoteJudge)
        self._loop, self._thinking, self._reasoning = loop, thinking, reasoning
        self._ledger: Ledger | None = None
        self._scored, self._unscored = False, 0
        self.identity = remembered_as(judge.identity, thinking, reasoning)
        self._lock = threading.Lock()
        self._asked: dict[Key, Future[Verdict]] = {}  # and not answered yet
        self._fresh: dict[Key, Verdict] = {}  # and not on disk yet
        self._commit: asyncio.Task | None = None

    def remember(self, ledger: Ledger) -> None:
        self._ledger = ledger
        if self.remote:
            self.judge.meter.add(*ledger.spent(self.identity))
            # With what the first call came to.
            ledger.put({}, self._spent())

    def unanswered(self, items: Sequence[tuple[Prompt, str]]) -> dict[Key, tuple[Prompt, str]]:
        keyed = {
            Key.of(self.identity, prompt, response): (prompt, self._judged(response)) for prompt, response in items
        }
        known = {} if self._ledger is None else self._ledger.get(keyed)
        return {key: item for key, item in keyed.items() if key not in known and item[1] is not None}

    def _judged(self, response: str) -> str | None:
        """The part of a response that is judged; None where it never came to that."""
        return response if self._reasoning else text.judged_text(response, thinking=self._thinking)

    def _spent(self) -> dict[str, tuple[int, int, int]]:
        meter = self.judge.meter
        return {self.identity: (meter.calls, meter.input_tokens, meter.output_tokens)}

    def submit(self, items: Sequence[tuple[Prompt, str]]) -> Future[list[Verdict]]:
        keys = [Key.of(self.identity, prompt, response) for prompt, response in items]
        known = {} if self._ledger is None else self._ledger.get(set(keys))
        self._scored |= bool(known)
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        if self.remote:
            waited = {key: self._waited(key, item) for key, item in new.items()}
            return _all([waited[key] if key in waited else _done(known[key]) for key in keys])
        try:
            known |= self._called(new)
        except Exception as error:
            failed: Future[list[Verdict]] = Future()
            failed.set_exception(error)
            return failed
        return _done([known[key] for key in keys])

    def _called(self, new: dict[Key, tuple[Prompt, str]]) -> dict[Key, Verdict]:
        if not new:
            return {}
        items = list(new.values())
        answers = judge_rollouts(self.judge, items, thinking=self._thinking, reasoning=self._reasoning)
        fresh = dict(zip(new, answers, strict=True))
        if self._ledger is not None:
            self._ledger.put({key: v for key, v in fresh.items() if v.outcome is not Outcome.UNSCORED})
        self._scored |= any(v.outcome is not Outcome.UNSCORED for v in fresh.values())
        for verdict in fresh.values():
            self._count(verdict)
        return fresh

    def _waited(self, key: Key, item: tuple[Prompt, str]) -> Future[Verdict]:
        """The answer that is under way, or asked for here."""
        prompt, response = item
        if (judged := self._judged(response)) is None:
            return _done(unscored(text.UNFINISHED))
        with self._lock:
            if key not in self._asked:
                self._asked[key] = self._loop.submit(self._ask(key, prompt, judged))
            return self._asked[key]

    async def _ask(self, key: Key, prompt: Prompt, judged: str) -> Verdict:
        try:
            verdict = await self.judge.ask(prompt, judged)
            if verdict.outcome is Outcome.UNSCORED:
                self._count(verdict)
                return verdict
            self._scored = True
            if self._ledger is not None:
                self._fresh[key] = verdict
                if self._commit is None:
                    self._commit = asyncio.ensure_future(self._put())
                await asyncio.shield(self._commit)
            return verdict
        finally:
            with self._lock:
                del self._asked[key]

    async def _put(self) -> None:
        await asyncio.sleep(_TOGETHER)
        fresh, self._fresh, self._commit = self._fresh, {}, None
        await asyncio.to_thread(self._ledger.put, fresh, self._spent())

    def _count(self, verdict: Verdict) -> None:
        self._unscored += verdict.outcome is Outcome.UNSCORED
        if not self._scored and self._unscored >= GIVE_UP:
            reason = verdict.fields.get("reason", "no reason given")
            raise JudgeError(
                f"judge {self.judge.identity} could score none of the first {self._unscored} responses ({reason}); "
                "mend it and give the same command again: what was drawn is kept"
            )


def _done(value):
    future: Future = Future()
    future.set_result(value)
    return future


def _then(first: Future, go_on: Callable[[object], None], out: Future) -> None:
    """go_on(result) once there is one; whatever is raised is out's."""

    def called(first: Future) -> None:
        try:
            go_on(first.result())
        except BaseException as error:
            out.set_exception(error)

    first.add_done_callback(called)


def _all(futures: Sequence[Future[Verdict]]) -> Future[list[Verdict]]:
    """The results of all, once all are there; the first exception as soon as there is one."""
    out: Future[list[Verdict]] = Future()
    if not futures:
        out.set_result([])
        return out
    lock, left = threading.Lock(), len(futures)

    def called(future: Future[Verdict]) -> None:
        nonlocal left
        error = future.exception() if not future.cancelled() else JudgeError("judging was stopped")
        with lock:
            left -= 1
            if out.done():
                return
            if error is not None:
                out.set_exception(error)
            elif left == 0:
                out.set_result([f.result() for f in futures])

    for future in futures:
        future.add_done_callback(called)
    return out
