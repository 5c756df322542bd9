"""How judges that are models are asked, beside which they are."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from lpe_jax.errors import JudgeError


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most that a run may spend on its judge: so many calls, or so much money; None is no bound."""

    calls: int | None = None
    money: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Of "5000calls", or an amount such as "20" or "12.50".

        Raises:
          JudgeError: it is neither.
        """
        if match := re.fullmatch(r"(\d{1,15}) ?calls?", text):
            return cls(calls=int(match[1]))
        if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text):
            return cls(money=float(text))
        raise JudgeError(
            f"--judge_budget={text} must be a number of calls, as 5000calls, or an amount of money, as 12.50"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """What is asked of a judge; each judge takes what concerns it.

    Attributes:
      template: a rubric's text: a file, or "inspect" for the one of the inspect-evals package; None is our own.
      key_env: the environment variable that holds the key; None is OPENAI_API_KEY for OpenAI's own address, and no
        key for others.
      budget: the most that may be spent.
      prices: of a million input and output tokens.
      connections: calls under way at once, at most.
      timeout: seconds that a call may take.
      mapping: which fields of a guard model's answer mean that the response complied, a key of
        lpe_jax.judging.guard.MAPPINGS.
      batch_size: rows of a judge that runs on this machine's device.
      again: ask again about responses that went unscored though the judge did reply.
      processes: so many share the budget.
      purse: what is left of it, where several judges share one; a lpe_jax.judging.purse.Purse.
    """

    template: str | None = None
    key_env: str | None = None
    budget: Budget = Budget()
    prices: tuple[float, float] | None = None
    connections: int = 64
    timeout: float = 120.0
    mapping: str = "refusal"
    batch_size: int = 16
    again: bool = False
    processes: int = 1
    purse: Any = dataclasses.field(default=None, compare=False, repr=False)

    def shared(self, processes: int) -> JudgeSettings:
        """The same for one of several processes, which share the budget.

        Raises:
          JudgeError: the budget is too small to be shared.
        """
        if self.budget.calls is not None and self.budget.calls < processes:
            raise JudgeError(
                f"--judge_budget={self.budget.calls}calls does not hold a call for each of {processes} processes"
            )
        return dataclasses.replace(self, processes=processes)
