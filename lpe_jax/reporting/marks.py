"""What stands in a path's figure and what it is called, for figures.py and svg.py to draw alike.

One code of marks. Colour says what a rate is to the estimate: fitted (dark, filled), not fitted (light, hollow), or
held against it (ink). Shape says what was seen: a point where any complied, a triangle at the upper end of the interval
where none did. A hollow star is a rate that the estimator does not stand by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.reporting.curves import curve_of
from lpe_jax.reporting.ground import fitted_at_one
from lpe_jax.reporting.table import PromptResult, stood_by, unfitted
from lpe_jax.types import Counts

# What is held against an estimate stands beside it, so far in alpha.
ASIDE = 0.04
FAN = "what the interval allows (no confidence band)"


@dataclasses.dataclass(frozen=True)
class Marks:
    """Marks of one kind: M log10 rates with their intervals at alphas, each [M].

    kind is "search", "light" (not fitted), "fitted", "estimate", "unsure" (an estimate that is not stood by), "check"
    or "truth". none: nothing complied; the rates are upper ends, without an interval. said has a word on each mark.
    """

    kind: str
    words: str
    alpha: np.ndarray
    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    none: bool = False
    said: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Line:
    """log10 rates at alphas, each [N]: the curve where it is a "fit", or "beyond" all alphas that were fitted, or the
    outline of a "fan", cut off at the foot of the picture.
    """

    kind: str
    words: str
    alpha: np.ndarray
    rate: np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """A path's figure: marks in the order in which they are drawn, and lines, which lie under them, the fan the lowest.

    bottom is the foot of the axis of rates, across are the ends of that of alphas; ticks are its only ones, or none to
    have round ones.
    """

    marks: tuple[Marks, ...]
    lines: tuple[Line, ...]
    bottom: float
    across: tuple[float, float]
    ticks: tuple[float, ...] = ()

    @property
    def named(self) -> tuple[Marks | Line, ...]:
        """As a legend has them: what was measured, the curve, the estimate and what is held against it."""
        measured = sum(marks.kind in ("search", "light", "fitted") for marks in self.marks)
        return (*self.marks[:measured], *self.lines, *self.marks[measured:])


def picture_of(result: PromptResult) -> Picture:
    """All that the figure of one prompt shows. Where rates are of a single alpha, as in naive sampling, there is no
    path: the star is the rate measured there.
    """
    estimate = result.estimate
    alpha = np.asarray(result.fit.alpha, float)
    alone = len(alpha) == 1 and result.search is None and math.isnan(float(estimate.slope))
    at = float(alpha[0]) if alone else 1.0
    aside = _aside(result, at)
    marks = (*_measured(result, alone), *_estimated(result, at), *aside)
    bottom = bottom_of((v for m in marks for v in m.rate), (v for m in marks for v in m.low))
    lines = _lines(result, bottom)
    if alone:
        return Picture(marks, lines, bottom, (at - 5 * ASIDE, at + 5 * ASIDE), (at,))
    across = (min(0.0, float(alpha.min())) - 0.03, max(1.0, float(alpha.max())) + 0.03 + ASIDE * len(aside))
    return Picture(marks, lines, bottom, across)


def _lines(result: PromptResult, bottom: float) -> tuple[Line, ...]:
    curve = curve_of(result)
    if curve is None:
        return ()
    pieces = (("fit", "fit", curve.alpha <= curve.last), ("beyond", "extrapolation", curve.alpha >= curve.last))
    fan = np.concatenate([_above(curve.alpha, curve.high, bottom), _above(curve.alpha, curve.low, bottom)[::-1]])
    return (
        *(Line(kind, words, curve.alpha[c], curve.fit[c]) for kind, words, c in pieces if c.sum() > 1),
        Line("fan", FAN, *fan.T),
    )


def _measured(result: PromptResult, alone: bool) -> list[Marks]:
    """The rates of search and fit; of a single alpha only that none complied, as the star says all else."""
    found = []
    if result.search is not None:
        alpha, rate, *_ = points_of(result.search)
        cells = np.isfinite(rate)
        found.append(Marks("search", "search", alpha[cells], *[rate[cells]] * 3))
    alpha, rate, low, high = points_of(result.fit)
    scored, complied = (np.asarray(x, float) for x in (result.fit.scored, result.fit.complied))
    used, hit, zero = np.asarray(result.estimate.used, bool), np.isfinite(rate), rate == -np.inf
    for kind, name, chosen in (("light", "not fitted", ~used), ("fitted", "fitted", used)):
        cells = hit & chosen & (not alone)
        said = tuple(
            f"α = {a:g}: {k:.0f} of {n:.0f} complied"
            for a, k, n in zip(alpha[cells], complied[cells], scored[cells], strict=True)
        )
        found.append(Marks(kind, name, alpha[cells], rate[cells], low[cells], high[cells], said=said))
    for kind, name, chosen in (("light", "not fitted", ~used), ("fitted", "fitted", used)):
        cells = zero & chosen
        said = tuple(f"α = {a:g}: none of {n:.0f} complied" for a, n in zip(alpha[cells], scored[cells], strict=True))
        words = f"none complied, {name}: upper end"
        found.append(Marks(kind, words, alpha[cells], *[high[cells]] * 3, none=True, said=said))
    return [marks for marks in found if len(marks.alpha)]


def _estimated(result: PromptResult, at: float) -> list[Marks]:
    """The estimate; none where nothing complied and only an upper end is known."""
    rate, low, high = (np.array([float(getattr(result.estimate, x))]) for x in ("log10_rate", "low", "high"))
    if not np.isfinite(rate).all():
        return []
    if unfitted(result):
        kind, words = "unsure", "no fit: a default"
    elif not stood_by(result):
        kind, words = "unsure", "estimate, not identified"
    else:
        kind, words = "estimate", "estimate"
    return [Marks(kind, words, np.array([at]), rate, low, high)]


def _aside(result: PromptResult, at: float) -> list[Marks]:
    """What the estimate is held against: the truth, and those naive rollouts that it is not fitted to."""
    found = []
    if result.truth is not None and math.isfinite(result.truth[0]):
        truth, error = result.truth
        spread = 1.96 * error if math.isfinite(error) else 0.0
        ends = (np.array([value]) for value in (truth, truth - spread, truth + spread))
        found.append(Marks("truth", "truth (set aside)", np.array([at + ASIDE]), *ends))
    if result.naive is not None:
        complied, scored = (all_of - own for all_of, own in zip(result.naive, fitted_at_one(result), strict=True))
        alpha = np.array([at + ASIDE * (1 + len(found))])
        counts = Counts(alpha, np.array([scored]), np.array([complied]))
        _, rate, low, high = points_of(counts)
        words, said = "naive check (set aside)", (f"naive check: {complied:,} of {scored:,} complied",)
        if complied > 0:
            found.append(Marks("check", words, alpha, rate, low, high, said=said))
        elif scored > 0:
            words = "naive check (set aside), none complied: upper end"
            found.append(Marks("check", words, alpha, high, high, high, none=True, said=said))
    return found


def points_of(counts: Counts) -> tuple[np.ndarray, ...]:
    """The drawn cells of counts as (alpha, log10 rate, log10 low, log10 high), each [A]; NaN where not drawn."""
    alpha, scored, complied = (np.asarray(x, float) for x in (counts.alpha, counts.scored, counts.complied))
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.log10(complied / scored)
    low, high = clopper_pearson_log10(complied, scored)
    return alpha, rate, low, high


def bottom_of(values: Iterable[float], ends: Iterable[float]) -> float:
    """The lower end of a rate axis: room for all values, and for interval ends within four decades below them."""
    lowest = min([-2.0, *(float(v) for v in values if np.isfinite(v))])
    return max(min([lowest, *(float(v) for v in ends if np.isfinite(v))]), lowest - 4.0) - 0.4


def _above(alpha: np.ndarray, rate: np.ndarray, bottom: float) -> np.ndarray:
    """A falling curve as corners [V, 2]; from where it crosses the bottom it goes on along it."""
    corners = np.stack([alpha, np.maximum(rate, bottom)], axis=1)
    (falls,) = np.nonzero((rate[:-1] > bottom) & (rate[1:] < bottom))
    if not falls.size:
        return corners
    i = int(falls[0])
    where = alpha[i] + (rate[i] - bottom) / (rate[i] - rate[i + 1]) * (alpha[i + 1] - alpha[i])
    return np.insert(corners, i + 1, [where, bottom], axis=0)
