"""Figures: one prompt's path and its extrapolation, and all prompts at a glance.

matplotlib takes more than a second to import, so it is imported when a figure is drawn. No pyplot: nothing here
touches global state, and the same results give the same bytes. Rates are drawn as log10 on linear axes whose ticks
say 10^k, so that nothing underflows and a rate of 0 is simply below the axis.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.records.files import write_whole
from lpe_jax.reporting.table import PromptResult
from lpe_jax.reporting.text import file_stem, printable, shorten
from lpe_jax.types import Counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers and in grey print; SKY and GREY are lighter ones.
BLUE, SKY, VERMILLION, GREY, BLACK = "#0072B2", "#8CC4E8", "#D55E00", "#8A8A8A", "#222222"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "lpe_jax",
    # Text as text: what a PDF shows can be searched and edited.
    "pdf.fonttype": 42,
}
# Dates and versions would make equal figures differ.
_METADATA = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
FORMATS = tuple(suffix[1:] for suffix in _METADATA)
COLUMN = 3.4  # inches: one column of a paper


def figure_file(prompt_id: str, folder: str | os.PathLike, suffix: str = ".svg") -> Path:
    """Where a prompt's figure goes: a safe, stable name whatever is in the id."""
    return Path(folder) / f"path-{file_stem(prompt_id)}{suffix}"


def draw_all(results: Sequence[PromptResult], folder: Path, formats: Sequence[str]) -> None:
    """A figure of every prompt and an overview, each drawn once and written in all of the formats, of FORMATS."""
    suffixes = [f".{name}" for name in formats]
    for result in results if suffixes else ():
        path_figure(result, *(figure_file(result.prompt_id, folder, suffix) for suffix in suffixes))
    if suffixes:
        overview_figure(results, *(folder / f"overview{suffix}" for suffix in suffixes))


def path_figure(result: PromptResult, *files: str | os.PathLike) -> None:
    """Rate against alpha on a log scale, after Figure 2 of Pernice and Aranguri 2026, into files by their suffix.

    Dark points with Clopper–Pearson bars are fitted, light ones are not; open triangles stand at the upper end of
    alphas without a compliant rollout; small crosses are the search's rates. The line is dashed, its value at
    alpha = 1 a star with its 95 % interval (an arrowhead where it goes on below the axis), and the truth, set beside
    it, a diamond with 1.96 standard errors. Raises ValueError for another suffix.
    """
    estimate = result.estimate
    alpha, rate, low, high = points_of(result.fit)
    used = np.asarray(estimate.used, bool)
    hit, zero = np.isfinite(rate), rate == -np.inf
    point, ends = float(estimate.log10_rate), (float(estimate.low), float(estimate.high))
    truth, error = result.truth if result.truth is not None else (math.nan, math.nan)
    bottom = bottom_of([*rate, *high[zero], point, truth], [*low[hit], *ends])
    with _figure(files, (COLUMN, 2.6)) as figure:
        axes = figure.add_subplot()
        if result.search is not None:
            where, seen, *_ = points_of(result.search)
            axes.plot(where, seen, "x", color=GREY, markersize=3, markeredgewidth=0.7, label="search")
        for cells, colour, label in ((hit & ~used, SKY, "not fitted"), (hit & used, BLUE, "fitted")):
            _bars(axes, alpha[cells], rate[cells], low[cells], high[cells], bottom, label, fmt="o", color=colour)
        _bars(axes, alpha[zero], high[zero], high[zero], high[zero], bottom, _NO_HIT, **_HOLLOW)
        # Without a search no line was sought: a bending path has a slope at 1 all the same.
        if result.search is not None and math.isfinite(float(estimate.slope)):
            ends_x = np.array([alpha[used].min(), 1.0])
            line = float(estimate.intercept) + float(estimate.slope) * (ends_x - 1)
            axes.plot(ends_x, line, color=VERMILLION, dashes=(4, 2), zorder=2)
        star = {"fmt": "*", "color": VERMILLION, "markersize": 8, "elinewidth": 1.2, "zorder": 5}
        if estimate.fallback:
            star["markerfacecolor"] = "white"
        name = "fallback" if estimate.fallback else "estimate"
        # A naive rate is of the alpha it was drawn at.
        at = float(alpha[0]) if len(alpha) == 1 else 1.0
        if math.isfinite(point):
            _bars(axes, [at], [point], [ends[0]], [ends[1]], bottom, name, **star)
        if math.isfinite(truth):
            spread = 1.96 * error if math.isfinite(error) else 0.0
            diamond = {"fmt": "D", "color": BLACK, "markersize": 3.5, "zorder": 4}
            _bars(axes, [1.04], [truth], [truth - spread], [truth + spread], bottom, "truth", **diamond)
        _rate_axis(axes.yaxis, bottom, max(0.0, np.nanmax([*rate, point, truth])))
        axes.set_xlim(min(0.0, np.min(alpha)) - 0.03, max(1.0, np.max(alpha)) + 0.08)
        axes.set_xlabel("α   (0: variant, 1: original)")
        axes.set_ylabel("compliance rate")
        # Ids are other people's text: no mathematics in it.
        axes.set_title(shorten(printable(result.prompt_id), 48), loc="left", parse_math=False)
        axes.legend(loc="best", **_LEGEND)


def overview_figure(results: Sequence[PromptResult], *files: str | os.PathLike) -> None:
    """All prompts: estimated against true rate with 95 % intervals, the identity dashed, into files by their suffix.

    Rates that are not identified are open circles, fallbacks open squares, prompts without a hit open triangles at
    their upper end. Prompts whose truth is not known are left out; if it is known of none, the rates stand in ascending
    order. Raises ValueError without a result.
    """
    known = [r for r in results if r.truth is not None and math.isfinite(r.truth[0])]
    shown = known or sorted(results, key=_place)
    if not shown:
        raise ValueError("an overview needs at least one result.")
    point, low, high = (
        np.array([float(getattr(r.estimate, name)) for r in shown]) for name in ("log10_rate", "low", "high")
    )
    across = np.array([r.truth[0] for r in known]) if known else np.arange(1.0, len(shown) + 1)
    fallback = np.array([bool(r.estimate.fallback) for r in shown])
    sure = np.array([bool(r.estimate.identified) for r in shown])
    zero = point == -np.inf
    place = np.array([_place(r) for r in shown])
    low = np.where(zero, high, low)
    left = bottom_of(across, []) if known else 0.0
    bottom = min(bottom_of(place, low), left)
    with _figure(files, (COLUMN, 3.2 if known else 2.6)) as figure:
        axes = figure.add_subplot()
        if known:
            axes.plot([-400, 0], [-400, 0], "--", color=GREY, linewidth=0.8, zorder=1, label="equal")
        for cells, label, style in (
            (sure & ~fallback & ~zero, "estimate", {"fmt": "o", "color": BLUE}),
            (~sure & ~fallback & ~zero, "not identified", {"fmt": "o", "color": SKY, "markerfacecolor": "white"}),
            (fallback, "fallback", {"fmt": "s", "color": VERMILLION, "markerfacecolor": "white"}),
            (zero, _NO_HIT, _HOLLOW),
        ):
            style = {"markersize": 3, "elinewidth": 0.5, "alpha": 0.85} | style
            _bars(axes, across[cells], place[cells], low[cells], high[cells], bottom, label, **style)
        _rate_axis(axes.yaxis, bottom, 0.0)
        axes.set_ylabel("estimated rate")
        if known:
            _rate_axis(axes.xaxis, left, max(0.0, across.max()))
            axes.set_xlabel("true rate")
        else:
            axes.set_xlabel("prompts, by estimated rate")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.05, 1.0), ncols=4, columnspacing=1.2, **_LEGEND)


_LEGEND = {"frameon": False, "handlelength": 1.4, "labelspacing": 0.3, "borderaxespad": 0.3}
_NO_HIT = "no hit: upper end"
_HOLLOW = {"fmt": "v", "color": BLUE, "markerfacecolor": "white", "markersize": 4}


def _place(result: PromptResult) -> float:
    """The log10 rate at which a prompt's mark stands: its rate, or the upper end where nothing complied."""
    rate, high = float(result.estimate.log10_rate), float(result.estimate.high)
    return high if rate == -math.inf else rate


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


def _bars(axes: Axes, x, y, low, high, bottom: float, label: str, **style) -> None:
    """Marks with interval bars; a bar that goes on below the axis ends in an arrowhead on its edge."""
    x, y, low, high = (np.asarray(value, float) for value in (x, y, low, high))
    if not x.size:
        return
    style = {"markersize": 3.8, "elinewidth": 0.8, "markeredgewidth": 0.9, "zorder": 3} | style
    cut = low < bottom
    bars = np.stack([y - np.where(cut, bottom, low), high - y])
    axes.errorbar(x, y, np.maximum(bars, 0.0), label=label, **style)
    if not cut.any():
        return
    size = 2.5 + 2 * style["elinewidth"]
    edge = {"color": style["color"], "markersize": size, "alpha": style.get("alpha"), "clip_on": False}
    axes.plot(x[cut], np.full(cut.sum(), bottom), linestyle="none", marker="v", markeredgewidth=0, **edge)


def _rate_axis(axis, bottom: float, top: float) -> None:
    """Limits, and ticks at whole decades, at most eight of them, written as powers of ten."""
    every = max(1, math.ceil(-bottom / 8))
    ticks = [-float(t) for t in range(0, int(-bottom) + 1, every)]
    axis.set_ticks(ticks, [f"$10^{{{t:.0f}}}$" if t else "1" for t in ticks])
    axis.axes.set(**{f"{axis.axis_name}lim": (bottom, top + 0.3)})


@contextlib.contextmanager
def _figure(files: str | os.PathLike | Sequence[str | os.PathLike], size: tuple[float, float]) -> Iterator[Figure]:
    """A figure in the house style, saved to each of the files when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    paths = [Path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    for path in paths:
        if path.suffix not in _METADATA:
            raise ValueError(f"a figure is saved as .svg, .png or .pdf, and {str(path)!r} is none of them.")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # An id may hold characters that the font lacks; a box in a title is no reason to warn or to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        for path in paths:
            drawn = io.BytesIO()
            figure.savefig(drawn, format=path.suffix[1:], dpi=300, metadata=_METADATA[path.suffix])
            write_whole(path, drawn.getvalue())
