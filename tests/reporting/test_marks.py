"""Figures in files and those of report.html show the same things under the same words."""

import dataclasses
import math
import re
from importlib.resources import files

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from lpe_jax.estimation.bend import curve
from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import replay
from lpe_jax.reporting.figures import SKY, path_figure
from lpe_jax.reporting.marks import ASIDE, picture_of
from lpe_jax.reporting.svg import path_legend, path_svg
from lpe_jax.reporting.table import PromptResult
from lpe_jax.types import Counts
from tests.reporting.reports import result

THETA = np.array([-1.3, 2.3, 0.4, 0.0])


def replaced(of: PromptResult, **fields) -> PromptResult:
    return dataclasses.replace(of, estimate=dataclasses.replace(of.estimate, **fields))


def bending(**more) -> PromptResult:
    """A bending path fitted up to alpha = 0.7, where none complied; what was seen at 0.8 and 0.9 is left out."""
    alpha = np.array([0.9, 0.8, 0.7, 0.4, 0.1])
    counts = Counts(alpha, np.full(5, 50.0), np.array([0.0, 1.0, 0.0, 9.0, 30.0]))
    value, slope, turn = (float(np.asarray(x)[-1]) / math.log(10) for x in curve(THETA, np.ones(1)))
    fields = {"log10_rate": value, "low": value - 1, "high": value + 0.8, "slope": slope, "curvature": turn}
    plain = result("bends", 0, naive=None).estimate
    estimate = dataclasses.replace(
        plain,
        **fields,
        intercept=value,
        used=np.array([False, False, True, True, True]),
        fallback=False,
        identified=True,
    )
    return PromptResult("bends", estimate, counts, "path", **more)


def naive(complied: int, alpha: float = 1.0) -> PromptResult:
    outcomes = np.arange(50)[None] < complied
    state, estimate = replay(Naive(50, alpha), outcomes)
    return PromptResult("naive", estimate, Naive(50, alpha).counts(state), "naive", truth=(-2.0, 0.1))


def default() -> PromptResult:
    return replaced(result("default", 2), fallback=True, identified=False, log10_rate=-3.0, slope=math.nan)


RESULTS = {
    "line": result("a", 1),
    "doubted": replaced(result("a", 1), identified=np.asarray(False)),
    "default": default(),
    "path": bending(truth=(-5.0, math.nan), naive=(0, 40)),
    "unbounded": replaced(bending(naive=(1, 100)), low=-math.inf),
    "naive": naive(3),
    "none": naive(0),
    "mixture": dataclasses.replace(naive(3, 0.5), truth=None),
}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a result as a file, and gives the figure."""
    seen = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k)))

    def draw(of):
        path_figure(of, tmp_path / "a.svg")
        return seen[-1]

    return draw


def named(figure) -> dict:
    """What a file's legend shows by its words."""
    handles, words = figure.axes[0].get_legend_handles_labels()
    return dict(zip(words, handles, strict=True))


def line_of(handle):
    return getattr(handle, "lines", [handle])[0]


@pytest.mark.parametrize("name", RESULTS)
def test_one_legend(drawn, name):
    shown = [text.get_text().replace("\n", " ") for text in drawn(RESULTS[name]).axes[0].get_legend().get_texts()]
    words = [words for _, words in path_legend(RESULTS[name])]
    assert shown == words == [part.words for part in picture_of(RESULTS[name]).named]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("name", RESULTS)
def test_the_page_draws_every_part_and_no_other(name):
    picture, page = picture_of(RESULTS[name]), path_svg(RESULTS[name])
    kinds = set(re.findall(r'<path class="(\w+)"', page)) - {"grid", "axis", "guide", "whisker"}
    assert kinds == {part.kind for part in picture.named}
    for marks in picture.marks:
        assert page.count(f'<path class="{marks.kind}"') >= max(len(marks.said), 1)


def test_colour_says_what_was_fitted_and_shape_what_was_seen(drawn):
    marks = named(drawn(RESULTS["path"]))
    assert set(marks) == {
        "not fitted",
        "fitted",
        "none complied, not fitted: upper end",
        "none complied, fitted: upper end",
        "fit",
        "extrapolation",
        "what the interval allows (no confidence band)",
        "estimate",
        "truth (set aside)",
        "naive check (set aside), none complied: upper end",
    }
    for words, alpha, shape, hollow in (
        ("not fitted", [0.8], "o", True),
        ("fitted", [0.4, 0.1], "o", False),
        ("none complied, not fitted: upper end", [0.9], "v", True),
        ("none complied, fitted: upper end", [0.7], "v", False),
    ):
        line = line_of(marks[words])
        np.testing.assert_allclose(line.get_xdata(), alpha)
        assert line.get_marker() == shape
        assert (to_rgba(line.get_markerfacecolor()) == to_rgba("white")) is hollow
        assert (to_rgba(line.get_color()) == to_rgba(SKY)) is hollow
        # A legend shows whiskers only of marks that have any.
        assert hasattr(marks[words], "has_yerr") is (shape == "o")
    zero = line_of(marks["none complied, fitted: upper end"]).get_ydata()
    np.testing.assert_allclose(zero, clopper_pearson_log10(np.zeros(1), np.full(1, 50.0))[1])


@pytest.mark.parametrize("name, first, last", [("path", 0.1, 0.7), ("line", None, None)])
def test_the_curve_is_dashed_from_the_last_alpha_fitted(drawn, name, first, last):
    of = RESULTS[name]
    used = np.asarray(of.fit.alpha)[np.asarray(of.estimate.used, bool)]
    first, last = first or used.min(), last or used.max()
    marks = named(drawn(of))
    solid, dashed = marks["fit"], marks["extrapolation"]
    assert not solid.is_dashed() and dashed.is_dashed()
    assert (solid.get_xdata()[0], solid.get_xdata()[-1]) == pytest.approx((first, last))
    assert (dashed.get_xdata()[0], dashed.get_xdata()[-1]) == pytest.approx((last, 1.0))
    assert solid.get_ydata()[-1] == dashed.get_ydata()[0]
    assert dashed.get_ydata()[-1] == pytest.approx(float(of.estimate.intercept))
    if name == "path":
        wanted = np.asarray(curve(THETA, solid.get_xdata())[0]) / math.log(10)
        np.testing.assert_allclose(solid.get_ydata(), wanted, atol=1e-4)


def test_the_fan_ends_as_the_interval_does_and_on_the_axis_where_nothing_bounds_it():
    for name in ("path", "unbounded", "line"):
        picture, estimate = picture_of(RESULTS[name]), RESULTS[name].estimate
        (fan,) = (line for line in picture.lines if line.kind == "fan")
        ends = fan.rate[fan.alpha == 1.0]
        assert ends.max() == pytest.approx(float(estimate.high))
        assert ends.min() == pytest.approx(max(float(estimate.low), picture.bottom))
        assert np.isfinite(fan.rate).all()


def test_a_side_that_leaves_the_axis_keeps_its_direction():
    """Cut where it crosses, and not bent to end at the foot."""
    of = replaced(result("a", 1), low=-60.0)
    picture, alpha = picture_of(of), np.asarray(of.fit.alpha)[np.asarray(of.estimate.used, bool)]
    (fan,) = (line for line in picture.lines if line.kind == "fan")
    corner = fan.alpha[fan.rate == picture.bottom].min()
    share = (corner - alpha.mean()) / (1 - alpha.mean())
    line = float(of.estimate.intercept) + float(of.estimate.slope) * (corner - 1)
    assert line + share * (-60.0 - float(of.estimate.intercept)) == pytest.approx(picture.bottom)


@pytest.mark.parametrize(
    "name, words, hollow",
    [
        ("line", "estimate", False),
        ("doubted", "estimate, not identified", True),
        ("default", "no fit: a default", True),
    ],
)
def test_a_star_is_hollow_where_the_rate_is_not_stood_by(drawn, name, words, hollow):
    star = line_of(named(drawn(RESULTS[name]))[words])
    assert star.get_marker() == "*" and (to_rgba(star.get_markerfacecolor()) == to_rgba("white")) is hollow
    assert ('class="unsure"' in path_svg(RESULTS[name])) is hollow
    assert ('class="estimate"' in path_svg(RESULTS[name])) is not hollow


def test_what_is_held_against_the_estimate_stands_aside():
    checked = {marks.kind: marks for marks in picture_of(RESULTS["path"]).marks}
    np.testing.assert_allclose([checked["truth"].alpha[0], checked["check"].alpha[0]], [1 + ASIDE, 1 + 2 * ASIDE])
    assert checked["check"].none and checked["truth"].alpha[0] < picture_of(RESULTS["path"]).across[1]
    (check,) = (marks for marks in picture_of(RESULTS["unbounded"]).marks if marks.kind == "check")
    np.testing.assert_allclose([check.alpha, check.rate], [[1 + ASIDE], [-2.0]])
    np.testing.assert_allclose(
        [check.low, check.high], clopper_pearson_log10(np.array([1.0]), np.array([100.0])), atol=1e-9
    )


def test_naive_rollouts_that_were_fitted_check_nothing():
    fit = Counts(np.array([1.0, 0.5]), np.array([140.0, 100.0]), np.array([3.0, 50.0]))
    of = dataclasses.replace(replaced(bending(), used=np.array([True, True])), fit=fit)
    (check,) = (m for m in picture_of(dataclasses.replace(of, naive=(4, 240))).marks if m.kind == "check")
    np.testing.assert_allclose(check.rate, [-2.0])  # 1 of 100
    assert not any(m.kind == "check" for m in picture_of(dataclasses.replace(of, naive=(3, 140))).marks)


def test_where_there_is_no_path_none_is_drawn(drawn):
    for name, at in (("naive", 1.0), ("mixture", 0.5)):
        figure = drawn(RESULTS[name])
        assert "fitted" not in named(figure) and "fit" not in named(figure)
        assert line_of(named(figure)["estimate"]).get_xdata()[0] == at
        assert np.mean(figure.axes[0].get_xlim()) == pytest.approx(at) and list(figure.axes[0].get_xticks()) == [at]
        assert f'text-anchor="middle">{at:g}</text>' in path_svg(RESULTS[name])
        assert ">0.2</text>" not in path_svg(RESULTS[name])
    assert set(named(drawn(RESULTS["none"]))) == {"none complied, fitted: upper end", "truth (set aside)"}


@pytest.mark.parametrize("name", RESULTS)
def test_a_legend_covers_nothing(drawn, name):
    figure = drawn(RESULTS[name])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    legend, data = axes.get_legend().get_window_extent(), axes.get_window_extent()
    title = figure.texts[0].get_window_extent()
    assert legend.y0 >= data.y1 - 1 and legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    assert title.y0 >= legend.y1 - 2 and data.height > 0.5 * figure.bbox.height


def luminance(colour: str) -> float:
    parts = np.array(to_rgba(colour)[:3])
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_light_marks_are_seen():
    """WCAG 2.2, 1.4.11: three to one for what is drawn, in light, dark and print."""
    assert contrast(SKY, "white") >= 3
    style = files("lpe_jax.reporting").joinpath("templates/report.css").read_text()
    schemes = re.findall(r"--paper:(#\w+).*?--sky:(#\w+)", style)
    assert len(schemes) == 3
    for paper, sky in schemes:
        assert contrast(sky, paper) >= 3
