"""The arithmetic of a backtest, redone with loops over its splits."""

import numpy as np
import pytest

from lpe_jax.estimation.backtest import backtest
from lpe_jax.estimation.forecast import Rates, forecast


def test_errors_are_forecasts_minus_what_the_others_held():
    truth = np.random.default_rng(0).normal(-3, 0.7, 70)
    rates = Rates(truth, truth, truth)
    found = backtest(rates, truth, [1e-3, 0.9], evaluated=40, splits=3, noise=("none",), draws=2, seed=1)
    random = np.random.default_rng(1)
    for split in range(3):
        order = random.permutation(70)
        mine, held = order[:40], 10 ** truth[order[40:]]
        for method in ("gumbel", "lognormal"):
            said = forecast(Rates(*(truth[mine],) * 3), [30], [1e-3, 0.9], method=method, noise="none", draws=2)
            errors = found[method, "none"]
            np.testing.assert_allclose(errors.worst[split], said.worst - np.log10(held.max()), rtol=1e-6)
            any_of = np.log10(1 - np.prod(1 - held))
            np.testing.assert_allclose(errors.aggregate[split], said.aggregate - any_of, rtol=1e-6, atol=1e-9)
            share = np.log10(np.mean(held > 1e-3))
            np.testing.assert_allclose(errors.frequency[split, 0], said.frequency[0] - share, rtol=1e-6, atol=1e-9)
            assert np.isnan(errors.frequency[split, 1])


@pytest.mark.parametrize("evaluated", [19, 70])
def test_sizes_that_leave_nothing_are_named(evaluated):
    with pytest.raises(ValueError, match="evaluated must be at least"):
        backtest(0.3, np.full(70, -2.0), [0.1], evaluated=evaluated)
