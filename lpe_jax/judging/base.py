"""What a judge is."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lpe_jax.types import Outcome, Prompt, Verdict


class Judge(Protocol):
    """A callable that gives each (prompt, judged text) a verdict, in order.

    identity says what the verdicts depend on: two judges with one identity give the same verdicts. It is part
    of a run's identity, so it names the judge and carries a digest of whatever decides its verdicts (lists,
    prompts to a model, source).

    A judge answers unscored, with the reason in the fields, wherever it cannot tell: it is never refused by
    default. Fields hold JSON values only, as they are kept in the ledger.

    Two more attributes are optional: note, a sentence for the user; and at_once, a number of items that cost it as much
    as one, which is then what it is given where there are as many.
    """

    identity: str

    def __call__(self, items: Sequence[tuple[Prompt, str]]) -> list[Verdict]: ...


@runtime_checkable
class RemoteJudge(Protocol):
    """A judge that is waited for, as it is asked over a network: one item a call, and many calls at once.

    identity and verdicts are as of a Judge. Its coroutines run in one event loop, in a thread of its own.

    Attributes:
      meter: what it has cost since this process began.
    """

    identity: str
    meter: Meter

    async def open(self) -> None:
        """Called once, before anything is drawn: shows that the judge can be used.

        Raises:
          JudgeError: it cannot.
        """

    async def ask(self, prompt: Prompt, text: str) -> Verdict:
        """The verdict on one item; unscored where the judge gave none however often it was asked.

        Raises:
          JudgeError: no further call can succeed, for want of a key, money, budget or an answer to any call.
        """

    def reckon(self, calls: int, input_tokens: int, output_tokens: int) -> None:
        """Told before `open` what this judge has cost the run before."""

    async def stop(self) -> None:
        """Begins nothing further: whoever waits for a turn gets a JudgeError. What is under way goes on."""

    async def close(self) -> None:
        """Lets go of connections."""


@dataclasses.dataclass
class Meter:
    """What a judge's calls come to.

    Attributes:
      calls: that were answered or waited for in vain, and so may have been billed; input_tokens and output_tokens of
        those, as far as the judge said.
      failures: calls that came to nothing, by what happened, as "429" or "timeout".
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, calls: int, input_tokens: int, output_tokens: int) -> None:
        """Adds what was answered."""
        self.calls += calls
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    def as_json(self) -> dict[str, Any]:
        """For a line of metrics."""
        return {**vars(self), "failures": dict(self.failures)}

    def cost(self, prices: tuple[float, float]) -> float:
        """In the currency of prices for a million input and output tokens."""
        return (self.input_tokens * prices[0] + self.output_tokens * prices[1]) / 1e6


def unscored(reason: str, **fields: object) -> Verdict:
    """The verdict of a judge that cannot tell, and why."""
    return Verdict(Outcome.UNSCORED, {"reason": reason, **fields})


def masked(spec: str) -> str:
    """A judge as it was given, without what may be a user and a password in a URL."""
    return re.sub(r"//[^/@#\s]*@", "//…@", spec)


def source_digest(files: Iterable[Path]) -> str:
    """16 hex digits of sha256 over the files' bytes, in order: enough to tell any two versions apart."""
    sums = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(sums).hexdigest()[:16]
