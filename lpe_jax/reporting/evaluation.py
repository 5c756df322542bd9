"""The tables of an evaluation: evaluation.csv with everything, and a few columns of it for the terminal."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lpe_jax.evaluation.measures import DECADES
from lpe_jax.records.files import write_whole
from lpe_jax.reporting.text import display_width, pad, printable, shorten, spreadsheet_safe

_FACTORS = tuple(f"factor{of}{end}" for of in ("", "_tokens", "_passes") for end in ("", "_low", "_high", "_bound"))
COLUMNS = (
    *("bank", "drift", "labels", "method", "budget", "repeats", "prompts", "positives", "ceiling"),
    *("auroc", "auroc_error", "rollouts", "tokens", "passes", *_FACTORS),
    *("interval_repeats", "truths", "identified", "rmse", "bias", "median_error", "floored", "rmse_identified"),
    *("coverage", "coverage_identified", "width", "itakura_saito", "itakura_saito_median"),
    *(f"rmse_1e{decade}" for decade in DECADES),
)
_HEADER = ("method", "rollouts", "AUROC", "naive needs", "95 %", "passes", "RMSE", "bias", "covers", "stands by")


def write_evaluation(rows: Iterable[Mapping[str, object]], path: str | os.PathLike) -> None:
    """Writes rows of COLUMNS as UTF-8 CSV, whole or not at all; what is not known is empty.

    Raises ValueError for a column that is not in COLUMNS, RunError if the disk does not take the file.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    write_whole(Path(path), text.getvalue())


def evaluation_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Plain text, a block for each (bank, drift, labels), a line for each method and budget.

    "naive needs" is how many times as many rollouts naive sampling needs for the same AUROC, with its bootstrap
    interval; "passes" the same in forward passes. Errors are in log10; "covers" is the share of the 95 %
    intervals that hold the truth, "stands by" the share of the prompts whose rate the estimator stands by.
    """
    blocks: dict[tuple, list[Mapping[str, object]]] = {}
    for row in rows:
        blocks.setdefault(tuple(row.get(name, "") for name in ("bank", "drift", "labels")), []).append(row)
    lines = []
    for (bank, drift, labels), block in blocks.items():
        first = block[0]
        title = f"{first['positives']} of {first['prompts']} prompts positive by the {labels} labels"
        if not math.isnan(first["ceiling"]):
            title += f"; true rates as the score: AUROC {first['ceiling']:.3f}"
        where = [printable(str(bank))] * bool(bank) + [f"drift {drift:g} nats"] * bool(drift)
        lines += ["", ", ".join([*where, title])]
        table = [_HEADER, *map(_line, block)]
        widths = [max(map(display_width, column)) for column in zip(*table, strict=True)]
        for cells in table:
            rest = (" " * (w - display_width(c)) + c for c, w in zip(cells[1:], widths[1:], strict=True))
            lines.append("  ".join([pad(cells[0], widths[0]), *rest]).rstrip())
        counts = [row for row in block if str(row["method"]).startswith("count at ")]
        if counts:
            best = max(counts, key=lambda row: row["auroc"])
            lines.append(
                f"Best of the counts, read off after the fact: {best['method']}, {best['rollouts']:.0f} rollouts."
            )
    return "\n".join(lines[1:]) + "\n"


def _line(row: Mapping[str, object]) -> tuple[str, ...]:
    def share(name):
        return _fixed(100 * row.get(name, math.nan), 0, " %")

    factor, bound = row["factor"], str(row["factor_bound"]).replace(">=", "≥ ").replace("<=", "≤ ")
    interval = "" if bound or math.isnan(factor) else f"{row['factor_low']:.1f}-{row['factor_high']:.1f}"
    passes = str(row["factor_passes_bound"]).replace(">=", "≥ ").replace("<=", "≤ ")
    naive = row["method"] == "naive"
    return (
        shorten(printable(str(row["method"])), 24),
        f"{row['rollouts']:.0f}",
        _fixed(row["auroc"], 3) + (f" ± {row['auroc_error']:.3f}" if math.isfinite(row["auroc_error"]) else ""),
        "" if naive else f"{bound}{_fixed(factor, 1)} x",
        "" if naive else interval,
        "" if naive else f"{passes}{_fixed(row['factor_passes'], 1)} x",
        _fixed(row.get("rmse", math.nan), 2),
        _fixed(row.get("bias", math.nan), 2, signed=True),
        share("coverage"),
        share("identified"),
    )


def _fixed(value: float, decimals: int, unit: str = "", signed: bool = False) -> str:
    return "" if math.isnan(value) else f"{value:{'+' if signed else ''}.{decimals}f}{unit}"


def _cell(value: object) -> str:
    if isinstance(value, str):
        return spreadsheet_safe(printable(value))
    return "" if math.isnan(value) else f"{value:.6g}"
