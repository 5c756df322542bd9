import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import beta

from lpe_jax.estimation.lpe import LPE
from lpe_jax.evaluation.measures import Curve, Panel
from lpe_jax.reporting.evaluation_figures import _COLOURS, _DASHES, _MARKS, figure_errors, figure_one, figure_two
from lpe_jax.types import Counts, Estimate

NAMES = ["lpe", "naive", "$x^2 \\frac{$ \x1b 日本", *(f"method {i}" for i in range(7))]


def curve(place, budgets=(1000, 30, 100, 300)):
    b = np.array(budgets)
    return Curve(NAMES[place], b, 0.5 + 0.04 * place + 0.01 * np.log(b), np.full(len(b), 0.01))


CURVES = [curve(place) for place in range(10)]


def panel(name, complied, truth=-4.0, truth_low=-4.3, truth_high=-3.8):
    counts = Counts(np.array([0.9, 0.7, 0.5, 0.3, 0.1]), np.array([100, 100, 100, 100, 0]), np.array(complied))
    estimate = LPE().fit(counts)
    line = float(estimate.slope), float(estimate.intercept)
    return Panel(name, counts, np.asarray(estimate.used), *line, truth, truth_low, truth_high)


PANELS = [
    panel("plain", [0, 2, 9, 80, 0]),
    panel("no line $_{", [0, 0, 0, 40, 0], np.nan, np.nan, np.nan),
    panel("open", [0, 2, 9, 40, 0], -7.0, -np.inf, -6.0),
    panel("flat", [99, 99, 99, 99, 0], -0.1, np.nan, np.nan),
    panel("nothing", [0, 0, 0, 0, 0]),
]
TRUTH = np.array([-7.0, -5.0, np.nan, -3.0, -2.0])


def estimate(rate, low, high, identified=True):
    rest = dict.fromkeys(Estimate.__dataclass_fields__)
    shown = {"log10_rate": rate, "low": low, "high": high, "identified": np.broadcast_to(identified, 5)}
    return Estimate(**rest | {name: np.array(value) for name, value in shown.items()})


ESTIMATES = {
    "good": estimate(TRUTH + 0.1, TRUTH - 0.5, TRUTH + 0.5),
    "bold $": estimate([-40.0, -4, 0, -2, -2], [-41.0, -4.1, 0, -2.1, -2.1], [-39.0, -3.9, 0, -1.9, -1.9]),
    "zeros": estimate([-np.inf, -np.inf, 0, -3, -2], [-np.inf] * 4 + [-2.5], [-4.0, -4.0, 0, -2.5, np.nan]),
    "shy": estimate(TRUTH + 2, TRUTH - 3, TRUTH + 3, [True, False, True, False, False]),
}


def errors(what, file):
    figure_errors(what, TRUTH, file)


FEW = {name: ESTIMATES[name] for name in ("bold $", "zeros")}
DRAWN = [(figure_one, CURVES), (figure_two, PANELS[:2]), (errors, FEW)]


@pytest.fixture
def figure(monkeypatch):
    """The last figure saved."""
    seen = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k)))
    return lambda: seen[-1]


def marks(axes):
    """By its name in the legend, the line of marks."""
    handles, names = axes.get_legend_handles_labels()
    return {name: getattr(handle, "lines", [handle])[0] for handle, name in zip(handles, names, strict=True)}


@pytest.mark.parametrize("suffix", [".svg", ".png"])
@pytest.mark.parametrize("draw, what", DRAWN)
def test_same_results_same_bytes(tmp_path, suffix, draw, what):
    before = dict(matplotlib.rcParams)
    first, second = tmp_path / f"1{suffix}", tmp_path / f"2{suffix}"
    draw(what, first)
    draw(what, second)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 3000
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("draw, what", DRAWN)
def test_bad_input_is_named(tmp_path, draw, what):
    with pytest.raises(ValueError, match="needs at least one"):
        draw(type(what)(), tmp_path / "a.svg")
    with pytest.raises(ValueError, match="saved as .svg, .png or .pdf"):
        draw(what, tmp_path / "a.gif")


def test_without_anything_finite(tmp_path):
    with pytest.raises(ValueError, match="finite AUROC"):
        figure_one([Curve("a", np.array([10]), np.array([np.nan]), np.array([0.1]))], tmp_path / "a.svg")
    with pytest.raises(ValueError, match="truth is known"):
        figure_errors(ESTIMATES, np.full(5, np.nan), tmp_path / "a.svg")


def test_figure_one_draws_every_method_in_order_of_its_end(tmp_path, figure):
    late = Curve("late", np.array([0, 50, 500]), np.array([0.4, 0.3, np.nan]), np.array([0.1, 0.1, np.nan]))
    figure_one([*CURVES, late], tmp_path / "a.svg")
    (axes,) = figure().axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[:2] == ["method 6", "method 5"] and names[-2:] == ["lpe", "late"]
    drawn = marks(axes)
    np.testing.assert_array_equal(drawn["lpe"].get_xdata(), [30, 100, 300, 1000])
    np.testing.assert_allclose(drawn["lpe"].get_ydata(), 0.5 + 0.01 * np.log([30, 100, 300, 1000]))
    np.testing.assert_array_equal(drawn["late"].get_xdata(), [50])
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(np.ptp(band[band[:, 0] == 30, 1]), 2 * 1.96 * 0.01)
    assert axes.get_xscale() == "log" and axes.get_ylim()[0] < 0.3


def test_methods_are_told_apart():
    looks = [(_COLOURS[i % len(_COLOURS)], _DASHES[i % len(_DASHES)]) for i in range(36)]
    assert len(set(looks)) == 36 and len(set(_MARKS)) == len(_MARKS)
    lightness = [matplotlib.colors.to_rgb(colour) @ np.array([0.2126, 0.7152, 0.0722]) for colour in _COLOURS]
    assert max(lightness) < 0.75  # seen on white


def test_figure_two_draws_what_the_panel_holds(tmp_path, figure):
    figure_two(PANELS, tmp_path / "a.svg")
    shown = [axes for axes in figure().axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in shown] == [panel.prompt_id for panel in PANELS]
    plain, no_line, unbounded, flat, nothing = (marks(axes) for axes in shown)
    assert set(plain) == {"fitted", "not fitted", "none complied: upper end", "line at α = 1", "truth"}
    np.testing.assert_allclose(plain["fitted"].get_xdata(), [0.7, 0.5])
    np.testing.assert_allclose(plain["fitted"].get_ydata(), np.log10([0.02, 0.09]))
    np.testing.assert_allclose(plain["not fitted"].get_xdata(), [0.3])
    np.testing.assert_allclose(plain["none complied: upper end"].get_ydata(), np.log10(beta.ppf(0.975, 1, 100)))
    np.testing.assert_allclose(plain["line at α = 1"].get_ydata(), PANELS[0].intercept)
    dashed = next(line for line in shown[0].lines if len(line.get_xdata()) == 2 and line.get_xdata()[1] == 1)
    fitted = np.polyfit([0.7, 0.5], np.log10([0.02, 0.09]), 1)
    np.testing.assert_allclose(dashed.get_ydata(), np.polyval(fitted, [0.5, 1.0]))
    assert "truth" not in no_line and "line at α = 1" not in no_line
    assert set(nothing) == {"none complied: upper end", "truth"}
    assert flat["line at α = 1"].get_ydata()[0] <= 0
    # A truth without a lower bound goes on below the axis, which all panels share.
    bottom = shown[2].get_ylim()[0]
    assert {axes.get_ylim() for axes in shown} == {shown[2].get_ylim()}
    assert any(line.get_marker() == "v" and list(line.get_ydata()) == [bottom] for line in shown[2].lines)
    np.testing.assert_allclose(unbounded["truth"].get_ydata(), -7)


def test_panels_fill_the_figure(tmp_path, figure):
    for count in (1, 2, 5):
        figure_two(PANELS[:count], tmp_path / "a.png")
        sizes = [axes.get_position().size for axes in figure().axes]
        assert min(width for width, _ in sizes) > 0.6 / min(count, 4)


def test_errors_and_coverage(tmp_path, figure):
    figure_errors(ESTIMATES, TRUTH, tmp_path / "a.svg")
    shown = [axes for axes in figure().axes if axes.get_visible()]
    good, bold, zeros, shy = (marks(axes) for axes in shown[:4])
    known = TRUTH[np.isfinite(TRUTH)]
    np.testing.assert_allclose(good["identified"].get_xdata(), known)
    np.testing.assert_allclose(good["identified"].get_ydata(), known + 0.1)
    assert bold["identified"].get_ydata().min() == -12
    np.testing.assert_allclose(zeros["none complied: upper end"].get_ydata(), [-4, -4])
    assert len(shy["identified"].get_xdata()) == 1 and len(shy["not identified"].get_xdata()) == 3
    dots = [line for line in shown[4].lines if line.get_marker() == "o"]
    # Of zeros three intervals are known; of shy one rate is stood by.
    np.testing.assert_allclose([line.get_xdata()[0] for line in dots], [1, 0.25, 1, 1])
    ends = np.array([bar.get_segments()[0][:, 0] for bar in shown[4].collections])
    np.testing.assert_allclose(ends[1], beta.ppf([0.025, 0.975], [1, 2], [4, 3]))
    assert [text.get_text() for text in shown[4].texts] == list(ESTIMATES)


def test_matplotlib_is_imported_only_when_drawing():
    code = "import sys, lpe_jax.reporting.evaluation_figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
