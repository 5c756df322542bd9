"""Methods compared on one bank: every measure of every (method, budget), and the curves of Figure 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lpe_jax.evaluation.auroc import auroc
from lpe_jax.evaluation.measures import Curve, Labels, errors, factor, ranks
from lpe_jax.evaluation.trials import Outcomes, Plan, run, run_naive
from lpe_jax.types import Bank

NAIVE_BUDGETS = (30, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
SPENT = ("rollouts", "tokens", "passes")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was found; outcomes are those with intervals where there are any."""

    rows: list[dict[str, object]]  # one for each label, method and budget
    curves: dict[str, list[Curve]]  # by label
    outcomes: dict[str, Outcomes]  # by method


def compare(
    bank: Bank,
    plans: Iterable[Plan],
    labels: Sequence[Labels],
    *,
    repeats: int = 500,
    interval_repeats: int = 25,
    seed: int = 0,
    naive_budgets: Sequence[int] = NAIVE_BUDGETS,
    tell: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Tries naive sampling and every plan.

    Args:
      labels: who is to be told from whom; each kind of label gets rows and curves of its own.
      repeats: random subsets behind every AUROC.
      interval_repeats: random subsets behind errors and coverage, and behind the AUROC of slow plans; at most repeats.
      tell: called with a method's name before it is run.

    Raises:
      ValueError: a label's population has no positive or no negative prompt, or a plan does not fit the bank.
    """
    for label in labels:
        if not 0 < label.positive[label.population].sum() < label.population.sum():
            raise ValueError(
                f"AUROC needs positive and negative prompts, and by the {label.name} labels "
                f"{label.positive[label.population].sum()} of {label.population.sum()} are positive: use more prompts."
            )
    naive_budgets, fewer = tuple(sorted(naive_budgets)), min(interval_repeats, repeats)
    by_label = {}
    for label in labels:
        drawn = {"rate": label.rate, "seed": seed}
        wide = run_naive(bank, naive_budgets, repeats=repeats, **drawn)
        exact = run_naive(bank, naive_budgets, repeats=fewer, intervals=True, **drawn)
        by_label[label.name] = _Judge(bank, label, ranks(wide, label), seed)
        by_label[label.name].add("naive", naive_budgets, wide, exact)
    outcomes = {}
    for plan in plans:
        tell(plan.name)
        exact = run(bank, plan, repeats=fewer, seed=seed, intervals=True) if plan.slow or plan.claims_rate else None
        wide = exact if plan.slow else run(bank, plan, repeats=repeats, seed=seed)
        for judge in by_label.values():
            judge.add(plan.name, plan.budgets, wide, exact if plan.claims_rate else None)
        outcomes[plan.name] = exact or wide
    return Comparison(
        [row for judge in by_label.values() for row in judge.rows],
        {name: judge.curves for name, judge in by_label.items()},
        outcomes,
    )


class _Judge:
    """Collects rows and curves by one kind of label."""

    def __init__(self, bank: Bank, label: Labels, naive: tuple[np.ndarray, dict[str, np.ndarray]], seed: int):
        self.bank, self.label, self.naive, self.seed = bank, label, naive, seed
        self.rows: list[dict[str, object]] = []
        self.curves: list[Curve] = []
        known = label.population & np.isfinite(bank.truth)
        self.about = {
            "labels": label.name,
            "prompts": int(label.population.sum()),
            "positives": int(label.positive[label.population].sum()),
            "ceiling": float(auroc(bank.truth, label.positive, known)),
        }

    def add(self, name: str, budgets: Sequence[int], wide: Outcomes, exact: Outcomes | None) -> None:
        """wide: for ranks. exact: with intervals, or None where no rate is claimed."""
        area, found = ranks(wide, self.label)
        columns = {"repeats": np.full(len(budgets), len(area)), **found}
        for spent in SPENT:
            ratio = factor(area, found[spent], self.naive[0], self.naive[1][spent], self.seed)
            ending = "" if spent == "rollouts" else f"_{spent}"
            columns |= {f"factor{ending}{end}": getattr(ratio, field) for end, field in _FACTOR_ENDS.items()}
        if exact is not None:
            columns |= errors(exact, self.bank, self.label.population)
            columns["interval_repeats"] = np.full(len(budgets), len(exact.log10_rate))
        self.rows += [
            {**self.about, "method": name, "budget": budget, **{key: column[i] for key, column in columns.items()}}
            for i, budget in enumerate(budgets)
        ]
        self.curves.append(Curve(name, found["rollouts"], found["auroc"], found["auroc_error"]))


_FACTOR_ENDS = {"": "value", "_low": "low", "_high": "high", "_bound": "bound"}
