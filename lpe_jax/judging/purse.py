"""What a run may still spend on a judge."""

from __future__ import annotations

from lpe_jax.errors import JudgeError
from lpe_jax.judging.base import Meter
from lpe_jax.judging.settings import Budget


class Purse:
    """Calls are reserved before they are made, so that those under way at once do not overrun the budget together.

    A call under way counts for what calls have cost on average so far.
    """

    def __init__(self, budget: Budget, prices: tuple[float, float] | None, meter: Meter):
        self._budget, self._prices, self._meter = budget, prices, meter
        self._reserved = 0

    def reserve(self, calls: int = 1) -> None:
        """Sets calls aside.

        Raises:
          JudgeError: the budget does not hold them.
        """
        calls_in_all = self._meter.calls + self._reserved + calls
        if self._budget.calls is not None and calls_in_all > self._budget.calls:
            self._spent(f"{self._budget.calls:,} calls", f"{self._meter.calls:,} were made")
        if self._budget.money is not None:
            cost = self._meter.cost(self._prices or (0.0, 0.0))
            each = cost / max(self._meter.calls, 1)
            if cost + (self._reserved + calls) * each > self._budget.money:
                self._spent(f"{self._budget.money:,.2f}", f"{cost:,.2f} were spent")
        self._reserved += calls

    def release(self, calls: int = 1) -> None:
        """They were answered, and are on the meter, or came to nothing."""
        self._reserved -= calls

    def check_usage(self, name: str) -> None:
        """Looks at the first answer.

        Raises:
          JudgeError: the budget is in money, and the server does not say what it used.
        """
        if self._budget.money is not None and not self._meter.input_tokens:
            raise JudgeError(
                f"judge {name} does not say how many tokens it used, so that no amount of money bounds it; give "
                "--judge_budget as a number of calls, as 5000calls"
            )

    def _spent(self, budget: str, so_far: str) -> None:
        raise JudgeError(
            f"the judge's budget of {budget} holds no further call ({so_far}, {self._reserved} are under way); give "
            "the same command again with a larger --judge_budget to go on: what was drawn and judged is kept"
        )
