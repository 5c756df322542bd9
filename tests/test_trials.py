"""Passes and failures counted elsewhere: read as they are meant, extrapolated as a run's own, or refused."""

import math
from pathlib import Path

import numpy as np
import pytest

from lpe_jax.errors import RunError
from lpe_jax.estimation.registry import estimate
from lpe_jax.reporting.table import estimates_rows, notes
from lpe_jax.trials import METHODS, Cell, added, extrapolated, read_csv
from lpe_jax.types import Counts

ALPHAS = (0.2, 0.4, 0.6, 0.8)
RARE = {0.2: Cell(30, 70), 0.4: Cell(16, 84), 0.6: Cell(5, 95), 0.8: Cell(2, 98)}
COMMON = {0.2: Cell(70, 30), 0.4: Cell(40, 60), 0.6: Cell(21, 79)}


def test_rows_of_a_csv_are_added_up(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text(
        '\ufeffalpha,prompt_id,complied,scored,unscored\n0.5,a,3,10,1\n0.5,a,1,10,\n0.25,a,7,10,0\n0.5,"b, too",0,4,0\n'
    )
    assert read_csv(path) == {"a": {0.5: Cell(4, 16, 1), 0.25: Cell(7, 3, 0)}, "b, too": {0.5: Cell(0, 4)}}


@pytest.mark.parametrize(
    "text, said",
    [
        ("prompt_id,alpha,scored\na,0.5,3\n", "no column 'complied'"),
        ("prompt_id,alpha,scored,complied\n", "no rows"),
        ("prompt_id,alpha,scored,complied\na,0.5,3,4\n", "row 1: complied must lie between 0 and scored"),
        ("prompt_id,alpha,scored,complied\na,0.5,3,1\na,0.5,3,-1\n", "row 2: complied must lie"),
        ("prompt_id,alpha,scored,complied\na,x,3,1\n", "row 1: alpha must be a number"),
        ("prompt_id,alpha,scored,complied\na,nan,3,1\n", "alpha a finite number"),
        ("prompt_id,alpha,scored,complied\na,0.5,3.5,1\n", "whole numbers"),
        ("prompt_id,alpha,scored,complied\n,0.5,3,1\n", "prompt_id must not be empty"),
        ("prompt_id,alpha,scored,complied,unscored\na,0.5,3,1,-2\n", "unscored not below 0"),
    ],
)
def test_what_is_no_count_is_refused(tmp_path, text, said):
    path = tmp_path / "counts.csv"
    path.write_text(text)
    with pytest.raises(RunError, match=said):
        read_csv(path)
    with pytest.raises(RunError, match="cannot be read"):
        read_csv(tmp_path / "none.csv")


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_estimator_on_these_counts(method):
    """Prompts at different alphas: a cell that was not drawn has no part in it."""
    trials = {"rare": RARE | {1.0: Cell(1, 999)}, "common": COMMON}
    fitted = {"naive": (1.0,), "lpe": ALPHAS}.get(method, (*ALPHAS, 1.0))
    for result, cells in zip(extrapolated(trials, method), trials.values(), strict=True):
        if method != "pooled":
            own = [alpha for alpha in fitted if alpha in cells]
            if not own:
                continue
            counts = Counts(own, [cells[a].scored for a in own], [cells[a].complied for a in own])
            expected = estimate(method, counts)
            for name in ("log10_rate", "low", "high"):
                assert float(getattr(result.estimate, name)) == pytest.approx(float(getattr(expected, name)), abs=1e-6)
        assert result.complied + result.refused == sum(cell.scored for cell in cells.values())
    assert [row["prompt_id"] for row in estimates_rows(extrapolated(trials, method))] == ["rare", "common"]


def test_trials_at_one_check_the_line():
    fits, breaks = extrapolated({"fits": RARE | {1.0: Cell(0, 200)}, "breaks": RARE | {1.0: Cell(60, 140)}}, "lpe")
    assert fits.naive == (0, 200) and not fits.contradicted and bool(fits.estimate.identified)
    assert breaks.contradicted and not bool(breaks.estimate.identified)
    assert "60 of 200 naive rollouts complied" in notes(breaks)
    assert float(fits.estimate.log10_rate) == float(breaks.estimate.log10_rate)


def test_unscored_trials_are_in_no_rate_and_said():
    without, with_some = (extrapolated({"a": RARE | {0.6: Cell(5, 95, unscored)}}, "lpe")[0] for unscored in (0, 20))
    assert float(without.estimate.log10_rate) == float(with_some.estimate.log10_rate)
    refused, complied = with_some.unscored_extremes
    assert refused < without.unscored_extremes[0] == float(without.estimate.log10_rate)
    assert refused != complied and "20 of 420 rollouts unscored" in notes(with_some)
    assert "had they all refused" in notes(with_some)
    # Those beside the line could not have changed it.
    (beside,) = extrapolated({"a": RARE | {1.0: Cell(0, 95, 5)}}, "lpe")
    assert "5 of 500 rollouts unscored" in notes(beside) and "had they all refused" not in notes(beside)


def test_what_a_method_cannot_go_by_is_said():
    for method, trials, said in [
        ("naive", {"a": RARE}, "no trials are at alpha = 1"),
        ("lpe", {"a": {0.5: Cell(1, 9), 1.0: Cell(0, 9)}}, "two alphas below 1 or more, and there are 1"),
        ("bend", {"a": {0.5: Cell(1, 9)}}, "two alphas or more"),
        ("lpe", {"a": RARE | {1.5: Cell(0, 9)}}, "alpha = 1.5"),
    ]:
        with pytest.raises(RunError, match=said):
            extrapolated(trials, method)


def test_a_line_is_found():
    """Rates exactly on a line of slope -4 in log10, ten million trials an alpha: 1e-4 at alpha = 1."""
    n = 10**7
    hits = {alpha: round(n * 10 ** (-4 * alpha)) for alpha in (0.2, 0.4, 0.6)}
    (result,) = extrapolated({"a": {alpha: Cell(k, n - k) for alpha, k in hits.items()}}, "lpe")
    assert float(result.estimate.log10_rate) == pytest.approx(-4.0, abs=1e-3)
    assert math.isnan(float(result.estimate.start_alpha)) and np.sum(result.estimate.used) == 3


def test_trials_are_added():
    assert added([{"a": {0.5: Cell(1, 2, 3)}}, {"b": {0.5: Cell(1)}, "a": {0.5: Cell(1, 1, 1), 1.0: Cell(2)}}]) == {
        "a": {0.5: Cell(2, 3, 4), 1.0: Cell(2)},
        "b": {0.5: Cell(1)},
    }


def test_a_file_without_end_is_not_read():
    with pytest.raises(RunError, match="it is no file"):
        read_csv(Path("/dev/zero"))


def test_trials_of_the_original_stand_where_there_is_no_line():
    """A default of one in a million beside 5 of 100 is none; and nobody is told that it is."""
    cells = {0.95: Cell(0, 100), 1.0: Cell(5, 95)}
    (found,) = extrapolated({"one": cells | {0.9: Cell(0, 100)}}, "lpe")
    assert found.from_naive and 10 ** float(found.estimate.log10_rate) == pytest.approx(0.05)
    assert not found.contradicted and "what the naive rollouts say, 5 of 100" in notes(found)
