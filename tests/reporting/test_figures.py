import dataclasses
import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import replay
from lpe_jax.reporting.figures import draw_all, figure_file, overview_figure, path_figure
from lpe_jax.reporting.table import PromptResult
from lpe_jax.reporting.text import printable
from lpe_jax.types import Counts

ALPHAS = np.array([0.9, 0.7, 0.5, 0.3, 0.1])


def make(prompt_id, complied, truth=None, scored=100):
    fit = Counts(ALPHAS, np.full(5, scored), np.array(complied))
    search = Counts(ALPHAS, np.full(5, 10), np.array(complied) // 10)
    estimate = LPE().fit(fit, search)
    return PromptResult(prompt_id, estimate, fit, "lpe", search=search, truth=truth)


RESULTS = [
    make("plain", [0, 2, 9, 40, 90], truth=(-4.0, 0.1)),
    make("$x^2 \\frac{$ \x1b 日本", [0, 0, 0, 0, 90], truth=(-7.0, math.nan)),
    make("steep", [0, 0, 1, 40, 90], truth=(-math.inf, math.nan)),
    make("all", [99, 99, 99, 99, 99]),
    make("nothing", [0, 0, 0, 0, 0], scored=0),
]


def naive():
    state, estimate = replay(Naive(50), np.zeros((1, 50), bool))
    return PromptResult("naive", estimate, Naive(50).counts(state), "naive", truth=(-3.0, 0.0))


@pytest.fixture
def axes(monkeypatch):
    """The axes of the last figure saved."""
    seen = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self.axes[0]), save(self, *a, **k)))
    return lambda: seen[-1]


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_same_results_same_bytes(tmp_path, suffix):
    for draw, what in ((path_figure, RESULTS[0]), (overview_figure, RESULTS)):
        first, second = tmp_path / f"1{suffix}", tmp_path / f"2{suffix}"
        draw(what, first)
        draw(what, second)
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size > 3000


def test_every_kind_of_result_can_be_drawn(tmp_path):
    for number, result in enumerate([*RESULTS, naive()]):
        path_figure(result, tmp_path / f"{number}.svg")
    overview_figure([RESULTS[3], RESULTS[4]], tmp_path / "unknown.svg")
    with pytest.raises(ValueError, match="at least one result"):
        overview_figure([], tmp_path / "none.svg")
    with pytest.raises(ValueError, match=r"saved as .svg, .png or .pdf"):
        path_figure(RESULTS[0], tmp_path / "x.gif")


def test_all_figures_in_all_formats(tmp_path):
    draw_all(RESULTS[:2], tmp_path / "figures", ("svg", "pdf"))
    names = {figure_file(r.prompt_id, "", suffix).name for r in RESULTS[:2] for suffix in (".svg", ".pdf")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names | {"overview.svg", "overview.pdf"}
    assert (tmp_path / "figures" / "overview.pdf").read_bytes().startswith(b"%PDF")
    draw_all(RESULTS[:2], tmp_path / "none", ())
    assert not (tmp_path / "none").exists()


def labels(axes):
    return [text.get_text().replace("\n", " ") for text in axes.get_legend().get_texts()]


def test_path_figure_says_which_points_were_fitted(tmp_path, axes):
    path_figure(RESULTS[0], tmp_path / "a.svg")
    drawn = dict(zip(*reversed(axes().get_legend_handles_labels()), strict=True))
    assert labels(axes()) == [
        *("search", "not fitted", "fitted", "none complied, not fitted: upper end", "fit", "extrapolation"),
        *("what the interval allows (no confidence band)", "estimate", "truth (set aside)"),
    ]
    fitted = drawn["fitted"].lines[0]
    np.testing.assert_allclose(fitted.get_xdata(), [0.7, 0.5, 0.3])
    np.testing.assert_allclose(fitted.get_ydata(), np.log10([0.02, 0.09, 0.4]))
    np.testing.assert_allclose(drawn["not fitted"].lines[0].get_xdata(), [0.1])
    # 0 of 100 is shown at its Clopper–Pearson upper end, 3.6 %.
    np.testing.assert_allclose(
        drawn["none complied, not fitted: upper end"].get_ydata(), [np.log10(0.0362167)], atol=1e-5
    )
    star = drawn["estimate"].lines[0]
    assert star.get_xdata()[0] == 1.0
    np.testing.assert_allclose(star.get_ydata()[0], RESULTS[0].estimate.log10_rate)
    np.testing.assert_allclose(drawn["extrapolation"].get_ydata()[-1], RESULTS[0].estimate.intercept)


def test_fallback_has_no_line_and_an_arrow(tmp_path, axes):
    path_figure(RESULTS[1], tmp_path / "b.svg")
    assert "no fit: a default" in labels(axes()) and not {"estimate", "fit"} & set(labels(axes()))
    bottom = axes().get_ylim()[0]
    assert any(line.get_marker() == "v" and list(line.get_ydata()) == [bottom] for line in axes().lines)


def test_overview_chooses_what_to_set_the_estimates_against(tmp_path, axes):
    overview_figure([*RESULTS, naive()], tmp_path / "a.svg")
    assert axes().get_xlabel() == "true rate"
    assert labels(axes()) == ["equal", "estimate", "no fit", "none complied: upper end"]
    drawn = dict(zip(*reversed(axes().get_legend_handles_labels()), strict=True))
    np.testing.assert_allclose(drawn["estimate"].lines[0].get_xdata(), [-4.0])
    unsure = dataclasses.replace(RESULTS[0], estimate=dataclasses.replace(RESULTS[0].estimate, identified=False))
    overview_figure([unsure, *RESULTS[1:], naive()], tmp_path / "c.svg")
    assert labels(axes()) == ["equal", "not identified", "no fit", "none complied: upper end"]
    overview_figure([dataclasses.replace(r, truth=None) for r in RESULTS], tmp_path / "b.svg")
    assert axes().get_xlabel() == "prompts, by estimated rate"


def test_a_file_says_what_it_is(tmp_path):
    """An SVG has text that is read aloud and a title, whatever is in an id."""
    for number, result in enumerate(RESULTS[:2]):
        path_figure(result, *(tmp_path / f"{number}{suffix}" for suffix in (".svg", ".png", ".pdf")))
        root = ElementTree.parse(tmp_path / f"{number}.svg").getroot()
        (title,) = root.findall("{http://www.w3.org/2000/svg}title")
        assert title.text == f"Compliance rate against alpha for {printable(result.prompt_id)}"
        words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "compliance rate" in words and printable(result.prompt_id) in words and "not fitted" in words
        fonts = set(re.findall(r"font-family: ([^;\"]+)", (tmp_path / f"{number}.svg").read_text()))
        assert fonts and all(font.endswith("sans-serif") for font in fonts), fonts
    overview_figure(RESULTS, tmp_path / "all.svg")
    assert "<title>Estimated rates of all prompts</title>" in (tmp_path / "all.svg").read_text()


def test_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    path_figure(RESULTS[0], tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_only_when_drawing():
    code = "import sys, lpe_jax.reporting.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_figure_files_are_safe(tmp_path):
    assert figure_file("../x", tmp_path).parent == tmp_path
    assert figure_file("a", tmp_path, ".png").suffix == ".png"
