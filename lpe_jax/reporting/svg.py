"""Figures of a report as short SVG: colours and type are the page's classes, so that they follow its light and dark.

Everything that is not a number is escaped here. Rates are log10 on linear axes, as in reporting/figures.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from lpe_jax.reporting.ground import Ranked
from lpe_jax.reporting.marks import Line, Marks, bottom_of, picture_of
from lpe_jax.reporting.table import PromptResult, stood_by
from lpe_jax.reporting.text import format_interval, format_rate, printable, superscript

LEFT, RIGHT, TOP, FOOT = 66, 14, 12, 48


@dataclasses.dataclass(frozen=True)
class Frame:
    """A plot's size in pixels and the values at its edges."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float) -> float:
        """Pixels from the left."""
        low, high = self.x
        return LEFT + (x - low) / (high - low) * (self.width - LEFT - RIGHT)

    def up(self, y: float) -> float:
        """Pixels from the top; what lies outside is drawn on the edge."""
        low, high = self.y
        return self.height - FOOT - (min(max(y, low), high) - low) / (high - low) * (self.height - TOP - FOOT)


def decades(low: float, high: float, most: int = 8) -> list[int]:
    """Whole powers of ten between two log10, at most about so many."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    return [k for k in range(last, first - 1, -1) if (last - k) % every == 0]


def path_svg(result: PromptResult) -> str:
    """One prompt's path: the marks and lines of `picture_of`."""
    picture = picture_of(result)
    frame = Frame(560, 300, picture.across, (picture.bottom, 0.15))
    parts = _rates_up(frame)
    if picture.ticks:
        parts += [part for tick in picture.ticks for part in _tick_x(frame, tick, f"{tick:g}")]
    else:
        parts += _alphas_across(frame, *picture.across)
    parts += _names(frame, "α (0: variant, 1: original)", "compliance rate")
    if picture.across[0] < 1.0 < picture.across[1]:
        parts.append(f'<path class="guide" d="M{_n(frame.at(1.0))} {TOP}V{frame.height - FOOT}"/>')
    for line in reversed(picture.lines):
        corners = [f"{_n(frame.at(a))} {_n(frame.up(y))}" for a, y in zip(line.alpha, line.rate, strict=True)]
        parts.append(f'<path class="{line.kind}" d="M{"L".join(corners)}{"z" * (line.kind == "fan")}"/>')
    for marks in picture.marks:
        parts += _drawn(frame, marks)
    estimate = result.estimate
    point, *ends = (float(getattr(estimate, name)) for name in ("log10_rate", "low", "high"))
    said = f"estimate {format_interval(point, *ends)}" + (
        f", truth {format_rate(result.truth[0])}" if result.truth is not None else ""
    )
    label = f"Compliance rate against alpha for {printable(result.prompt_id)}: {said}"
    return _svg(frame, parts, label)


def path_legend(result: PromptResult) -> list[tuple[str, str]]:
    """What each kind of mark in `path_svg` stands for, of those that are there: a small SVG and words."""
    swatches = {"fit": "M1 6H15", "beyond": "M1 6H15", "fan": "M1 2H15V10H1z"}
    legend = []
    for part in picture_of(result).named:
        shape = swatches[part.kind] if isinstance(part, Line) else _shape(part, 8, 6)
        mark = f'<path class="{part.kind}" d="{shape}"/>'
        legend.append((f'<svg class="figure mark" viewBox="0 0 16 12" aria-hidden="true">{mark}</svg>', part.words))
    return legend


def _drawn(frame: Frame, marks: Marks) -> list[str]:
    """Marks over their bars; a bar that goes on below the axis ends in an arrowhead."""
    at = [(frame.at(a), frame.up(r)) for a, r in zip(marks.alpha, marks.rate, strict=True)]
    parts = []
    if (marks.high > marks.low).any():
        parts.append(_whiskers(frame, marks.alpha, marks.low, marks.high, marks.kind))
        foot = _n(frame.up(frame.y[0]))
        cut = "".join(
            f"M{_n(x - 4)} {foot}h8l-4 6z" for (x, _), low in zip(at, marks.low, strict=True) if low < frame.y[0]
        )
        parts += [f'<path class="arrow {marks.kind}" d="{cut}"/>'] * bool(cut)
    if not marks.said:
        return [*parts, f'<path class="{marks.kind}" d="{"".join(_shape(marks, *place) for place in at)}"/>']
    return parts + [
        f'<path class="{marks.kind}" d="{_shape(marks, *place)}"><title>{escape(said)}</title></path>'
        for place, said in zip(at, marks.said, strict=True)
    ]


def _shape(marks: Marks, x: float, y: float) -> str:
    """The outline of a mark at pixels x and y."""
    if marks.none:
        return f"M{_n(x - 4)} {_n(y - 3)}h8l-4 6.5z"
    if marks.kind == "search":
        return f"M{_n(x - 2.5)} {_n(y - 2.5)}l5 5m0-5l-5 5"
    if marks.kind == "truth":
        return f"M{_n(x)} {_n(y - 5)}l5 5l-5 5l-5-5z"
    if marks.kind in ("estimate", "unsure"):
        return _star(x, y + 0.5, 7.0)
    return f"M{_n(x - 3.6)} {_n(y)}a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z"


def strip_svg(result: PromptResult, lowest: float) -> str:
    """An estimate and its interval on a short axis of rates that all prompts of a table share; truth is a tick. An
    interval that goes on below the axis ends in an arrowhead.
    """
    estimate, width, height = result.estimate, 132, 18
    point, low, high = (float(getattr(estimate, name)) for name in ("log10_rate", "low", "high"))

    def at(value: float) -> float:
        return 4 + (max(value, lowest) - lowest) / -lowest * (width - 8)

    kind = "" if stood_by(result) else " doubt"
    grid = "".join(f"M{_n(at(k))} 0V{height}" for k in _strip_powers(lowest))
    parts = [f'<path class="grid" d="{grid}"/>', f'<path class="whisker{kind}" d="M{_n(at(low))} 9H{_n(at(high))}"/>']
    if low < lowest:
        parts.append(f'<path class="whisker{kind}" d="M5 5L1 9L5 13"/>')
    if result.truth is not None and math.isfinite(result.truth[0]):
        parts.append(f'<path class="truthtick" d="M{_n(at(result.truth[0]))} 2V16"/>')
    if point > -math.inf:
        parts.append(f'<circle class="dot{kind}" cx="{_n(at(point))}" cy="9" r="3.6"/>')
    return f'<svg class="strip" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(parts)}</svg>'


def strip_axis(lowest: float) -> str:
    """What stands over the strips: the powers of ten of their grid."""
    shown = _strip_powers(lowest)
    marks = "".join(
        f'<text x="{_n(4 + (k - lowest) / -lowest * 124)}" y="11" text-anchor="{anchor}">{superscript(k)}</text>'
        for k, anchor in zip(shown, ("start", "middle", "end"), strict=True)
    )
    return f'<svg class="strip" viewBox="0 0 132 14" aria-hidden="true">{marks}</svg>'


def _strip_powers(lowest: float) -> tuple[int, int, int]:
    return math.ceil(lowest), math.ceil(lowest) // 2, 0


def calibration_svg(results: Sequence[PromptResult]) -> str:
    """Estimated against true rates with their intervals, equality a line; every result's truth is known."""
    truth = np.array([r.truth[0] for r in results])
    point, low, high = (
        np.array([float(getattr(r.estimate, x)) for r in results]) for x in ("log10_rate", "low", "high")
    )
    place = np.where(point == -np.inf, high, point)
    left, bottom = bottom_of(truth, []), bottom_of(place, low)
    frame = Frame(460, 380, (left, 0.15), (bottom, 0.15))
    parts = [*_rates_up(frame), *_rates_across(frame), *_names(frame, "true rate", "estimated rate")]
    first = max(left, bottom)
    parts.append(
        f'<path class="guide" d="M{_n(frame.at(first))} {_n(frame.up(first))}L{_n(frame.at(0))} {_n(frame.up(0))}"/>'
    )
    for doubtful, kind in ((True, "light"), (False, "fitted")):
        cells = [i for i, r in enumerate(results) if stood_by(r) is not doubtful and point[i] > -np.inf]
        parts.append(_whiskers(frame, truth[cells], low[cells], high[cells], kind))
        parts += [
            f'<circle class="{kind}" cx="{_n(frame.at(truth[i]))}" cy="{_n(frame.up(place[i]))}" r="4">'
            f"<title>{escape(printable(results[i].prompt_id))}: {format_rate(point[i])}, truth {format_rate(truth[i])}"
            "</title></circle>"
            for i in cells
        ]
    for i in np.flatnonzero(point == -np.inf):
        x, y = frame.at(truth[i]), frame.up(place[i])
        words = f"{printable(results[i].prompt_id)}: at most {format_rate(place[i])}, truth {format_rate(truth[i])}"
        parts.append(
            f'<path class="light" d="M{_n(x - 4)} {_n(y - 4)}h8l-4 6.5z"><title>{escape(words)}</title></path>'
        )
    inside = int(np.sum((low <= truth) & (truth <= high)))
    counts = f"{len(results)} prompts; {inside} of {len(results)} intervals hold the truth"
    return _svg(frame, parts, f"Estimated against true rates of {counts}")


def auroc_svg(runs: Sequence[tuple[str, Ranked]]) -> str:
    """AUROC against rollouts per prompt: naive sampling's curve, as the first run has it, and where runs stand by their
    names, with what they would have reached with fewer rollouts where that is known.
    """
    budgets, areas = runs[0][1].budgets, runs[0][1].naive
    across = np.log10([*budgets, *(rank.spent for _, rank in runs)])
    frame = Frame(460, 300, (float(across.min()) - 0.1, float(across.max()) + 0.15), (0.45, 1.0))

    def line(rollouts: np.ndarray, areas: np.ndarray) -> str:
        return "M" + "L".join(
            f"{_n(frame.at(x))} {_n(frame.up(y))}" for x, y in zip(np.log10(rollouts), areas, strict=True)
        )

    parts = []
    for value in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts += _tick_y(frame, value, f"{value:.1f}")
    for k in decades(*frame.x):
        parts += _tick_x(frame, float(k), f"{10**k:,}" if k < 5 else superscript(k))
    parts += _names(frame, "rollouts per prompt", "AUROC")
    parts.append(f'<path class="naive" d="{line(budgets, areas)}"/>')
    for words, rank in runs:
        if len(rank.fewer[0]) > 1:
            parts.append(f'<path class="fewer" d="{line(*rank.fewer)}"/>')
            for rollouts, area in zip(*(values[:-1] for values in rank.fewer), strict=True):
                at = f'cx="{_n(frame.at(math.log10(rollouts)))}" cy="{_n(frame.up(area))}"'
                parts.append(f'<circle class="fewer" {at} r="2.5"/>')
        x, y = frame.at(math.log10(rank.spent)), frame.up(rank.area)
        ends = _n(frame.up(max(rank.low, frame.y[0]))), _n(frame.up(rank.high))
        parts.append(f'<path class="whisker estimate" d="M{_n(x)} {ends[0]}V{ends[1]}"/>')
        parts.append(f'<path class="estimate" d="{_star(x, y)}"/>')
        parts.append(f'<text class="said" x="{_n(x + 10)}" y="{_n(y + 4)}">{escape(printable(words))}</text>')
    middle = len(budgets) * 2 // 3
    beside, under = frame.at(math.log10(budgets[middle])) + 8, frame.up(areas[middle]) + 14
    parts.append(f'<text class="quiet" x="{_n(beside)}" y="{_n(under)}">naive sampling</text>')
    said = "; ".join(
        f"{printable(words)}: "
        + ", ".join(f"{area:.3f} with {spent:,.0f}" for spent, area in zip(*_reached(rank), strict=True))
        + " rollouts per prompt"
        for words, rank in runs
    )
    return _svg(frame, parts, f"AUROC against naive sampling; {said}")


def _reached(rank: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Rollouts per prompt and AUROC: of the run, and of the same with fewer."""
    return rank.fewer if len(rank.fewer[0]) else (np.array([rank.spent]), np.array([rank.area]))


def _svg(frame: Frame, parts: Iterable[str], label: str) -> str:
    size = f'viewBox="0 0 {frame.width} {frame.height}"'
    return f'<svg class="figure" {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _n(value: float) -> str:
    """A place in pixels, short."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _tick_y(frame: Frame, value: float, text: str) -> list[str]:
    y = _n(frame.up(value))
    return [
        f'<path class="grid" d="M{LEFT} {y}H{frame.width - RIGHT}"/>',
        f'<text x="{LEFT - 7}" y="{y}" dy=".32em" text-anchor="end">{text}</text>',
    ]


def _tick_x(frame: Frame, value: float, text: str) -> list[str]:
    x, foot = _n(frame.at(value)), frame.height - FOOT
    return [
        f'<path class="axis" d="M{x} {foot}v4"/>',
        f'<text x="{x}" y="{foot + 17}" text-anchor="middle">{text}</text>',
    ]


def _names(frame: Frame, x: str, y: str) -> list[str]:
    """The axes' lines and names."""
    foot, middle = frame.height - FOOT, (TOP + frame.height - FOOT) / 2
    across = _n((LEFT + frame.width - RIGHT) / 2)
    return [
        f'<path class="axis" d="M{LEFT} {TOP}V{foot}H{frame.width - RIGHT}"/>',
        f'<text class="name" x="{across}" y="{frame.height - 6}" text-anchor="middle">{x}</text>',
        f'<text class="name" transform="translate(13 {_n(middle)})rotate(-90)" text-anchor="middle">{y}</text>',
    ]


def _rates_up(frame: Frame) -> list[str]:
    return [part for k in decades(*frame.y) for part in _tick_y(frame, float(k), superscript(k))]


def _rates_across(frame: Frame) -> list[str]:
    return [part for k in decades(*frame.x) for part in _tick_x(frame, float(k), superscript(k))]


def _alphas_across(frame: Frame, left: float, right: float) -> list[str]:
    step = 0.2 if right - left <= 1.5 else 0.5
    first, last = math.ceil(left / step - 1e-9), math.floor(right / step + 1e-9)
    return [part for k in range(first, last + 1) for part in _tick_x(frame, k * step, f"{k * step:g}")]


def _whiskers(frame: Frame, x: np.ndarray, low: np.ndarray, high: np.ndarray, kind: str) -> str:
    lines = "".join(
        f"M{_n(frame.at(a))} {_n(frame.up(b))}V{_n(frame.up(c))}" for a, b, c in zip(x, low, high, strict=True)
    )
    return f'<path class="whisker {kind}" d="{lines}"/>' if lines else ""


def _star(x: float, y: float, size: float = 7.5) -> str:
    """A star of five points."""
    turns = [(k, math.pi * (k / 5 - 0.5)) for k in range(10)]
    corners = [
        f"{_n(x + r * math.cos(t))} {_n(y + r * math.sin(t))}"
        for k, t in turns
        for r in [size * (0.42 if k % 2 else 1)]
    ]
    return f"M{'L'.join(corners)}z"
