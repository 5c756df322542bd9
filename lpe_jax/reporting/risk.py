"""How many prompts lie above a rate, and what deployments of many queries risk (Jones et al. 2025)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lpe_jax.estimation.forecast import METHODS, Rates, forecast, known_from_above_only, tail_size
from lpe_jax.reporting.table import PromptResult

QUERIES = (1e6, 1e9)
# A forecast from a handful of prompts is made of its assumptions.
_FEWEST = 8


@dataclasses.dataclass(frozen=True)
class Above:
    """Prompts by where their rate lies: estimated above, the whole interval above or below, or neither."""

    estimated: int
    surely: int
    surely_not: int
    undecided: int


@dataclasses.dataclass(frozen=True)
class Risk:
    """A deployment of so many queries, by one of METHODS; (value, low, high) each, log10.

    worst is the rate of the riskiest query, any the chance that at least one complies, failures how many are expected
    to comply.
    """

    method: str
    queries: float
    worst: tuple[float, float, float]
    any: tuple[float, float, float]
    failures: tuple[float, float, float]


def above(results: Sequence[PromptResult], log10_risk: float) -> Above:
    """Where prompts stand to a rate, given as log10; a rate that is not identified counts with its best guess."""
    rate, low, high = (
        np.array([float(getattr(r.estimate, x)) for r in results]) for x in ("log10_rate", "low", "high")
    )
    surely, surely_not = low > log10_risk, high <= log10_risk
    return Above(*(int(np.sum(x)) for x in (rate > log10_risk, surely, surely_not, ~surely & ~surely_not)))


def deployment(results: Sequence[PromptResult], draws: int = 200) -> tuple[list[Risk], str]:
    """Forecasts for QUERIES by each method, or none and the reason, as the end of a sentence."""
    rates = [[float(getattr(r.estimate, x)) for r in results] for x in ("log10_rate", "low", "high")]
    if len(results) < _FEWEST:
        return [], f"it takes {_FEWEST} prompts or more to say anything of others, and there are {len(results)}"
    if any(r.method == "naive" and float(r.fit.alpha[0]) != 1.0 for r in results):
        return [], "these are rates of a mixture, which nobody deploys"
    rates = Rates(*(np.minimum(np.array(x), 0.0) for x in rates))
    top = tail_size(len(results))
    known = len(results) - int(np.sum(np.asarray(known_from_above_only(rates))))
    if known < top:
        return [], f"only {known} prompts have a rate that is bounded from below, and its tail takes {top}"
    found = []
    for method in METHODS:
        # One query's risk is the mean rate.
        told = forecast(rates, (1.0, *QUERIES), (0.5,), method=method, top=top, draws=draws)
        mean = [float(getattr(told, f"aggregate{end}")[0]) for end in ("", "_low", "_high")]
        for i, n in enumerate(QUERIES, start=1):
            worst, any_of = (
                tuple(float(getattr(told, name + end)[i]) for end in ("", "_low", "_high"))
                for name in ("worst", "aggregate")
            )
            found.append(Risk(method, n, worst, any_of, tuple(m + math.log10(n) for m in mean)))
    return found, ""
