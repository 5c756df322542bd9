"""Figures of an evaluation: how well methods rank prompts, what the paths look like, how far off the rates are.

The style, the axis of rates and the marks with interval bars are those of `reporting/figures.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lpe_jax.estimation.intervals import clopper_pearson
from lpe_jax.reporting.figures import (
    _HOLLOW,
    _LEGEND,
    _NO_HIT,
    _STYLES,
    BLACK,
    BLUE,
    GREY,
    SKY,
    VERMILLION,
    _bars,
    _figure,
    _rate_axis,
)
from lpe_jax.reporting.marks import bottom_of, points_of
from lpe_jax.reporting.text import printable, shorten
from lpe_jax.types import Estimate

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lpe_jax.evaluation.measures import Curve, Panel

# Six of Okabe and Ito's colours (their yellow is lost on white, their sky blue is taken for the blue) with a wine, an
# olive and a grey, four dashes and seven marks: as these numbers have no common factor, each of the first 36 methods
# differs from all others in colour or dash, and neighbours in everything.
_COLOURS = (BLUE, VERMILLION, "#009E73", BLACK, "#CC79A7", "#E69F00", "#882255", "#999933", GREY)
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_MARKS = "os^DvPX"
PAGE = 7.0  # inches: both columns of a paper
LOWEST = -12.0  # where figure_errors cuts: a rate of 1e-39 is wrong in the same way as one of 1e-12


def figure_one(curves: Sequence[Curve], file: str | os.PathLike) -> None:
    """AUROC against rollouts per prompt on a log axis, a line for each method; SVG or PNG by file's suffix.

    After Figure 1 of Pernice and Aranguri 2026. Bands are 1.96 Monte Carlo standard errors. A method keeps its colour,
    dash and mark by its place in `curves`; the legend names the methods in the order in which their lines end, best
    first. Raises ValueError without a curve to draw.
    """
    drawn = [cells for cells in map(_cells, curves) if cells[0].size]
    if not drawn:
        raise ValueError("figure one needs at least one curve with a finite AUROC.")
    with _figure(file, (0.75 * PAGE, 3.1)) as figure:
        from matplotlib.ticker import LogLocator, NullLocator

        axes = figure.add_subplot(xscale="log", xlabel="rollouts per prompt", ylabel="AUROC")
        axes.axhline(0.5, color=GREY, linewidth=0.8, dashes=(1, 2), zorder=1)
        ends = []
        for place, curve in enumerate(curves):
            x, y, spread = _cells(curve)
            if not x.size:
                continue
            colour, dash, mark = (kind[place % len(kind)] for kind in (_COLOURS, _DASHES, _MARKS))
            axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
            style = {"color": colour, "linestyle": dash, "marker": mark, "markersize": 3.5, "markeredgewidth": 0}
            (line,) = axes.plot(x, y, label=shorten(printable(curve.name), 40), **style)
            ends.append((y[-1], line))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_ylim(min(0.5, *(np.min(y - spread) for _, y, spread in drawn)) - 0.02, 1.0)
        ends.sort(key=lambda end: -end[0])
        beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "handlelength": 3.2, "fontsize": 7}
        legend = axes.legend(handles=[line for _, line in ends], **_LEGEND | beside)
        for text in legend.get_texts():  # names are other people's text: no mathematics in them
            text.set_parse_math(False)


def figure_two(panels: Sequence[Panel], file: str | os.PathLike, columns: int = 4) -> None:
    """Paths of several prompts, a small panel each: rate against alpha on a log scale; SVG or PNG by file's suffix.

    After Figure 2 of Pernice and Aranguri 2026. Dark points with Clopper–Pearson bars are fitted, light ones are not;
    open triangles stand at the upper end of alphas without a compliant rollout. The line is dashed, with a star where
    it meets alpha = 1 (at rate 1 if it leads above). The diamond beside it is the truth with its bar; a bar that goes
    on below the axis ends in an arrowhead. All panels share both axes. Raises ValueError without a panel.
    """
    if not panels:
        raise ValueError("figure two needs at least one panel.")
    points = [points_of(panel.counts) for panel in panels]
    values = [v for panel in panels for v in (panel.intercept, panel.truth)]
    values += [v for _, rate, _, high in points for v in np.where(rate == -np.inf, high, rate)]
    bottom = bottom_of(values, [v for _, rate, low, _ in points for v in low[np.isfinite(rate)]])
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _figure(file, (PAGE * max(columns, 2) / 4, 1.45 * rows + 0.5)) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        named = {}  # marks for the legend
        for axes, panel, point in zip(grid.flat, panels, points, strict=False):
            _draw_panel(axes, panel, point, bottom)
            named |= _named(axes)
        grid[0, 0].set(xlim=(min(0.0, *(np.min(x) for x, *_ in points)) - 0.05, 1.12), xticks=[0, 0.5, 1])
        _rate_axis(grid[0, 0].yaxis, bottom, 0.0)
        _settle(grid, len(panels))
        for place, axes in enumerate(grid.flat):
            # The lowest panel of each column carries the ticks of all above it.
            axes.tick_params(labelbottom=len(panels) - columns <= place)
        figure.supxlabel("α   (0: variant, 1: original)", fontsize=8)
        figure.supylabel("compliance rate", fontsize=8)
        _legend_above(figure, named, columns)


def figure_errors(estimates: Mapping[str, Estimate], truth: np.ndarray, file: str | os.PathLike) -> None:
    """Estimated against true rate, a panel for each method, and coverage by method; SVG or PNG by file's suffix.

    estimates: by method, the fields [P] on the host. truth: [P] log10; prompts whose truth is NaN are left out. Dark
    marks stand by their rate (`identified`), light ones do not; open triangles are rates of 0, at their upper end. Bars
    are the 95 % intervals; what lies below 10^-12 is drawn there. The last panel shows in which share of the prompts
    whose rate a method stands by the interval holds the truth, with Clopper–Pearson bars and a rule at 95 %. Raises
    ValueError without a method or without a truth.
    """
    truth = np.asarray(truth, float)
    known = np.isfinite(truth)
    if not estimates or not known.any():
        raise ValueError("figure_errors needs at least one method, and at least one prompt whose truth is known.")
    truth, drawn = truth[known], {}
    for name, estimate in estimates.items():
        fields = (np.asarray(x, float)[known] for x in (estimate.log10_rate, estimate.low, estimate.high))
        drawn[name] = (*fields, np.asarray(estimate.identified, bool)[known])
    left = bottom_of(truth, [])
    bottom = min(left, bottom_of([max(v, LOWEST) for rate, *_ in drawn.values() for v in rate[np.isfinite(rate)]], []))
    columns = min(4, len(drawn) + 1)
    rows = math.ceil((len(drawn) + 1) / columns)
    with _figure(file, (PAGE * max(columns, 2) / 4, 1.9 * rows)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        named = {}  # marks for the legend
        for column, (axes, name) in enumerate(zip(grid.flat, drawn, strict=False)):
            rate, low, high, sure = drawn[name]
            zero = rate == -np.inf
            place = np.maximum(np.where(zero, high, rate), LOWEST)
            axes.plot([-400, 0], [-400, 0], "--", color=GREY, linewidth=0.8, zorder=1)
            for cells, label, style in (
                (~sure & ~zero, "not identified", {"fmt": "o", "color": SKY, "markerfacecolor": "white"}),
                (sure & ~zero, "identified", {"fmt": "o", "color": BLUE}),
                (zero, _NO_HIT, _HOLLOW),
            ):
                style = style | {"markersize": 2.4, "elinewidth": 0.4, "markeredgewidth": 0.4, "alpha": 0.8}
                ends = np.where(zero, high, low)[cells], high[cells]
                _bars(axes, truth[cells], place[cells], *ends, bottom, label, **style)
            _rate_axis(axes.yaxis, bottom, 0.0)
            _rate_axis(axes.xaxis, left, 0.0)
            for label in axes.get_xticklabels()[1::2]:  # no room for all
                label.set_visible(False)
            axes.set_title(shorten(printable(name), 30), loc="left", parse_math=False)
            axes.set(xlabel="true rate", ylabel="" if column % columns else "estimated rate")
            named |= _named(axes)
        _draw_coverage(grid.flat[len(drawn)], truth, drawn)
        _settle(grid, len(drawn) + 1)
        _legend_above(figure, named, columns)


_LINE = "line at α = 1"
_ORDER = ("fitted", "not fitted", "identified", "not identified", _NO_HIT, _LINE, "truth")


def _cells(curve: Curve) -> tuple[np.ndarray, ...]:
    """The cells of a curve that can be drawn, by rollouts: (rollouts, AUROC, 1.96 standard errors), each [B]."""
    x, y, error = (np.asarray(value, float) for value in (curve.rollouts, curve.auroc, curve.error))
    cells = np.flatnonzero(np.isfinite(y) & (x > 0))
    cells = cells[np.argsort(x[cells], kind="stable")]
    return x[cells], y[cells], 1.96 * np.nan_to_num(error[cells])


def _named(axes: Axes) -> dict[str, Artist]:
    """The marks of an axes by their names."""
    return dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))


def _legend_above(figure: Figure, named: Mapping[str, Artist], columns: int) -> None:
    """One legend for all panels, `columns` of them in a row."""
    named = {name: named[name] for name in _ORDER if name in named}
    above = {"loc": "outside upper center", "ncols": len(named) if columns > 2 else 3}
    figure.legend(named.values(), named, **_LEGEND | above)


def _settle(grid: np.ndarray, count: int) -> None:
    """Hides all but the first `count` axes of a grid."""
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < count)


def _draw_panel(axes: Axes, panel: Panel, point: tuple[np.ndarray, ...], bottom: float) -> None:
    """One path of figure two; point is (alpha, log10 rate, low, high), each [A]."""
    alpha, rate, low, high = point
    used, hit, zero = np.asarray(panel.used, bool), np.isfinite(rate), rate == -np.inf
    small = {"markersize": 2.8, "elinewidth": 0.6, "markeredgewidth": 0.6}
    for kind, cells, label in (("light", hit & ~used, "not fitted"), ("fitted", hit & used, "fitted")):
        style = _STYLES[kind] | small
        _bars(axes, alpha[cells], rate[cells], low[cells], high[cells], bottom, label, **style)
    _bars(axes, alpha[zero], high[zero], high[zero], high[zero], bottom, _NO_HIT, **_HOLLOW | small)
    if math.isfinite(panel.slope) and used.any():
        ends = np.array([alpha[used].min(), 1.0])
        axes.plot(ends, panel.intercept + panel.slope * (ends - 1), color=VERMILLION, dashes=(4, 2), zorder=2)
    if math.isfinite(panel.intercept):
        star = {"marker": "*", "color": VERMILLION, "markersize": 7, "markeredgewidth": 0, "zorder": 5}
        axes.plot([1.0], [min(panel.intercept, 0.0)], linestyle="none", label=_LINE, **star)
    if math.isfinite(panel.truth):
        bar = [[value] for value in (panel.truth, panel.truth_low, panel.truth_high)]
        diamond = {"fmt": "D", "color": BLACK, "zorder": 4} | small
        _bars(axes, [1.06], *np.where(np.isnan(bar), panel.truth, bar), bottom, "truth", **diamond)
    # Ids are other people's text: no mathematics in it.
    axes.set_title(shorten(printable(panel.prompt_id), 26), loc="left", parse_math=False, fontsize=7)


def _draw_coverage(axes: Axes, truth: np.ndarray, drawn: Mapping[str, tuple[np.ndarray, ...]]) -> None:
    """The share of intervals that hold the truth [P], a row for each method, the first on top."""
    axes.axvline(0.95, color=GREY, linewidth=0.8, dashes=(4, 2), zorder=1)
    for row, (name, (_, low, high, sure)) in enumerate(drawn.items()):
        judged = sure & ~np.isnan(low) & ~np.isnan(high)
        n, held = judged.sum(), np.sum(judged & (low <= truth) & (truth <= high))
        if n:
            share, (start, end) = held / n, clopper_pearson(held, n)
            bar = np.maximum([[share - start], [end - share]], 0.0)
            axes.errorbar([share], [-row], xerr=bar, fmt="o", color=BLUE, markersize=3.5, elinewidth=0.8)
        axes.text(0.02, 0.15 - row, shorten(printable(name), 30), parse_math=False, fontsize=6.5)
    axes.set(xlim=(0, 1.02), ylim=(0.5 - len(drawn), 0.8), xlabel="coverage of 95 % intervals", yticks=[])
    axes.set_xticks([0, 0.5, 0.95], ["0", "0.5", "0.95"])
