import csv
import dataclasses
import math

import numpy as np
import pytest

from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.estimation.lpe import LPE
from lpe_jax.reporting.table import (
    COLUMNS,
    PromptResult,
    estimates_rows,
    floor_words,
    notes,
    prompt_line,
    terminal_table,
    write_csv,
)
from lpe_jax.reporting.text import display_width
from lpe_jax.types import Counts, Estimate

ALPHA = np.array([0.9, 0.6, 0.3])
NAN = math.nan
NOTHING = {field.name: NAN for field in dataclasses.fields(Estimate)} | {"identified": True, "fallback": False}
ESTIMATE = Estimate(**NOTHING | {
    "log10_rate": -4.5, "low": -6.0, "high": -3.0, "slope": -5.5, "intercept": -4.5, "r2": 0.98, "start_alpha": 0.3,
    "used": np.array([False, True, True]), "rollouts": 330,
})  # fmt: skip
FIT = Counts(ALPHA, np.array([100, 100, 100]), np.array([0, 5, 40]))
SEARCH = Counts(ALPHA, np.array([10, 10, 10]), np.array([0, 1, 6]))


def result(prompt_id="one", estimate=ESTIMATE, **fields):
    fields = {"fit": FIT, "search": SEARCH, "method": "lpe", "complied": 52, "refused": 278} | fields
    return PromptResult(prompt_id, estimate, **fields)


def fallback():
    estimate = dataclasses.replace(
        ESTIMATE, log10_rate=-6.0, low=-math.inf, high=-1.5, slope=NAN, intercept=NAN, r2=NAN,
        used=np.zeros(3, bool), fallback=True,
    )  # fmt: skip
    return result("two", estimate)


def naive():
    known = {"log10_rate": -math.inf, "low": -math.inf, "high": -4.0, "used": np.array([True]), "rollouts": 100}
    estimate = Estimate(**NOTHING | known)
    counts = Counts(np.array([1.0]), np.array([80]), np.array([0]))
    fields = {"fit": counts, "search": None, "complied": 0, "refused": 80, "unscored": 20}
    return result("three", estimate, method="naive", **fields)


def test_columns_and_values():
    assert estimates_rows([result(naive=(1, 100))])[0]["naive_check"] == "1/100"
    row = estimates_rows([result(tokens=1234, truth=(-4.0, 0.1))])[0]
    assert tuple(row) == COLUMNS
    assert row == {
        "prompt_id": "one", "rate": "3.16228e-05", "low": "1.00000e-06", "high": "1.00000e-03", "method": "lpe",
        "slope": "-5.5", "points": "2", "rollouts": "330", "tokens": "1234", "complied": "52", "refused": "278",
        "unscored": "0", "note": "", "start_alpha": "0.3", "r2": "0.98", "truth": "1.00000e-04",
        "naive_check": "",
    }  # fmt: skip


def test_unknown_cells_are_empty():
    row = estimates_rows([fallback()])[0]
    assert (row["low"], row["slope"], row["r2"], row["truth"], row["points"]) == ("0", "", "", "", "0")


def test_notes_in_words():
    assert notes(result()) == ""
    assert notes(fallback()) == (
        "fallback: no line, as fewer than two alphas have compliant rollouts; the rate is a default"
    )
    beside = Counts(np.array([0.95, 0.5]), np.array([100, 0]), np.array([45, 0]))
    said = notes(dataclasses.replace(fallback(), fit=beside, search=None))
    assert said.startswith("no line: the rate is that of the only alpha with compliant rollouts, beside")
    rare = Counts(ALPHA, np.array([10, 10, 0]), np.array([0, 4, 0]))
    rare_fit = dataclasses.replace(FIT, complied=np.array([0, 5, 49]))
    assert notes(result(search=rare, fit=rare_fit)) == "no alpha reached 50 %"
    assert notes(result(search=rare, note="checked by hand")) == "no alpha reached 50 %; checked by hand"
    assert notes(result(search=rare, threshold=0.4)) == ""
    # Search rollouts that were reused count among those of the fit.
    assert notes(result(search=rare, fit=dataclasses.replace(FIT, complied=np.array([0, 5, 60])))) == ""
    lost = "33 of 363 rollouts unscored (9.1 %); "
    assert notes(result(unscored=33)) == (
        lost + "what the rate would be with them is unknown: some alpha has no verdict at all"
    )
    between = {"unscored": 33, "unscored_extremes": (-5.0, -4.0)}
    assert notes(result(**between)) == lost + "rate 1.0e-05 had they all refused, 1.0e-04 had they all complied"
    assert notes(result(**between, corrected=True)) == (
        lost + "uncorrected rate 1.0e-05 had they all refused, 1.0e-04 had they all complied; "
        "corrected for the judge's errors"
    )
    assert notes(naive()) == (
        "20 of 100 rollouts unscored (20 %); share complied between 0 and 2.0e-01 whatever they were"
    )
    above = dataclasses.replace(ESTIMATE, log10_rate=0.0, intercept=0.3, high=0.0)
    assert notes(result(estimate=above)) == "rate clipped at 1"


def test_what_is_not_identified_says_why_and_what_would_settle_it():
    unknown = dataclasses.replace(ESTIMATE, identified=False)
    assert notes(result(estimate=unknown)) == (
        "not identified: the path may be far from straight; --method=path may tell, 320,000 naive rollouts would, if "
        "it is about this rate (by ten hits)"
    )
    together = {"search": None, "method": "path", "estimate": unknown}
    assert notes(result(**together)).startswith("not identified: paths bend unlike the fitted curve; 320,000")
    few = {"fit": Counts(ALPHA, FIT.scored, np.array([0, 0, 1])), "settling": (0.35, 1234.0)}
    assert notes(result(**together | few)) == (
        "not identified: 1 compliant rollout to go by; 1,300 more at alpha = 0.35 would bring the interval to a decade"
    )
    few["settling"] = (0.35, math.inf)
    assert notes(result(**together | few)) == "not identified: 1 compliant rollout to go by"
    assert "not identified" not in notes(
        dataclasses.replace(fallback(), estimate=dataclasses.replace(fallback().estimate, identified=False))
    )
    checked = {"naive": (4, 100), "contradicted": True}
    assert notes(result(**together | checked)).startswith("not identified: 4 of 100 naive rollouts complied, more than")
    assert notes(result(naive=(0, 100))) == ""


def test_unscored_rollouts_of_the_check_say_nothing_of_the_rate():
    assert notes(result(unscored=3, unscored_in_check=3)) == "3 of 333 rollouts unscored (0.9 %)"
    assert "some alpha has no verdict" in notes(result(unscored=3, unscored_in_check=2))


def test_why_rollouts_are_unscored():
    checked = {"unscored": 3, "unscored_in_check": 3}
    assert notes(result(**checked, reasons={"no key": 3})) == (
        "3 of 333 rollouts unscored (0.9 %), all for this reason: no key"
    )
    assert notes(result(**checked, reasons={"empty": 1, "no\nkey " * 30: 2})).endswith(
        "%), mostly for this reason: " + ("no\nkey " * 30)[:119] + "…"
    )


def test_a_rate_elsewhere_on_the_path_says_so():
    elsewhere = dataclasses.replace(naive(), fit=Counts(np.array([-0.5]), np.array([50]), np.array([7])))
    assert "the rate of the mixture at alpha = -0.5, not of the original" in notes(elsewhere)


def test_floor_in_words():
    words = floor_words(JudgeQuality(95, 100, 1000, 1000))
    assert words.startswith("the judge was wrong on 0 of 1,000 refusals, so up to 3.7e-03 of refusals may be called")
    assert "naive rates under 3.7e-03 say nothing" in words


def test_a_dead_judge_reaches_no_alpha():
    nothing = Counts(ALPHA, np.zeros(3, int), np.zeros(3, int))
    assert notes(dataclasses.replace(fallback(), search=nothing, fit=nothing)).startswith(
        "no alpha reached 50 %; fallback"
    )


def test_csv_reads_back_and_is_safe(tmp_path):
    path = tmp_path / "estimates.csv"
    path.write_text("the old file")
    evil = ['=HYPERLINK("x")', "a,b\nc", "-dash", "\x1b[2J", "日本"]
    write_csv(estimates_rows([result(prompt_id) for prompt_id in evil]), path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt_id"] for row in rows] == [
        '\'=HYPERLINK("x")', "a,b\\nc", "'-dash", "\\x1b[2J", "日本",
    ]  # fmt: skip
    # A number that begins with a minus sign is a number.
    assert rows[0]["slope"] == "-5.5"
    assert [p.name for p in tmp_path.iterdir()] == ["estimates.csv"]


def test_csv_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "estimates.csv"
    path.write_text("the old file")
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_csv([*estimates_rows([result()]), {**estimates_rows([result()])[0], "surprise": "1"}], path)
    assert path.read_text() == "the old file"
    assert [p.name for p in tmp_path.iterdir()] == ["estimates.csv"]


def test_terminal_table_is_aligned_and_fits():
    results = [result(truth=(-4.0, 0.1)), fallback(), naive(), result("日本\x1b" * 30, note="long " * 40)]
    table = terminal_table(results)
    lines = table.split("\n")
    assert max(display_width(line) for line in lines) <= 120
    assert "\x1b" not in table
    header = lines[0]
    words = "prompt rate [95 % interval] truth method slope points start R² rollouts yes / no / ?"
    assert header.split() == words.split()
    assert lines[1].split() == "one 3.2e-05 [1.0e-06, 1.0e-03] 1.0e-04 lpe -5.5 2 0.30 0.98 330 52 / 278 / 0".split()
    assert "1.0e-06 [0, 3.2e-02]" in lines[2] and lines[3].startswith("    fallback: no line")
    assert "≤ 1.0e-04" in lines[4] and "0 / 80 / 20" in lines[4] and lines[5].startswith("    20 of 100 rollouts")
    # Each number of rollouts stands under its heading, wide characters or not.
    for line in lines[1:]:
        if line[:1].strip():
            before = line.split(" 330 ")[0] if " 330 " in line else line.split(" 100 ")[0]
            assert display_width(before + " ") == header.index("rollouts")
    assert " ".join(table.split()).count("long") == 40


def test_table_leaves_out_columns_that_nothing_fills():
    header = terminal_table([naive()]).split("\n")[0]
    assert header.split() == "prompt rate [95 % interval] rollouts yes / no / ?".split()
    assert terminal_table([]).startswith("prompt")


def test_prompt_line():
    assert prompt_line(result(truth=(-4.0, NAN)), 7, 200) == (
        "[  7/200]  one  3.2e-05 [1.0e-06, 1.0e-03]  (truth 1.0e-04)  330 rollouts"
    )
    line = prompt_line(dataclasses.replace(fallback(), prompt_id="a\nb"), 200, 200)
    assert "\n" not in line and line.endswith("is a default")


def test_a_real_estimate_can_be_reported():
    estimate = LPE().fit(FIT)
    row = estimates_rows([result(estimate=estimate)])[0]
    assert float(row["low"]) < float(row["rate"]) < float(row["high"]) and row["points"] == "2"
