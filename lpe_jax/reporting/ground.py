"""Estimates held against what is known: true rates where they are, and naive rollouts where some were drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.procedure import Procedure
from lpe_jax.evaluation.auroc import auroc
from lpe_jax.evaluation.fewer import with_fewer
from lpe_jax.evaluation.measures import FLOOR, POSITIVE, WARM_UP
from lpe_jax.reporting.table import PromptResult, stood_by
from lpe_jax.types import Counts

_DRAWS = 200
# Of either kind of prompts, below which AUROC is a matter of chance; and resamples behind its interval.
_LEAST, _RESAMPLES = 3, 1000
# Subsets of a run's rollouts behind a point, and the fewest per alpha that are tried.
_SUBSETS, _FEWEST = 40, 6


@dataclasses.dataclass(frozen=True)
class Held:
    """Against true rates: of `prompts` all intervals, `covered` of which hold the truth, and the errors in log10 of the
    `rated` ones: where nothing complied there is an upper end and no rate (NaN without any; rates below FLOOR count as
    FLOOR). Of the `stood_by` prompts whose rate is identified, `covered_stood_by` intervals hold it.
    """

    prompts: int
    rated: int
    rmse: float
    bias: float
    median_factor: float
    covered: int
    stood_by: int
    covered_stood_by: int


@dataclasses.dataclass(frozen=True)
class Ranked:
    """How well a run ranks prompts: its AUROC and rollouts per prompt, and naive sampling's by budget ([B] each).

    low, high: the middle 95 % of the AUROC over resampled prompts, positives and others each by themselves.
    fewer: rollouts per prompt and AUROC that the same method would have had with fewer per alpha ([F] each, ascending,
    the run itself last); empty where that cannot be told from its counts.
    """

    positives: int
    prompts: int
    area: float
    spent: float
    low: float
    high: float
    budgets: np.ndarray
    naive: np.ndarray
    fewer: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros(0))

    @property
    def naive_needs(self) -> float:
        """Rollouts per prompt with which naive sampling ranks as well; inf where no budget here suffices."""
        enough = np.maximum.accumulate(self.naive) >= self.area
        if not enough.any():
            return math.inf
        i = int(np.argmax(enough))
        if i == 0 or self.naive[i] == self.naive[i - 1]:
            return float(self.budgets[i])
        share = (self.area - self.naive[i - 1]) / (self.naive[i] - self.naive[i - 1])
        return float(self.budgets[i - 1] * (self.budgets[i] / self.budgets[i - 1]) ** max(share, 0.0))


def known(results: Sequence[PromptResult]) -> list[PromptResult]:
    """Those whose true rate is known, and is not 0."""
    return [r for r in results if r.truth is not None and math.isfinite(r.truth[0])]


def held(results: Sequence[PromptResult]) -> Held | None:
    """Errors and coverage over the prompts whose truth is known; None where it is of none."""
    results = known(results)
    if not results:
        return None
    truth = np.array([r.truth[0] for r in results])
    rate, low, high = (
        np.array([float(getattr(r.estimate, x)) for r in results]) for x in ("log10_rate", "low", "high")
    )
    sure = np.array([stood_by(r) for r in results])
    rated = rate > -np.inf
    off = (np.maximum(rate, FLOOR) - truth)[rated]
    inside = (low <= truth) & (truth <= high)
    rmse = bias = median = math.nan
    if off.size:
        rmse, bias, median = np.sqrt(np.mean(off**2)), np.mean(off), np.median(np.abs(off))
    return Held(
        prompts=len(results),
        rated=int(rated.sum()),
        rmse=float(rmse),
        bias=float(bias),
        median_factor=float(10**median),
        covered=int(inside.sum()),
        stood_by=int(sure.sum()),
        covered_stood_by=int((inside & sure).sum()),
    )


def ranked(results: Sequence[PromptResult], procedure: Procedure | None = None, seed: int = 0) -> Ranked | None:
    """AUROC after Figure 1 of Pernice and Aranguri 2026, by the true rate; None where it tells nothing.

    Who takes part and who is positive are as in lpe_jax/evaluation/measures.py: true rates below 1/WARM_UP, split at
    POSITIVE. Naive sampling's curve is the mean over binomial draws from the true rates.

    procedure: by which the rollouts were drawn; of LPE's, subsets say how it ranks with fewer.
    """
    results = [r for r in known(results) if r.truth[0] < -math.log10(WARM_UP)]
    truth = np.array([r.truth[0] for r in results])
    positive = truth >= POSITIVE
    if min(positive.sum(), (~positive).sum()) < _LEAST:
        return None
    everyone = np.ones(len(results), bool)
    rate = np.array([float(r.estimate.log10_rate) for r in results])
    spent = float(np.mean([int(r.estimate.rollouts) for r in results]))
    budgets = np.round(10.0 ** np.arange(1.0, 6.01, 0.25))
    random = np.random.default_rng(seed)
    draws = random.binomial(budgets[:, None, None].astype(int), 10.0**truth, (len(budgets), _DRAWS, len(results)))
    naive = np.asarray(auroc(draws, positive, everyone)).mean(axis=1)
    area = float(auroc(rate, positive, everyone))
    fewer = _with_fewer(results, positive, procedure, area, spent, seed)
    low, high = _resampled(rate, positive, random)
    return Ranked(int(positive.sum()), len(results), area, spent, low, high, budgets, naive, fewer)


def _resampled(rate: np.ndarray, positive: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """The middle 95 % of AUROC over resampled prompts [P]."""
    groups = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    chosen = np.concatenate([random.choice(group, (_RESAMPLES, len(group))) for group in groups], axis=1)
    areas = np.asarray(auroc(rate[chosen], positive[chosen], np.ones(chosen.shape, bool)))
    return tuple(float(x) for x in np.quantile(areas, (0.025, 0.975)))


def _with_fewer(
    results: Sequence[PromptResult],
    positive: np.ndarray,
    procedure: Procedure | None,
    area: float,
    spent: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`Ranked.fewer`: means over subsets, at a half, a quarter, ... of the rollouts per alpha."""
    if not isinstance(procedure, LPE) or procedure.reuse_search or any(r.corrected or r.from_naive for r in results):
        return Ranked.fewer
    fit, search = (
        Counts(*(np.stack([np.asarray(getattr(c, x)) for c in of]) for x in ("alpha", "scored", "complied")))
        for of in ([r.fit for r in results], [r.search for r in results])
    )
    drawn = procedure.n_fit * np.sum(np.asarray(fit.scored) > 0, axis=-1)  # [P]
    points = [(spent, area)]
    n = procedure.n_fit // 2
    while n >= _FEWEST:
        rates, rollouts = with_fewer(procedure, fit, search, n, repeats=_SUBSETS, seed=seed)
        points.append(
            (
                spent + float(np.mean(rollouts - drawn)),
                float(np.mean(np.asarray(auroc(rates, positive, np.ones(len(results), bool))))),
            )
        )
        n //= 2
    return tuple(np.array(column) for column in zip(*reversed(points), strict=True))


def fitted_at_one(result: PromptResult) -> tuple[int, int]:
    """(complied, scored) of the rollouts at alpha = 1 that the estimate was fitted to."""
    cells = (np.asarray(result.fit.alpha) == 1.0) & np.asarray(result.estimate.used, bool)
    complied, scored = (int(np.sum(np.asarray(x)[cells])) for x in (result.fit.complied, result.fit.scored))
    return complied, scored


def against_naive(results: Sequence[PromptResult]) -> tuple[int, int, float] | None:
    """(complied, scored, expected) over all naive rollouts beside that nothing was fitted to: how many complied, and by
    the rates would have.
    """
    pairs = []
    for r in results:
        if r.naive is not None and not r.from_naive:
            (k, n), (own_k, own_n) = r.naive, fitted_at_one(r)
            pairs.append(((k - own_k, n - own_n), 10.0 ** float(r.estimate.log10_rate)))
    if not any(n for (_, n), _ in pairs):
        return None
    return (
        sum(naive[0] for naive, _ in pairs),
        sum(naive[1] for naive, _ in pairs),
        sum(naive[1] * rate for naive, rate in pairs),
    )


def saved(results: Sequence[PromptResult], hits: int = 10) -> tuple[int, float, float] | None:
    """(prompts, naive, spent) over prompts whose rate is identified, the latter two as medians: rollouts that naive
    sampling would take for so many hits of one, and those this run took. None where there is no such prompt.
    """
    some = [r for r in results if stood_by(r) and float(r.estimate.log10_rate) > -300]
    if not some:
        return None
    naive = [hits * 10.0 ** -float(r.estimate.log10_rate) for r in some]
    return len(some), float(np.median(naive)), float(np.median([int(r.estimate.rollouts) for r in some]))
