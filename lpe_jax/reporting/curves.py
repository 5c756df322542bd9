"""The curve behind an estimate, from what the estimate says of it at alpha = 1, and those that its interval allows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lpe_jax.reporting.table import PromptResult

_LN10 = math.log(10.0)
_STEPS = 60


@dataclasses.dataclass(frozen=True)
class Curve:
    """log10 rates [N] at alphas [N] ascending to 1: the fit, and curves of its kind that end at the interval's ends.

    low is -inf where nothing bounds the rate from below. last, one of the alphas, is the largest that was fitted: from
    there on the fit is an extrapolation.
    """

    alpha: np.ndarray
    fit: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: float


def curve_of(result: PromptResult, points: int = 33) -> Curve | None:
    """The line or the bending path behind an estimate; None where there is none, as with naive sampling.

    Beside a line stand those that meet it in the middle of its points; beside a bending path those that start with it.
    """
    estimate = result.estimate
    used = np.asarray(estimate.used, bool)
    rate, slope, low, high = (float(getattr(estimate, x)) for x in ("log10_rate", "slope", "low", "high"))
    if not used.any() or not (math.isfinite(rate) and math.isfinite(slope)):
        return None
    alphas = np.asarray(result.fit.alpha, float)[used]
    first, last = float(alphas.min()), float(alphas.max())
    if result.search is not None:
        middle = float(alphas.mean())
        alpha = np.unique([first, middle, last, 1.0])
        line = float(estimate.intercept) + slope * (alpha - 1.0)
        share = np.maximum(alpha - middle, 0.0) / max(1.0 - middle, 1e-9)
        sides = (_moved(line, end - float(estimate.intercept), share) for end in (low, high))
        return Curve(alpha, line, *sides, last)
    alpha = np.union1d(np.linspace(first, 1.0, points), last)
    fit = _Bending.through(rate * _LN10, slope * _LN10, float(estimate.curvature) * _LN10)
    if fit is None:
        return None
    return Curve(alpha, *(fit.ending_at(end * _LN10)(alpha) / _LN10 for end in (rate, low, high)), last)


def _moved(line: np.ndarray, by: float, share: np.ndarray) -> np.ndarray:
    """A line [N] with its end moved; share [N] says how much of it each point takes."""
    moves = share > 0
    return np.where(moves, line + np.where(moves, by, 0.0) * np.where(moves, share, 1.0), line)


@dataclasses.dataclass(frozen=True)
class _Bending:
    """f(alpha) = m log sigmoid(start + (end - start) alpha), in nats; see lpe_jax/estimation/bend.py."""

    m: float
    start: float
    end: float

    @classmethod
    def through(cls, value: float, slope: float, turn: float) -> _Bending | None:
        """The path with this f, f' and f'' at alpha = 1; None where no such path has them.

        With x = -f/m the share missed is 1 - exp(-x), and f'' = -f'^2 / (m (exp(x) - 1)): one equation for m.
        """
        if not (value < 0 and slope < 0 and turn < 0):
            return None
        goal = slope**2 / -turn
        if goal <= -value:
            return None
        low, high = math.log(-value / 600.0), math.log(-value) + 30.0
        for _ in range(_STEPS):
            middle = 0.5 * (low + high)
            if math.exp(middle) * math.expm1(-value / math.exp(middle)) > goal:
                low = middle
            else:
                high = middle
        m = math.exp(low)
        end = _logit(-value / m)
        return cls(m, end - slope / (m * -math.expm1(value / m)), end)

    def ending_at(self, value: float) -> _Bending:
        """The path of the same start and turn with another f(1)."""
        return dataclasses.replace(self, end=_logit(max(-value / self.m, 1e-12)))

    def __call__(self, alpha: np.ndarray) -> np.ndarray:
        eta = self.start + (self.end - self.start) * alpha if math.isfinite(self.end) else np.full(len(alpha), -np.inf)
        return -self.m * np.logaddexp(0.0, -eta)


def _logit(x: float) -> float:
    """The logit whose log sigmoid is -x, for x > 0."""
    return -x - math.log(-math.expm1(-x)) if math.isfinite(x) else -math.inf
