"""Several runs of the same prompts side by side: their rates, how far apart they are, and how well each ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from lpe_jax.reporting import ground, svg
from lpe_jax.reporting.report import RunContents
from lpe_jax.reporting.standing import METHODS, STATES, interval_of, order_of, place_of, sortable, state_of
from lpe_jax.reporting.table import PromptResult
from lpe_jax.reporting.text import format_rate, printable


def compared(runs: Sequence[RunContents]) -> list[dict[str, Any]]:
    """Prompts that several runs have, with each run's rate: rows for a table of runs side by side."""
    by_id = [{r.prompt_id: r for r in run.results} for run in runs]
    order = dict.fromkeys(i for run in by_id for i in run)
    rows = []
    for prompt_id in order:
        cells = [run.get(prompt_id) for run in by_id]
        there = [r for r in cells if r is not None]
        # An upper end alone is near to and far from everything below it.
        rates = [place_of(r) for r in there if float(r.estimate.log10_rate) > -math.inf]
        apart = max(rates) - min(rates) if len(rates) > 1 else None
        ends = [(float(r.estimate.low), float(r.estimate.high)) for r in there]
        rows.append(
            {
                "id": printable(prompt_id),
                "cells": [None if r is None else _cell(r) for r in cells],
                "truth": next((format_rate(r.truth[0]) for r in cells if r is not None and r.truth is not None), ""),
                "apart": "" if apart is None else f"× {_factor(apart)}",
                "apart_sort": "-1" if apart is None else sortable(apart),
                "disjoint": len(ends) > 1 and max(low for low, _ in ends) > min(high for _, high in ends),
            }
        )
    return rows


def _factor(decades: float) -> str:
    """To two digits: "1.6", "1,100"."""
    value = 10 ** min(decades, 99.0)
    return f"{value:.2g}" if value < 100 else f"{float(f'{value:.2g}'):,.0f}" if value < 1e9 else f"{value:.1e}"


def _cell(result: PromptResult) -> dict[str, str]:
    state = state_of(result)
    return {
        "text": interval_of(result),
        "sort": order_of(result),
        "state": "" if state == "identified" else STATES[state],
    }


def ranks_compared(runs: Sequence[RunContents]) -> dict[str, Any] | None:
    """Where several runs of the same prompts stand in one figure of AUROC against rollouts; None where too little is
    known of them.
    """
    shared = set.intersection(*({r.prompt_id for r in ground.known(run.results)} for run in runs))
    of_shared = [[r for r in run.results if r.prompt_id in shared] for run in runs]
    ranks = [ground.ranked(results, run.procedure) for results, run in zip(of_shared, runs, strict=True)]
    # Prompts may be called alike in two worlds.
    truths = {frozenset((r.prompt_id, r.truth[0]) for r in results) for results in of_shared}
    if any(rank is None for rank in ranks) or len(truths) > 1:
        return None
    some = ranks[0]
    names = [
        f"{number}: {printable(run.name)} ({METHODS.get(run.method, run.method)}), {rank.area:.2f} [{rank.low:.2f}, "
        f"{rank.high:.2f}] with {rank.spent:,.0f}"
        for number, (rank, run) in enumerate(zip(ranks, runs, strict=True), start=1)
    ]
    return {
        "figure": Markup(svg.auroc_svg([(str(number), rank) for number, rank in enumerate(ranks, start=1)])),
        "fewer": any(len(rank.fewer[0]) > 1 for rank in ranks),
        "prompts": some.prompts,
        "positives": some.positives,
        "names": names,
    }
