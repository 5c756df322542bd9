"""What a run may still spend on its judges."""

from __future__ import annotations

from lpe_jax.errors import JudgeError
from lpe_jax.judging.base import Meter
from lpe_jax.judging.settings import Budget


class Purse:
    """Calls are reserved before they are made, so that those under way at once do not overrun the budget together.

    The budget is the whole run's: what it had spent before counts (`start`), whoever spent it, and of what is left each
    of the processes that share a run may spend as much. Two judges of a run have one purse. A call under way counts for
    what calls have cost on average so far.
    """

    def __init__(self, budget: Budget, prices: tuple[float, float] | None, processes: int = 1):
        self._budget, self._prices, self._processes = budget, prices or (0.0, 0.0), processes
        self._before, self._meters, self._reserved = Meter(), [], 0

    def meter(self) -> Meter:
        """A meter of calls that are paid from here; it begins at nothing."""
        self._meters.append(meter := Meter())
        return meter

    def start(self, calls: int, input_tokens: int, output_tokens: int) -> None:
        """Adds what was spent before."""
        self._before.add(calls, input_tokens, output_tokens)

    def reserve(self, calls: int = 1) -> None:
        """Sets calls aside.

        Raises:
          JudgeError: the budget does not hold them.
        """
        made, cost = (
            before + self._processes * own
            for before, own in (
                (self._before.calls, sum(meter.calls for meter in self._meters)),
                (self._before.cost(self._prices), sum(meter.cost(self._prices) for meter in self._meters)),
            )
        )
        more = self._processes * (self._reserved + calls)
        if self._budget.calls is not None and made + more > self._budget.calls:
            self._spent(f"{self._budget.calls:,} calls", f"{made:,} were made")
        if self._budget.money is not None and cost + more * cost / max(made, 1) > self._budget.money:
            self._spent(f"{self._budget.money:,.2f}", f"{cost:,.2f} were spent")
        self._reserved += calls

    def hold(self, calls: int) -> None:
        """Sets calls aside that are under way already, whatever the budget holds."""
        self._reserved += calls

    def release(self, calls: int = 1) -> None:
        """They were answered, and are on the meter, or came to nothing."""
        self._reserved -= calls

    def check_usage(self, name: str) -> None:
        """Looks at the first answer.

        Raises:
          JudgeError: the budget is in money, and the server does not say what it used.
        """
        if self._budget.money is not None and not any(meter.input_tokens for meter in (self._before, *self._meters)):
            raise JudgeError(
                f"judge {name} does not say how many tokens it used, so that no amount of money bounds it; give "
                "--judge_budget as a number of calls, as 5000calls"
            )

    def _spent(self, budget: str, so_far: str) -> None:
        raise JudgeError(
            f"the judge's budget of {budget} holds no further call ({so_far}, {self._reserved} are under way); give "
            "the same command again with a larger --judge_budget to go on: what was drawn and judged is kept"
        )
