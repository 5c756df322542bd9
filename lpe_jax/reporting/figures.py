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
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lpe_jax.records.files import write_whole
from lpe_jax.reporting import ground
from lpe_jax.reporting.marks import Line, Marks, bottom_of, picture_of
from lpe_jax.reporting.standing import place_of
from lpe_jax.reporting.table import PromptResult, stood_by, unfitted
from lpe_jax.reporting.text import file_stem, printable, shorten, superscript

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers and in grey print; SKY and GREY are lighter ones, which
# have three times the contrast of none on white. SKY is for hollow marks.
BLUE, SKY, VERMILLION, GREY, BLACK = "#0072B2", "#4A90C2", "#D55E00", "#8A8A8A", "#222222"
STYLE = {
    # matplotlib brings the first; an SVG names both.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
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
    # Text as text: what an SVG or a PDF shows can be searched, read aloud and edited.
    "svg.fonttype": "none",
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

    `reporting/marks.py` says what stands in it and what it is called. Bars are 95 % intervals, of the truth 1.96
    standard errors; one that goes on below the axis ends in an arrowhead. Raises ValueError for another suffix.
    """
    picture = picture_of(result)
    name = printable(result.prompt_id)
    words = [textwrap.fill(part.words, 26) for part in picture.named]
    height = 2.5 + 0.07 * sum(1 + text.count("\n") for text in words)
    with _figure(files, (COLUMN, height), f"Compliance rate against alpha for {name}") as figure:
        axes = figure.add_subplot()
        shown = [_part(axes, part, picture.bottom) for part in picture.named]
        if picture.across[0] < 1.0 < picture.across[1]:
            axes.axvline(1.0, color=GREY, linewidth=0.6, dashes=(2, 3), zorder=1)
        _rate_axis(axes.yaxis, picture.bottom, max([0.0, *(rate for marks in picture.marks for rate in marks.rate)]))
        axes.set_xlim(*picture.across)
        if picture.ticks:
            axes.set_xticks(picture.ticks, [f"{tick:g}" for tick in picture.ticks])
        axes.set_xlabel("α   (0: variant, 1: original)")
        axes.set_ylabel("compliance rate")
        # Ids are other people's text: no mathematics in it.
        figure.suptitle(shorten(name, 48), x=0.02, ha="left", fontsize=8, parse_math=False)
        above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 2, "columnspacing": 1.2}
        axes.legend(shown, words, **_LEGEND | above)


def _part(axes: Axes, part: Marks | Line, bottom: float) -> Artist:
    """Draws marks, a line or a fan, for a legend."""
    if isinstance(part, Marks):
        style = _STYLES[part.kind] | (_NONE if part.none else {})
        return _bars(axes, part.alpha, part.rate, part.low, part.high, bottom, part.words, **style)
    if part.kind == "fan":
        shade = {"color": VERMILLION, "alpha": 0.14, "linewidth": 0, "zorder": 0}
        return axes.fill(part.alpha, part.rate, label=part.words, **shade)[0]
    dashes = {"dashes": (4, 2)} if part.kind == "beyond" else {}
    return axes.plot(part.alpha, part.rate, color=VERMILLION, zorder=2, label=part.words, **dashes)[0]


def overview_figure(results: Sequence[PromptResult], *files: str | os.PathLike) -> None:
    """All prompts: estimated against true rate with 95 % intervals, the identity dashed, into files by their suffix.

    Rates that are not identified are open circles, defaults without a fit open squares, prompts of which nothing
    complied triangles at their upper end. Prompts whose truth is not known are left out; if it is known of none, the
    rates stand in ascending order. Raises ValueError without a result.
    """
    known = ground.known(results)
    shown = known or sorted(results, key=place_of)
    if not shown:
        raise ValueError("an overview needs at least one result.")
    point, low, high = (
        np.array([float(getattr(r.estimate, name)) for r in shown]) for name in ("log10_rate", "low", "high")
    )
    across = np.array([r.truth[0] for r in known]) if known else np.arange(1.0, len(shown) + 1)
    fallback = np.array([unfitted(r) for r in shown])
    sure = np.array([stood_by(r) for r in shown])
    zero = point == -np.inf
    place = np.array([place_of(r) for r in shown])
    low = np.where(zero, high, low)
    left = bottom_of(across, []) if known else 0.0
    bottom = min(bottom_of(place, low), left)
    with _figure(files, (COLUMN, 3.2 if known else 2.6), "Estimated rates of all prompts") as figure:
        axes = figure.add_subplot()
        named: list[Artist | None] = []
        if known:
            named += axes.plot([-400, 0], [-400, 0], "--", color=GREY, linewidth=0.8, zorder=1, label="equal")
        for cells, label, style in (
            (sure & ~fallback & ~zero, "estimate", {"fmt": "o", "color": BLUE}),
            (~sure & ~fallback & ~zero, "not identified", {"fmt": "o", "color": SKY, "markerfacecolor": "white"}),
            (fallback, "no fit", {"fmt": "s", "color": VERMILLION, "markerfacecolor": "white"}),
            (zero, _NO_HIT, {"color": BLUE} | _NONE),
        ):
            style = {"markersize": 3.2, "elinewidth": 0.7} | style
            named.append(_bars(axes, across[cells], place[cells], low[cells], high[cells], bottom, label, **style))
        _rate_axis(axes.yaxis, bottom, 0.0)
        axes.set_ylabel("estimated rate")
        if known:
            _rate_axis(axes.xaxis, left, max(0.0, across.max()))
            axes.set_xlabel("true rate")
        else:
            axes.set_xlabel("prompts, by estimated rate")
        above = {"loc": "lower left", "bbox_to_anchor": (-0.05, 1.0), "ncols": 4, "columnspacing": 1.2}
        axes.legend(handles=[mark for mark in named if mark is not None], **_LEGEND | above)


_LEGEND = {"frameon": False, "handlelength": 1.4, "labelspacing": 0.3, "borderaxespad": 0.3}
_NO_HIT = "none complied: upper end"
_HOLLOW = {"fmt": "v", "color": BLUE, "markerfacecolor": "white", "markersize": 4}
_NONE = {"fmt": "v", "markersize": 4}
# Of a path's figure, by the kinds of reporting/marks.py.
_STYLES = {
    "search": {"fmt": "x", "color": GREY, "markersize": 3, "markeredgewidth": 0.7},
    "light": {"fmt": "o", "color": SKY, "markerfacecolor": "white"},
    "fitted": {"fmt": "o", "color": BLUE},
    "estimate": {"fmt": "*", "color": VERMILLION, "markersize": 8, "elinewidth": 1.2, "zorder": 5},
    "unsure": {"fmt": "*", "color": VERMILLION, "markerfacecolor": "white", "markersize": 8, "zorder": 5},
    "check": {"fmt": "o", "color": BLACK, "markerfacecolor": "white", "zorder": 4},
    "truth": {"fmt": "D", "color": BLACK, "markersize": 3.5, "zorder": 4},
}


def _bars(axes: Axes, x, y, low, high, bottom: float, label: str, **style) -> Artist | None:
    """Marks with interval bars, for a legend; a bar that goes on below the axis ends in an arrowhead on its edge."""
    x, y, low, high = (np.asarray(value, float) for value in (x, y, low, high))
    if not x.size:
        return None
    style = {"markersize": 3.8, "elinewidth": 0.8, "markeredgewidth": 0.9, "zorder": 3} | style
    if not (high > low).any():
        # Without whiskers, which a legend would show.
        plain = {name: value for name, value in style.items() if name not in ("fmt", "elinewidth")}
        return axes.plot(x, y, linestyle="none", marker=style["fmt"], label=label, **plain)[0]
    cut = low < bottom
    bars = np.stack([y - np.where(cut, bottom, low), high - y])
    drawn = axes.errorbar(x, y, np.maximum(bars, 0.0), label=label, **style)
    if cut.any():
        size = 2.5 + 2 * style["elinewidth"]
        edge = {"color": style["color"], "markersize": size, "alpha": style.get("alpha"), "clip_on": False}
        axes.plot(x[cut], np.full(cut.sum(), bottom), linestyle="none", marker="v", markeredgewidth=0, **edge)
    return drawn


def _rate_axis(axis, bottom: float, top: float) -> None:
    """Limits, and ticks at whole decades, at most eight of them, written as powers of ten."""
    every = max(1, math.ceil(-bottom / 8))
    ticks = range(0, -int(-bottom) - 1, -every)
    axis.set_ticks(ticks, map(superscript, ticks))
    axis.axes.set(**{f"{axis.axis_name}lim": (bottom, top + 0.3)})


@contextlib.contextmanager
def _figure(
    files: str | os.PathLike | Sequence[str | os.PathLike], size: tuple[float, float], title: str = ""
) -> Iterator[Figure]:
    """A figure in the house style, saved to each of the files when the block ends, the title in their metadata."""
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
            metadata = _METADATA[path.suffix] | ({"Title": title} if title else {})
            figure.savefig(drawn, format=path.suffix[1:], dpi=300, metadata=metadata)
            write_whole(path, drawn.getvalue())
