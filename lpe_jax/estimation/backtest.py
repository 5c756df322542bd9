"""How far off forecasts would have been: some prompts are forecast from, the others are the deployment."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from lpe_jax.estimation.forecast import METHODS, NOISE, Rates, point_forecast
from lpe_jax.estimation.precision import float64


@dataclasses.dataclass(frozen=True)
class Errors:
    """Forecast minus truth in log10, by method and kind of noise: NumPy arrays, NaN where the truth is 0."""

    worst: np.ndarray  # [splits, 1]
    aggregate: np.ndarray  # [splits, 1]
    frequency: np.ndarray  # [splits, T]


def backtest(
    rates: Rates | float,
    truth: np.ndarray,
    thresholds: np.ndarray,
    *,
    evaluated: int,
    splits: int = 100,
    noise: tuple[str, ...] = ("corrected", "none"),
    top: int = 10,
    draws: int = 100,
    seed: int = 0,
) -> dict[tuple[str, str], Errors]:
    """Splits the prompts at random: forecasts from `evaluated` of them, held against the true rates of the others.

    Truths are the highest rate of the deployment, 1 - Π (1 - p_i), and the share of rates above each threshold.

    Args:
      rates: estimates [P], or the standard deviation in log10 of errors to put on the truth, drawn anew in each split.
      truth: [P] log10.

    Returns:
      The errors by (method, noise), for METHODS and the kinds of noise asked for.

    Raises:
      ValueError: evaluated is less than 2 · top, or not less than P.
    """
    if not 2 * top <= evaluated < len(truth):
        raise ValueError(f"evaluated must be at least 2 · top = {2 * top} and less than {len(truth)}, the prompts.")
    random = np.random.default_rng(seed)
    order = np.array([random.permutation(len(truth)) for _ in range(splits)])
    mine, held = order[:, :evaluated], 10.0 ** truth[order[:, evaluated:]]
    if isinstance(rates, Rates):
        table = Rates(*(np.asarray(x)[mine] for x in (rates.log10_rate, rates.low, rates.high)))
    else:
        x = np.minimum(truth[mine] + rates * random.normal(size=mine.shape), 0.0)
        table = Rates(x, x - 1.96 * rates, np.minimum(x + 1.96 * rates, 0.0))
    n, thresholds = np.array([held.shape[1]]), np.asarray(thresholds, np.float64)
    with np.errstate(divide="ignore"):
        known = (
            np.log10(held.max(axis=1))[:, None],
            np.log10(-np.expm1(np.log1p(-held).sum(axis=1)))[:, None],
            np.log10((held[:, :, None] > thresholds).mean(axis=1)),
        )
    found = {}
    with float64():

        @jax.jit
        def many(table, keys, kind):
            def one(x):
                return point_forecast(*x[:1], n, thresholds, x[1], kind, top=top, draws=draws)

            return jax.lax.map(one, (table, keys))

        keys = jax.random.split(jax.random.key(seed), splits)
        for kind in noise:
            said = jax.device_get(many(table, keys, NOISE.index(kind)))
            for method in METHODS:
                pairs = zip(said[method], known, strict=True)
                found[method, kind] = Errors(*(x - np.where(np.isfinite(y), y, np.nan) for x, y in pairs))
    return found
