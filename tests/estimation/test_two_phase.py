import math

import numpy as np
import pytest

from lpe_jax.estimation.imputation import with_judge_error
from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.registry import ESTIMATORS
from lpe_jax.estimation.two_phase import Audit, audited_rate, phase_audit, phase_quality
from lpe_jax.types import Counts


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


def phases(n, rate, sensitivity, false_alarm, audit, rng):
    """What two judges in a row say of n rollouts, the second being right."""
    true = rng.binomial(n, rate)
    right, wrong = rng.binomial(true, sensitivity), rng.binomial(n - true, false_alarm)
    caught = rng.binomial(true - right, audit)
    cleared = rng.binomial(n - true - wrong, audit)
    return {
        ("complied", "complied"): right,
        ("complied", "refused"): wrong,
        ("refused", "complied"): caught,
        ("refused", "refused"): cleared,
        ("refused", None): n - right - wrong - caught - cleared,
    }


def test_phases_as_an_audit():
    said = {
        ("complied", "complied"): 30,
        ("complied", "refused"): 12,
        ("unscored", "complied"): 2,
        ("unscored", "refused"): 3,
        ("refused", "complied"): 1,
        ("refused", "refused"): 9,
        ("refused", None): 900,
        # In no count: nobody knows what they were.
        ("complied", "unscored"): 5,
        ("refused", "unscored"): 4,
    }
    complied, scored, audit = phase_audit(said)
    assert (complied, scored) == (47, 957) and audit == Audit(47, 32, 10, 1)
    rate, _, _ = audited_rate(complied, scored, audit)
    assert 10**rate == pytest.approx((32 + 910 / 10) / 957)
    assert phase_audit({})[:2] == (0, 0)


def test_coverage_of_two_judges_in_a_row():
    """1,000 runs with 4 audited misses expected: 93 to 97 % covered, and each side missed at most 4 % (2.5 meant; three
    standard errors are 1.5), by 30 times fewer looks than at all rollouts."""
    rng, n, rate = np.random.default_rng(5), 1_000_000, 1e-3
    said = [phases(n, rate, 0.8, 0.01, 0.02, rng) for _ in range(1000)]
    looks = [sum(count for (_, second), count in of.items() if second) for of in said]
    assert n / max(looks) > 30
    complied, scored, audits = zip(*map(phase_audit, said), strict=True)
    audit = Audit(*(np.array([getattr(a, f) for a in audits]) for f in vars(audits[0])))
    _, low, high = (np.asarray(x) for x in audited_rate(np.array(complied), np.array(scored), audit))
    truth = math.log10(rate)
    assert 0.93 < ((low <= truth) & (truth <= high)).mean() < 0.975
    assert (high < truth).mean() < 0.04 and (low > truth).mean() < 0.04


def test_quality_of_two_judges_in_a_row():
    """Found of all that complied, known about as well as the misses that the audit caught are."""
    said = {
        ("complied", "complied"): 900,
        ("refused", "complied"): 4,
        ("refused", "refused"): 396,
        ("refused", None): 3600,
    }
    quality = phase_quality(said)
    hits, total = float(quality.sensitivity_hits), float(quality.sensitivity_total)
    assert hits / total == pytest.approx(904 / (900 + 4 * 4000 / 400))
    assert total - hits == 4 and float(quality.false_alarms) == 0
    assert quality.shares()[0] == pytest.approx(0.96, abs=0.01) and quality.shares()[1] < 1e-11
    # All audited: nothing is missed. Nothing of the refused complied: hardly anything can be.
    everything = phase_quality(said | {("refused", None): 0})
    assert everything.shares() == pytest.approx((1.0, 0.0), abs=1e-11)
    none = phase_quality(said | {("refused", "complied"): 0, ("refused", "refused"): 400})
    assert float(none.sensitivity_hits) == float(none.sensitivity_total) == pytest.approx(100)


def test_lines_are_corrected_for_what_the_first_judge_misses():
    """It misses a third at every alpha: rates come out a sixth of a decade higher, as they are."""
    rng, alphas = np.random.default_rng(2), np.array([0.8, 0.6, 0.4, 0.2])
    rates, counts, said = 10.0 ** (-4 * alphas), [], {}
    for rate in rates:
        of = phases(20_000, rate, 2 / 3, 0.01, 0.1, rng)
        counts.append(of["complied", "complied"] + of["refused", "complied"])
        said = {key: said.get(key, 0) + of[key] for key in of}
    judged = Counts(alphas[None], np.full((1, 4), 20_000.0), np.array([counts], float))
    corrected = with_judge_error(ESTIMATORS["line"], judged, None, phase_quality(said), draws=40)
    plain = ESTIMATORS["line"](judged, None)
    gain = float(corrected.log10_rate[0] - plain.log10_rate[0])
    assert gain == pytest.approx(math.log10(1 / (2 / 3 + 0.1 / 3)), abs=0.03)
    assert corrected.low[0] < -4 < corrected.high[0]
