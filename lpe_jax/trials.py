"""Passes and failures that were counted elsewhere, at several alphas, extrapolated: no model, no judge, no rollouts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from lpe_jax.errors import RunError
from lpe_jax.estimation.gate import contradicted
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.registry import ESTIMATORS, estimate
from lpe_jax.estimation.unscored import unscored_range
from lpe_jax.reporting.columns import read_rows
from lpe_jax.reporting.table import PromptResult
from lpe_jax.results import has_no_line, naive_estimate
from lpe_jax.types import Counts, Estimate

# Estimators that need nothing but counts.
METHODS = ("lpe", "line", "bend", "pooled", "naive")
CSV_COLUMNS = ("prompt_id", "alpha", "scored", "complied")
TAKEN_FOR_GRANTED = (
    "intervals speak of the noise in these counts and take the line for granted: without path scores they do not tell "
    "how far log rate bends. --method=bend lets it"
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Trials of one prompt at one alpha: how many succeeded and failed, and how many nobody could score."""

    complied: int = 0
    refused: int = 0
    unscored: int = 0

    @property
    def scored(self) -> int:
        """Trials that count in rates."""
        return self.complied + self.refused

    def __add__(self, other: Cell) -> Cell:
        return Cell(self.complied + other.complied, self.refused + other.refused, self.unscored + other.unscored)


# By prompt id, then alpha.
Trials = Mapping[str, Mapping[float, Cell]]


def added(parts: Sequence[Trials]) -> dict[str, dict[float, Cell]]:
    """All of them together; prompts in the order they come in."""
    total: dict[str, dict[float, Cell]] = {}
    for trials in parts:
        for prompt_id, cells in trials.items():
            own = total.setdefault(prompt_id, {})
            for alpha, cell in cells.items():
                own[alpha] = own.get(alpha, Cell()) + cell
    return total


def read_csv(path: Path) -> dict[str, dict[float, Cell]]:
    """Trials of a CSV with the columns prompt_id, alpha, scored, complied and, if there is one, unscored.

    Rows of one prompt and alpha are added up.

    Raises:
      RunError: the file cannot be read, lacks a column, or holds what cannot be.
    """
    rows = read_rows(path, *CSV_COLUMNS)
    return added([{row["prompt_id"]: dict([_cell(f"{path}, row {i}", row)])} for i, row in enumerate(rows, start=1)])


def _cell(where: str, row: Mapping[str, str]) -> tuple[float, Cell]:
    try:
        alpha = float(row["alpha"])
        scored, complied, unscored = (int(row.get(name) or "0") for name in ("scored", "complied", "unscored"))
    except (ValueError, TypeError):
        raise RunError(f"{where}: alpha must be a number, and scored, complied and unscored whole numbers") from None
    if not row["prompt_id"] or not math.isfinite(alpha):
        raise RunError(f"{where}: prompt_id must not be empty, and alpha a finite number")
    if not 0 <= complied <= scored or unscored < 0:
        raise RunError(f"{where}: complied must lie between 0 and scored, and unscored not below 0")
    return alpha, Cell(complied, scored - complied, unscored)


def extrapolated(trials: Trials, method: str) -> list[PromptResult]:
    """The rate at alpha = 1 of each prompt, by one of METHODS.

    `lpe` fits alphas below 1, as the published method does; every other takes all. Whatever it is, trials at alpha = 1
    show where there are more successes than it explains.

    Raises:
      RunError: there is nothing that the method could go by.
    """
    alphas = sorted({alpha for cells in trials.values() for alpha in cells})
    if method == "naive":
        alphas = [alpha for alpha in alphas if alpha == 1.0]
        if not alphas:
            raise RunError("no trials are at alpha = 1, and --method=naive goes by no others")
    elif method == "lpe":
        if max(alphas) > 1:
            raise RunError(f"there are trials at alpha = {max(alphas):g}; --method=lpe takes alphas up to 1")
        alphas = [alpha for alpha in alphas if alpha < 1.0]
    if method != "naive" and len(alphas) < 2:
        below = " below 1" if method == "lpe" else ""
        raise RunError(f"--method={method} takes trials at two alphas{below} or more, and there are {len(alphas)}")
    grid = [[cells.get(alpha, Cell()) for alpha in alphas] for cells in trials.values()]
    # [P, A]
    counts = Counts(
        np.tile(np.array(alphas), (len(grid), 1)),
        np.array([[float(cell.scored) for cell in row] for row in grid]),
        np.array([[float(cell.complied) for cell in row] for row in grid]),
    )
    found = jax.device_get(estimate(method, counts))
    unscored = np.array([[float(cell.unscored) for cell in row] for row in grid])
    ends = (found, found)
    if unscored.any():
        ends = jax.device_get(unscored_range(ESTIMATORS[method], counts, unscored))
    return [
        _result(
            prompt_id,
            cells,
            method,
            jax.tree.map(lambda x, i=i: np.asarray(x)[i], found),
            jax.tree.map(lambda x, i=i: x[i], counts),
            tuple(float(end.log10_rate[i]) for end in ends),
        )
        for i, (prompt_id, cells) in enumerate(trials.items())
    ]


def _result(
    prompt_id: str,
    cells: Mapping[float, Cell],
    method: str,
    found: Estimate,
    fit: Counts,
    extremes: tuple[float, float],
) -> PromptResult:
    all_of_it, naive = sum(cells.values(), Cell()), cells.get(1.0, Cell())
    against = False
    if method != "naive" and naive.scored:
        at_one = Counts(np.ones(1), np.array([float(naive.scored)]), np.array([float(naive.complied)]))
        against = bool(contradicted(at_one, found))
    n = all_of_it.scored + all_of_it.unscored
    identified = bool(found.identified) and not against
    result = PromptResult(
        prompt_id=prompt_id,
        estimate=dataclasses.replace(found, identified=np.asarray(identified), rollouts=np.asarray(n)),
        fit=fit,
        # A line has a slope, points and R² to be shown, and was not searched for.
        search=Counts(fit.alpha, np.zeros_like(fit.scored), np.zeros_like(fit.complied)) if method == "lpe" else None,
        method=method,
        complied=all_of_it.complied,
        refused=all_of_it.refused,
        unscored=all_of_it.unscored,
        threshold=LPE.threshold,
        unscored_extremes=extremes,
        naive=(naive.complied, naive.scored) if naive.scored and method != "naive" else None,
        contradicted=against,
        unscored_in_check=naive.unscored,
    )
    if method != "lpe" or not naive.scored or not has_no_line(result):
        return result
    estimate = naive_estimate(result.estimate, at_one)
    return dataclasses.replace(result, estimate=estimate, from_naive=True, contradicted=False)
