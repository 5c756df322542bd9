import math

import numpy as np
import pytest

from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.two_phase import Audit, audited_rate


def test_point_is_the_stratified_rate():
    rate, low, high = audited_rate(100, 1000, Audit(50, 40, 200, 2))
    assert 10**rate == pytest.approx(0.1 * 0.8 + 0.9 * 0.01)
    assert low < rate < high


def test_everything_audited_is_plain_counting():
    """Then the truth is known of all rollouts, and the interval no narrower than the exact one."""
    rate, low, high = audited_rate(100, 1000, Audit(100, 70, 900, 5))
    exact = clopper_pearson_log10(75, 1000)
    assert 10**rate == pytest.approx(0.075)
    assert low == pytest.approx(float(exact[0]), abs=0.02) and high == pytest.approx(float(exact[1]), abs=0.02)


def test_empty_strata():
    rate, low, high = audited_rate(0, 1000, Audit(0, 0, 500, 0))
    assert rate == -math.inf and low == -math.inf
    assert high == pytest.approx(float(clopper_pearson_log10(0, 500)[1]), abs=1e-6)
    # No audit of refusals: as far as is known, all of them may have complied.
    rate, low, high = audited_rate(100, 1000, Audit(50, 40, 0, 0))
    assert 10**rate == pytest.approx(0.08) and math.isfinite(low) and 10**high > 0.9
    assert 10 ** audited_rate(100, 1000, Audit(0, 0, 900, 0))[2] >= 0.1
    assert math.isnan(audited_rate(0, 0, Audit(0, 0, 0, 0))[0])


def test_coverage():
    """1,000 experiments a cell; 93 % less three standard errors."""
    rng, repeats = np.random.default_rng(3), 1000
    for rate, se, f, n, a, c in ((0.05, 0.9, 0.02, 2000, 40, 200), (0.001, 0.95, 0.01, 10_000, 80, 500)):
        true = rng.binomial(n, rate, repeats)
        right, wrong = rng.binomial(true, se), rng.binomial(n - true, f)
        judged = right + wrong
        a_now = np.minimum(a, judged)
        b = np.array([rng.hypergeometric(*x) for x in zip(right, wrong, a_now, strict=True)])
        d = np.array([rng.hypergeometric(t, n - k - t, c) for t, k in zip(true - right, judged, strict=True)])
        _, low, high = audited_rate(judged, np.full(repeats, n), Audit(a_now, b, np.full(repeats, c), d))
        covered = ((low <= np.log10(rate)) & (np.log10(rate) <= high)).mean()
        assert covered > 0.93 - 0.024, (rate, covered)


def test_impossible_audits_are_refused_in_words():
    with pytest.raises(ValueError, match="positives must have 0 <= complied <= audited"):
        Audit(5, 6, 5, 0)
    with pytest.raises(ValueError, match="negatives must be whole"):
        Audit(5, 5, 5, 0.5)
    with pytest.raises(ValueError, match="positives must be some of the 3 judged compliant"):
        audited_rate(3, 100, Audit(5, 5, 5, 0))
    with pytest.raises(ValueError, match="negatives must be some of the 97 judged refused"):
        audited_rate(3, 100, Audit(3, 3, 98, 0))
