"""What a run found, as rows: estimates.csv, the table on the terminal, and the line printed per finished prompt."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lpe_jax.estimation.judge_error import JudgeQuality, floor
from lpe_jax.estimation.likelihood import LEAST_HITS
from lpe_jax.estimation.lpe import lone_beside
from lpe_jax.records.files import write_whole
from lpe_jax.reporting.text import (
    display_width,
    format_interval,
    format_rate,
    pad,
    printable,
    shorten,
    spreadsheet_safe,
)
from lpe_jax.types import NO_REASON, Counts, Estimate

# Files of a run, and of a run that is judged again: a row per prompt, and the table as it is printed.
CSV, TEXT = "estimates.csv", "estimates.txt"
COLUMNS = (
    "prompt_id",
    "rate",
    "low",
    "high",
    "method",
    "slope",
    "points",
    "rollouts",
    "tokens",
    "complied",
    "refused",
    "unscored",
    "note",
    "start_alpha",
    "r2",
    "truth",
    "naive_check",
)
TEXT_COLUMNS = ("prompt_id", "method", "note")


@dataclasses.dataclass(frozen=True)
class PromptResult:
    """All that is reported of one prompt and one method, on the host.

    estimate holds scalars (and `used` [A]); fit and search are NumPy counts [A], search None for methods without
    one. complied, refused and unscored count verdicts over all rollouts. truth is (log10 rate, its standard error)
    where it is known; the error may be NaN. threshold is the rate that the search looked for. unscored_extremes
    is log10 rate if the unscored rollouts had all refused, and all complied, where that is known; corrected whether
    the estimate is corrected for the judge's errors. naive is (complied, scored) of naive rollouts that the estimate
    was checked against, contradicted whether they complied more often than it can explain; unscored_in_check counts
    those of `unscored` that no estimate is fitted to, reasons how often the judge gave which for any of `unscored`.
    settling is (alpha, rollouts) that would identify the rate, where too little complied and were the path as fitted.
    from_naive says that no path was fitted and the estimate is what those naive rollouts say. note is added to the
    notes that `notes` makes.
    """

    prompt_id: str
    estimate: Estimate
    fit: Counts
    method: str
    search: Counts | None = None
    category: str = ""
    complied: int = 0
    refused: int = 0
    unscored: int = 0
    tokens: int = 0
    truth: tuple[float, float] | None = None
    threshold: float = 0.5
    unscored_extremes: tuple[float, float] | None = None
    corrected: bool = False
    naive: tuple[int, int] | None = None
    contradicted: bool = False
    unscored_in_check: int = 0
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    settling: tuple[float, float] | None = None
    from_naive: bool = False
    note: str = ""


def unfitted(result: PromptResult) -> bool:
    """Whether a default stands in for its rate: no path was fitted, and nothing was measured beside the original."""
    cells = (np.asarray(getattr(result.fit, name)) for name in ("alpha", "scored", "complied"))
    return bool(result.estimate.fallback) and not lone_beside(*cells).any()


def stood_by(result: PromptResult) -> bool:
    """Whether the estimator has a rate of it, and stands by it. An upper end alone, where nothing complied, is none."""
    has_rate = float(result.estimate.log10_rate) > -math.inf
    return has_rate and bool(result.estimate.identified) and not unfitted(result)


def notes(result: PromptResult) -> str:
    """What a reader must know before trusting the numbers, in words, joined by "; "."""
    found = []
    estimate, search = result.estimate, result.search
    if search is not None:
        n, k = (np.stack([getattr(c, name) for c in (search, result.fit)]) for name in ("scored", "complied"))
        if not (k / np.maximum(n, 1) >= result.threshold)[n > 0].any():
            found.append(f"no alpha reached {100 * result.threshold:g} %")
    if result.from_naive:
        k, n = result.naive
        found.append(f"no line could be fitted: this is what the naive rollouts say, {k} of {n} of which complied")
    elif bool(estimate.fallback) and not unfitted(result):
        found.append("no line: the rate is that of the only alpha with compliant rollouts, beside the original")
    elif unfitted(result):
        found.append("fallback: no line, as fewer than two alphas have compliant rollouts; the rate is a default")
    elif float(estimate.intercept) > 0 and float(estimate.log10_rate) == 0:
        found.append("rate clipped at 1")
    if result.contradicted:
        k, n = result.naive
        found.append(
            f"not identified: {k} of {n} naive rollouts complied, more than the path explains; the original complies "
            "in ways of its own, and naive rollouts alone tell how often"
        )
    elif not bool(estimate.identified) and not bool(estimate.fallback) and not result.from_naive:
        found.append(f"not identified: {_why_not(result)}")
    total = result.complied + result.refused + result.unscored
    if result.unscored:
        share = f"{result.unscored} of {total} rollouts unscored ({_percent(result.unscored / total)} %)"
        found.append(share + _why_unscored(result.reasons))
        if search is None and np.size(result.fit.alpha) == 1:
            ends = [result.complied / total, (result.complied + result.unscored) / total]
            low, high = (format_rate(math.log10(end) if end else -math.inf) for end in ends)
            found.append(f"share complied between {low} and {high} whatever they were")
        elif result.from_naive:
            k, n, u = *result.naive, result.unscored_in_check
            if u:
                ends = (format_rate(math.log10(x / (n + u)) if x else -math.inf) for x in (k, k + u))
                found.append("rate {} had the naive ones all refused, {} had they all complied".format(*ends))
        elif search is not None and result.unscored > result.unscored_in_check:
            rate = "uncorrected rate" if result.corrected else "rate"
            if result.unscored_extremes is None:
                found.append(f"what the {rate} would be with them is unknown: some alpha has no verdict at all")
            else:
                refused, complied = (format_rate(end) for end in result.unscored_extremes)
                found.append(f"{rate} {refused} had they all refused, {complied} had they all complied")
    if result.corrected:
        found.append("corrected for the judge's errors")
    if result.method == "naive" and float(result.fit.alpha[0]) != 1.0:
        found.append(f"the rate of the mixture at alpha = {float(result.fit.alpha[0]):g}, not of the original")
    if result.note:
        found.append(result.note)
    return "; ".join(found)


def _why_unscored(reasons: Mapping[str, int]) -> str:
    """The judge's reason that comes up most, where it gave any."""
    if not set(reasons) - {NO_REASON}:
        return ""
    reason = max(sorted(reasons), key=reasons.__getitem__)
    return f", {'mostly' if len(reasons) > 1 else 'all'} for this reason: {shorten(reason, 120)}"


def _why_not(result: PromptResult) -> str:
    """Why a rate is not identified, and what would settle it."""
    hits = int(np.sum(result.fit.complied))
    if hits < LEAST_HITS:
        alpha, n = (math.nan, math.inf) if result.settling is None else result.settling
        said = f"{hits} compliant rollout{'s' * (hits != 1)} to go by"
        if 0 < n < math.inf:
            said += f"; {_round_up(n):,} more at alpha = {alpha:g} would bring the interval to a decade"
        return said
    if result.method == "bend":
        return f"the interval spans {float(result.estimate.high - result.estimate.low):.2g} decades"
    said = "the path may be far from straight" if result.search is not None else "paths bend unlike the fitted curve"
    rate = float(result.estimate.log10_rate)
    if -12 < rate < 0:
        said += "; --method=path may tell," if result.method == "lpe" else ";"
        said += f" {_round_up(10 / 10**rate):,} naive rollouts would, if it is about this rate (by ten hits)"
    return said


def _round_up(n: float) -> int:
    """To two digits."""
    unit = 10 ** max(math.floor(math.log10(n)) - 1, 0)
    return math.ceil(n / unit - 1e-9) * unit


def floor_words(judge: JudgeQuality) -> str:
    """What the judge's false positives mean for rates, in a sentence."""
    upper = format_rate(float(floor(judge)[1]))
    return (
        f"the judge was wrong on {judge.false_alarms:,} of {judge.specificity_total:,} refusals, so up to {upper} of "
        f"refusals may be called compliant: naive rates under {upper} say nothing, and extrapolated ones rest on the "
        "assumption that it errs as often at every alpha and on every prompt, and that rates do not rise with alpha"
    )


def estimates_rows(results: Iterable[PromptResult]) -> list[dict[str, str]]:
    """One row per result, in COLUMNS. Rates are shares, not log10; slope is log10 rate per unit alpha.

    What is not known is empty: slope and r2 without a line, start_alpha without a search, the truth of real prompts.
    low is 0 where nothing bounds the rate from below.
    """

    def number(value, digits=6) -> str:
        value = float(value)
        return "" if math.isnan(value) else f"{value:.{digits}g}"

    def rate(log10_rate) -> str:
        return "" if math.isnan(log10_rate) else format_rate(float(log10_rate), digits=6)

    rows = []
    for result in results:
        estimate = result.estimate
        row = {
            "prompt_id": result.prompt_id,
            "rate": rate(estimate.log10_rate),
            "low": rate(estimate.low),
            "high": rate(estimate.high),
            "method": result.method,
            "slope": number(estimate.slope),
            "points": str(int(np.sum(estimate.used))),
            "rollouts": str(int(estimate.rollouts)),
            "tokens": str(int(result.tokens)),
            "complied": str(int(result.complied)),
            "refused": str(int(result.refused)),
            "unscored": str(int(result.unscored)),
            "note": notes(result),
            "start_alpha": number(estimate.start_alpha),
            "r2": number(estimate.r2),
            "truth": "" if result.truth is None else rate(result.truth[0]),
            "naive_check": "" if result.naive is None else f"{result.naive[0]}/{result.naive[1]}",
        }
        rows.append(row)
    return rows


def write_csv(rows: Iterable[Mapping[str, str]], path: str | os.PathLike) -> None:
    """Writes rows as UTF-8 CSV, whole or not at all: a reader sees the old file or the new one.

    In text cells control characters are escaped, and what a spreadsheet would run as a formula gets a leading
    apostrophe; numbers stay as they are. Raises ValueError for a column that is not in COLUMNS, RunError if the disk
    does not take the file.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, **{name: spreadsheet_safe(printable(row[name])) for name in TEXT_COLUMNS}})
    write_whole(Path(path), text.getvalue())


def terminal_table(results: Sequence[PromptResult], width: int = 120) -> str:
    """A plain-text table of at most `width` columns, a note under the row it belongs to, wrapped and never cut.

    The truth stands beside the rate if any is known; slope, points, start and R² if any line was sought. Then come
    verdicts: complied, refused, unscored; and of naive rollouts beside: complied, of how many.
    """
    truths = any(result.truth is not None for result in results)
    methods = len({result.method for result in results}) > 1
    lines = any(result.search is not None for result in results)
    header = ["prompt", "rate [95 % interval]"]
    header += ["truth"] * truths + ["method"] * methods + ["slope", "points", "start", "R²"] * lines
    checked = any(result.naive is not None for result in results)
    header += ["rollouts", "yes / no / ?"] + ["naive"] * checked
    rows = [header]
    for result in results:
        estimate = result.estimate
        row = [
            shorten(printable(result.prompt_id), 22),
            format_interval(float(estimate.log10_rate), float(estimate.low), float(estimate.high)),
        ]
        if truths:
            row.append("" if result.truth is None else format_rate(float(result.truth[0])))
        if methods:
            row.append(shorten(printable(result.method), 16))
        if lines:
            row += [
                _fixed(estimate.slope, 1),
                str(int(np.sum(estimate.used))),
                _fixed(estimate.start_alpha, 2),
                _fixed(estimate.r2, 2),
            ]
        row += [str(int(estimate.rollouts)), f"{result.complied} / {result.refused} / {result.unscored}"]
        rows.append(row + ["" if result.naive is None else f"{result.naive[0]} / {result.naive[1]}"] * checked)
    widths = [max(display_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    out = ["  ".join(pad(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows]
    for i, result in reversed(list(enumerate(results, start=1))):
        said = textwrap.wrap(printable(notes(result)), width - 4)
        out[i + 1 : i + 1] = ["    " + line for line in said]
    return "\n".join(out)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.2g}"


def _fixed(value, decimals: int) -> str:
    """A number with so many decimals, or nothing where there is none."""
    return "" if math.isnan(float(value)) else f"{float(value):.{decimals}f}"


def prompt_line(result: PromptResult, done: int, total: int, final: bool = True) -> str:
    """The line printed when a prompt is finished: which, the rate, the truth if known, what it cost, what to mind.

    Args:
      final: nothing of it changes any more; otherwise it says so, as it is from the prompt's own rollouts alone.
    """
    estimate = result.estimate
    parts = [
        f"[{done:>{len(str(total))}}/{total}]",
        printable(result.prompt_id),
        format_interval(float(estimate.log10_rate), float(estimate.low), float(estimate.high)),
    ]
    if not final:
        parts.append("(before prompts are fitted together)")
    if result.truth is not None:
        parts.append(f"(truth {format_rate(float(result.truth[0]))})")
    parts.append(f"{int(estimate.rollouts)} rollouts")
    said = printable(notes(result))
    return "  ".join(parts + [said] * bool(said))
