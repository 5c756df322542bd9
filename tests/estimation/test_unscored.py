import math

import numpy as np
import pytest
from scipy.stats import beta

from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.registry import ESTIMATORS
from lpe_jax.estimation.unscored import lpe_extremes, unscored_bounds, unscored_range
from lpe_jax.types import Counts

ALPHA = np.array([0.6, 0.3, 0.0])


def test_bounds_are_exact_ends_of_both_extremes():
    low, high = unscored_bounds(np.array([5, 0]), 80, 20)
    assert 10 ** low[0] == pytest.approx(beta.ppf(0.025, 5, 96), rel=1e-6) and low[1] == -math.inf
    np.testing.assert_allclose(10**high, beta.ppf(0.975, [26, 21], [75, 80]), rtol=1e-6)


def test_range_is_the_estimator_on_either_extreme():
    alpha = ALPHA[None]
    counts = Counts(alpha, np.array([[90, 80, 100]]), np.array([[2, 20, 60]]))
    refused, complied = unscored_range(ESTIMATORS["lpe"], counts, np.array([[10, 20, 0]]))
    for got, k in ((refused, [2, 20, 60]), (complied, [12, 40, 60])):
        want = ESTIMATORS["lpe"](Counts(alpha, np.array([[100, 100, 100]]), np.array([k])))
        assert got.log10_rate.shape == (1,) and got.log10_rate[0] == pytest.approx(float(want.log10_rate[0]))
    assert refused.log10_rate[0] < complied.log10_rate[0]


def test_extremes_of_a_sweep():
    procedure, alpha = LPE(alphas=(0.6, 0.3, 0.0)), ALPHA
    fit = Counts(alpha, np.array([90, 80, 100]), np.array([2, 20, 60]))
    search = Counts(alpha, np.array([10, 9, 10]), np.array([0, 2, 7]))
    refused, complied = lpe_extremes(procedure, fit, search, 31)
    for got, k in ((refused, [2, 20, 60]), (complied, [12, 40, 60])):
        want = procedure.fit(Counts(alpha, np.array([100, 100, 100]), np.array(k)))
        assert got == pytest.approx(float(want.log10_rate))
    # More are missing than the alphas with verdicts account for.
    assert lpe_extremes(procedure, fit, search, 41) is None
