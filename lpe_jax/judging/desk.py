"""Where responses are handed in and verdicts come back: every distinct response judged once, by one judge or by two.

A judge that is called answers there and then; one that is waited for (RemoteJudge) answers while the caller goes on.
Either way what is handed in gives a Future of its verdicts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from lpe_jax.judging.base import RemoteJudge
from lpe_jax.judging.cascade import AnyJudge, Cascade, audited, joined
from lpe_jax.judging.futures import then
from lpe_jax.judging.loop import Loop
from lpe_jax.judging.remembered import Remembered
from lpe_jax.records.ledger import Key, Ledger
from lpe_jax.types import Outcome, Prompt, Verdict

# Calls that are under way when a run stops may end within so many seconds: they are paid for.
GRACE = 8.0

Spent = tuple[int, int, int]  # calls, input and output tokens


@dataclasses.dataclass(frozen=True)
class Item:
    """What is handed in: a response to a prompt. tag tells rollouts of one prompt apart, whatever their text."""

    prompt: Prompt
    response: str
    tag: str = ""


class Desk:
    """Judges responses and remembers the verdicts.

    Use it within `with`, and within that of the ledger that it remembers in: when it closes, calls that are under way
    end, and what they said is put there.
    """

    def __init__(self, judge: AnyJudge, *, thinking: bool, reasoning: bool = False, again: bool = False):
        """
        Args:
          thinking: responses begin with reasoning.
          reasoning: reasoning is judged too.
          again: ask again about what a judge did reply to without a verdict.
        """
        self._loop, self._cascade = Loop(), judge if isinstance(judge, Cascade) else None
        judges = (judge.screen, judge.confirm) if isinstance(judge, Cascade) else (judge,)
        self._judges = [Remembered(j, self._loop, thinking, reasoning, again) for j in judges]
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False

    def open(self, spent: Mapping[str, Spent] | None = None) -> None:
        """Has judges show that they can be used.

        Args:
          spent: what each has cost the run before, by what a ledger knows it by.

        Raises:
          JudgeError: one cannot, or the budget holds no call.
        """
        for judge, known_as in self.remote:
            judge.reckon(*(spent or {}).get(known_as, (0, 0, 0)))
        for judge, _ in self.remote:
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
            pairs = [(items[i].prompt, items[i].response) for i in chosen]
            if pairs and screen.remote and not confirm.remote:
                # This is the event loop's thread, whose other calls would wait for as long as this judge takes.
                asked = self._elsewhere().submit(lambda: confirm.submit(pairs).result())
            else:
                asked = confirm.submit(pairs)
            then(asked, lambda second: confirmed(first, chosen, second), out)

        then(screen.submit([(item.prompt, item.response) for item in items]), screened, out)
        return out

    def _chosen(self, items: Sequence[Item], first: Sequence[Verdict]) -> list[int]:
        """Which of the items the second judge looks at."""
        pairs = enumerate(zip(items, first, strict=True))
        share = self._cascade.audit
        return [
            i for i, (item, v) in pairs if v.outcome is not Outcome.REFUSED or audited(item.prompt.id, item.tag, share)
        ]

    def _elsewhere(self) -> ThreadPoolExecutor:
        """A thread for a judge that is called."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="judge")
        return self._worker

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
    def remote(self) -> list[tuple[RemoteJudge, str]]:
        """The judges that are waited for, and what a ledger knows them by."""
        return [(remembered.judge, remembered.identity) for remembered in self._judges if remembered.remote]

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
        """Begins no further calls, lets those under way end, puts on disk what they said, and goes."""
        if self._closed:
            return
        self._closed = True
        for judge, _ in self.remote:
            self._loop.submit(judge.stop()).result()
        self._loop.close(GRACE, [judge.close for judge, _ in self.remote])
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
        # Each, whatever becomes of the other.
        with contextlib.ExitStack() as last:
            for remembered in self._judges:
                last.callback(remembered.put)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
