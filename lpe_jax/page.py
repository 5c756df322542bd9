"""The report of a run: its results, and what its folder holds beside them, as one HTML file."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lpe_jax.estimation.procedure import Procedure
from lpe_jax.recall import Recall, some_of
from lpe_jax.records.files import part_files, read_bytes, write_whole
from lpe_jax.records.index import Index
from lpe_jax.records.ledger import spent_in
from lpe_jax.records.run import METRICS, metrics
from lpe_jax.reporting.columns import rows_of
from lpe_jax.reporting.html import render
from lpe_jax.reporting.report import LONGEST, Options, RunContents
from lpe_jax.reporting.table import CSV, PromptResult, estimates_rows
from lpe_jax.reporting.text import printable, spreadsheet_safe
from lpe_jax.types import Prompt

NAME = "report.html"
# The line of metrics.jsonl that says why rollouts went unscored: the ledger knows of replies alone.
UNSCORED = "unscored"
_NUMBERS = ("rate", "low", "high", "rollouts", "complied", "refused", "unscored")
_HASHED = (CSV, "prompts.jsonl")


def contents_of(
    folder: Path,
    record: Mapping[str, Any],
    prompts: Sequence[Prompt],
    index: Index,
    said: Recall,
    results: Sequence[PromptResult],
    phases: Mapping[tuple[str, str | None], int],
    options: Options,
    procedure: Procedure,
) -> RunContents:
    """What a report tells of a run.

    Args:
      record: its run.json, as of when it is finished.
      index: where its rollouts are; said: what its judge said of them.
      results: of all prompts.
      phases: what two judges in a row said, empty with one.
      procedure: by which the rollouts were drawn.

    Raises:
      RunError: something in the folder is damaged.
    """
    results = [_as_told(result) for result in results]
    rows = _own_rows(folder)
    differing = 0
    notes = {}
    for row in estimates_rows(results):
        own = rows.get(spreadsheet_safe(printable(row["prompt_id"])))
        if own is not None and all(own.get(name) == row[name] for name in _NUMBERS):
            notes[row["prompt_id"]] = own["note"]
        elif rows:
            differing += 1
    seconds, reasons = _measured(folder)
    if reasons is None:
        reasons = reasons_of(results)
    return RunContents(
        name=folder.resolve().name,
        record=record,
        results=results,
        prompts={prompt.id: prompt for prompt in prompts},
        shown={prompt.id: some_of(prompt, index, said, options.rollouts, LONGEST) for prompt in prompts},
        phases=phases,
        spent=spent_in(folder),
        seconds=seconds,
        hashes={
            name: hashlib.sha256(data).hexdigest()
            for name in _HASHED
            if (data := read_bytes(folder / name, None)) is not None
        },
        notes=notes,
        reasons=reasons,
        procedure=procedure,
        differing=differing,
    )


def write_page(runs: Sequence[RunContents], path: Path, options: Options) -> None:
    """Writes a report, whole or not at all, for its owner alone to read: it holds what models said.

    Raises:
      RunError: the disk does not take it.
    """
    write_whole(path, render(runs, options))


def reasons_of(results: Sequence[PromptResult]) -> dict[str, int]:
    """Why rollouts of any prompt went unscored, and how many."""
    return dict(sum((Counter(result.reasons) for result in results), Counter()))


def _as_told(result: PromptResult) -> PromptResult:
    """With the truth as a table tells of it, which is all that a folder keeps of it."""
    (row,) = estimates_rows([result])
    truth = float(row["truth"] or 0)
    return dataclasses.replace(result, truth=(math.log10(truth), math.nan) if truth > 0 else None)


def _own_rows(folder: Path) -> dict[str, dict[str, str]]:
    """The run's own table by prompt id; empty without one.

    Ids there are as a spreadsheet takes them.
    """
    path = folder / CSV
    return {row["prompt_id"]: row for row in rows_of(read_bytes(path), path) if row.get("prompt_id")}


def _measured(folder: Path) -> tuple[float, Mapping[str, int] | None]:
    """Seconds of drawing, and why rollouts went unscored where that was written down."""
    seconds, reasons = 0.0, None
    for path in part_files(folder / METRICS).values():
        for event in metrics(path):
            if event.get("event") == "batch":
                seconds += event["seconds"]
            if event.get("event") == UNSCORED:
                reasons = event["reasons"]
    return seconds, reasons
