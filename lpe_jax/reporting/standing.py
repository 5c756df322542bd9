"""What one prompt's result is called, and where it stands in a table."""

from __future__ import annotations

import math

from lpe_jax.reporting.table import PromptResult, unfitted
from lpe_jax.reporting.text import format_interval

METHODS = {"lpe": "straight line", "path": "bending path", "naive": "count"}
# What a row is called by, and filtered by: the worst that is to be said of its rate.
STATES = {
    "identified": "identified",
    "doubt": "not identified",
    "fallback": "no fit",
    "contradicted": "contradicted",
    "nohit": "no hit",
}


def place_of(result: PromptResult) -> float:
    """The log10 rate, or the upper end where nothing complied."""
    rate = float(result.estimate.log10_rate)
    return float(result.estimate.high) if rate == -math.inf else rate


def interval_of(result: PromptResult) -> str:
    """The rate with its 95 % interval, or the upper end alone."""
    return format_interval(*(float(getattr(result.estimate, name)) for name in ("log10_rate", "low", "high")))


def state_of(result: PromptResult) -> str:
    """One of STATES."""
    if result.contradicted:
        return "contradicted"
    if unfitted(result):
        return "fallback"
    if float(result.estimate.log10_rate) == -math.inf:
        return "nohit"
    return "identified" if bool(result.estimate.identified) else "doubt"


def order_of(result: PromptResult) -> str:
    """For a browser to sort by: upper ends alone come after all rates."""
    behind = 1000.0 if float(result.estimate.log10_rate) == -math.inf else 0.0
    return sortable(place_of(result) - behind)


def sortable(value: float) -> str:
    """For a browser to sort by."""
    return "-9999" if math.isnan(value) or value == -math.inf else f"{value:.6g}"
