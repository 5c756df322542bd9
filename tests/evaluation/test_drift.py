"""The drift that was added, seen as the difference of two banks. Seeds are fixed; error rates are stated."""

import numpy as np
import pytest

from lpe_jax.evaluation.drift import add_drift
from lpe_jax.evaluation.worlds import prompt_world, simulate

SEED = 1000
GRID = (1.0, 0.75, 0.5, 0.25, 0.0)
N = 4000


@pytest.fixture(scope="module")
def bank():
    return simulate("shallow", seed=SEED, prompts=6, n=N, alphas=GRID)


def added(bank, tau, seed=5):
    """What add_drift adds to log p [P, A, N, A], score and variance [P, A, N]."""
    drifted = add_drift(bank, tau, seed)
    names = ("logp", "path_score", "path_variance")
    return [getattr(drifted, name).astype(float) - getattr(bank, name) for name in names]


def test_the_rest_and_the_bank_given_stay_as_they_are(bank):
    before = bank.logp.copy(), bank.path_score.copy(), bank.path_variance.copy()
    drifted = add_drift(bank, 4.0, 1)
    for name in ("prompt_ids", "alpha", "scored", "complied", "tokens", "naive_complied", "truth"):
        assert getattr(drifted, name) is getattr(bank, name)
    for now, old in zip((bank.logp, bank.path_score, bank.path_variance), before, strict=True):
        np.testing.assert_array_equal(now, old)
    assert drifted.logp.dtype == drifted.path_score.dtype == drifted.path_variance.dtype == np.float32
    assert add_drift(bank, 0.0, 1) is bank


def test_tau_is_the_spread_of_the_log_ratio(bank):
    tau = 3.0
    logp, *_ = added(bank, tau)
    ratio = logp[..., 0] - logp[..., -1]  # log p_original / p_variant
    count = ratio[:, 0].size  # 5 standard errors for each of 5 alphas, twice: 6e-6
    mean = tau**2 * (np.array(GRID) - 0.5)
    assert np.all(np.abs(ratio.mean((0, 2)) - mean) < 5 * tau / np.sqrt(count))
    assert np.all(np.abs(ratio.std((0, 2)) - tau) < 5 * tau / np.sqrt(2 * count))


def test_log_p_is_a_normal_density(bank):
    tau = 2.0
    logp, score, _ = added(bank, tau)
    u = score / tau + tau * np.array(GRID)[:, None]  # by the score, tau (u - alpha tau)
    expected = -0.5 * (u[..., None] - tau * np.array(GRID)) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(logp, expected, atol=2e-4)


def test_score_and_variance_are_derivatives(bank):
    tau, step = 2.0, 0.25
    logp, score, variance = added(bank, tau)
    # Central differences are exact of a parabola.
    own = np.einsum("pana->anp", logp)[1:-1]
    above = np.stack([logp[:, a, :, a - 1].T for a in (1, 2, 3)])
    below = np.stack([logp[:, a, :, a + 1].T for a in (1, 2, 3)])
    np.testing.assert_allclose(score[:, 1:-1].transpose(1, 2, 0), (above - below) / (2 * step), atol=1e-3)
    np.testing.assert_allclose((above - 2 * own + below) / step**2, -(tau**2), atol=1e-2)
    np.testing.assert_allclose(variance, tau**2, atol=1e-4)


def test_weights_average_to_one(bank):
    tau = 1.0
    logp, *_ = added(bank, tau)
    weight = np.exp(logp - np.einsum("pana->pan", logp)[..., None])
    # The variance of a log-normal weight is known; 6 standard errors at 20 pairs of alphas, as its tail is heavy.
    apart = tau * np.subtract.outer(GRID, GRID)
    error = np.sqrt(np.expm1(apart**2) / weight[:, 0, :, 0].size)
    assert np.all(np.abs(weight.mean((0, 2)) - 1) <= 6 * error + 1e-6)


def test_slope_and_curvature_identities_survive(bank):
    drifted, tau = add_drift(bank, 2.0, 7), 2.0
    checked = 0
    for p, a in np.ndindex(bank.complied.shape[:2]):
        complied = bank.complied[p, a]
        k = complied.sum()
        if k < 300:
            continue
        world = prompt_world("shallow", np.array(GRID)[[a]], seed=SEED, index=p)
        slope = world.score[0, -1]
        curvature = -world.variance[0, -1]  # of one compliant kind, whose score has no spread
        score, variance = (x[p, a][complied].astype(float) for x in (drifted.path_score, drifted.path_variance))
        # 5 standard errors, of a normal mean and of a normal variance: 6e-7 each.
        assert abs(score.mean() - slope) < 5 * tau / np.sqrt(k)
        assert abs(score.var(ddof=1) - variance.mean() - curvature) < 5 * tau**2 * np.sqrt(2 / k)
        checked += 1
    assert checked >= 10


def test_drift_knows_nothing_of_compliance_and_obeys_its_seed(bank):
    _, score, _ = added(bank, 1.0)
    for a in range(2, len(GRID)):
        complied = bank.complied[:, a]
        gap = score[:, a][complied].mean() - score[:, a][~complied].mean()
        # 5 standard errors of a difference of means, 6e-7 each.
        assert abs(gap) < 5 * np.sqrt(1 / complied.sum() + 1 / (~complied).sum())
    np.testing.assert_array_equal(score, added(bank, 1.0)[1])
    assert np.max(np.abs(score - added(bank, 1.0, seed=6)[1])) > 1


@pytest.mark.parametrize("tau", [-1.0, np.nan, np.inf])
def test_a_tau_that_is_no_size_is_refused(bank, tau):
    with pytest.raises(ValueError, match="tau must be a finite number"):
        add_drift(bank, tau, 0)
