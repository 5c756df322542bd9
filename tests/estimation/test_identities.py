"""Every identity of the path, by enumeration of two tiny models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpe_jax.estimation.bend import judged
from lpe_jax.estimation.precision import float64
from tests.estimation.toy import SEQUENCES, make_toy

ALPHAS = [-0.5, 0.0, 0.6, 1.0]


@pytest.fixture(autouse=True)
def _float64():
    with float64():
        yield


@pytest.fixture(params=[0, 1])
def toy(request):
    return make_toy(request.param, spread=1.0 + request.param)


def test_there_are_as_many_sequences_as_there_should_be():
    assert len(SEQUENCES) == len(set(SEQUENCES)) == 1 + 3 + 9 + 27 + 81


@pytest.mark.parametrize("alpha", ALPHAS)
def test_probabilities_sum_to_one(toy, alpha):
    np.testing.assert_allclose(jnp.sum(jnp.exp(toy.logp(alpha))), 1.0, rtol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_path_score_is_the_derivative_of_log_p_and_has_mean_zero(toy, alpha):
    score = toy.path_score(alpha)
    np.testing.assert_allclose(score, jax.jacfwd(toy.logp)(alpha), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(jnp.sum(jnp.exp(toy.logp(alpha)) * score), 0.0, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_path_variance_is_minus_the_second_derivative_of_log_p(toy, alpha):
    second = jax.jacfwd(jax.jacfwd(toy.logp))(alpha)
    np.testing.assert_allclose(-toy.path_variance(alpha), second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_slope_of_log_rate_is_the_mean_score_of_compliant_rollouts(toy, alpha):
    mean = jnp.sum(toy.given_complied(alpha) * toy.path_score(alpha))
    np.testing.assert_allclose(jax.grad(toy.log_rate)(alpha), mean, rtol=1e-9, atol=1e-9)
    h = 1e-5
    np.testing.assert_allclose((toy.log_rate(alpha + h) - toy.log_rate(alpha - h)) / (2 * h), mean, atol=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_judge_that_errs_has_a_path_of_its_own(toy, alpha):
    """It calls 80 % of what complies and 3 % of what does not compliant: scores of those tell of that rate alike."""
    said = jnp.where(toy.complied, 0.8, 0.03)  # [S]

    def log_judged(alpha):
        return jnp.log(jnp.sum(said * jnp.exp(toy.logp(alpha))))

    p = said * jnp.exp(toy.logp(alpha))
    p = p / jnp.sum(p)
    score, variance = toy.path_score(alpha), toy.path_variance(alpha)
    mean = jnp.sum(p * score)
    curvature = jnp.sum(p * (score - mean) ** 2) - jnp.sum(p * variance)
    slope, turn = (jax.grad(f)(alpha) for f in (log_judged, jax.grad(log_judged)))
    np.testing.assert_allclose([slope, turn], [mean, curvature], rtol=1e-9, atol=1e-9)

    true = [f(alpha) for f in (toy.log_rate, jax.grad(toy.log_rate), jax.grad(jax.grad(toy.log_rate)))]
    got = judged(true, jnp.asarray(0.8), jnp.asarray(0.03))
    np.testing.assert_allclose(got, [log_judged(alpha), mean, curvature], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(judged(true, jnp.asarray(1.0), jnp.asarray(0.0)), true, rtol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_curvature_of_log_rate_is_var_score_minus_mean_variance(toy, alpha):
    p, score, variance = toy.given_complied(alpha), toy.path_score(alpha), toy.path_variance(alpha)
    mean = jnp.sum(p * score)
    curvature = jnp.sum(p * (score - mean) ** 2) - jnp.sum(p * variance)
    np.testing.assert_allclose(jax.grad(jax.grad(toy.log_rate))(alpha), curvature, rtol=1e-9, atol=1e-9)


def test_thermodynamic_integration(toy):
    x, w = np.polynomial.legendre.leggauss(60)
    alphas = 0.5 * (x + 1)
    slopes = jax.vmap(lambda a: jnp.sum(toy.given_complied(a) * toy.path_score(a)))(alphas)
    np.testing.assert_allclose(toy.log_rate(1.0) - toy.log_rate(0.0), 0.5 * jnp.sum(w * slopes), atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_weights_have_mean_one_and_give_the_rate(toy, alpha):
    p, weight = jnp.exp(toy.logp(alpha)), jnp.exp(toy.logp(1.0) - toy.logp(alpha))
    np.testing.assert_allclose(jnp.sum(p * weight), 1.0, rtol=1e-9)
    np.testing.assert_allclose(jnp.sum(p * weight * toy.complied), jnp.exp(toy.log_rate(1.0)), rtol=1e-9)


@pytest.mark.parametrize("target", [1.0, 0.4])
def test_the_balance_heuristic_is_unbiased(toy, target):
    alphas, n = [0.9, 0.5, 0.0, -0.3], np.array([3.0, 1.0, 20.0, 7.0])
    p = jnp.stack([jnp.exp(toy.logp(alpha)) for alpha in alphas])  # [A, S]
    contribution = jnp.exp(toy.logp(target)) * toy.complied / jnp.matmul(n, p)  # [S]
    expected = jnp.sum(n * jnp.matmul(p, contribution))
    np.testing.assert_allclose(expected, jnp.exp(toy.log_rate(target)), rtol=1e-9)


@pytest.mark.parametrize("kind", ["one", "random", "optimal", "geometric"])
def test_the_bridge_between_two_alphas_holds_for_any_h(toy, kind):
    low, high = 0.35, 0.8
    p, q = jnp.exp(toy.logp(low)), jnp.exp(toy.logp(high))
    ratio = jnp.exp(toy.log_rate(high) - toy.log_rate(low))
    h = {
        "one": jnp.ones(p.shape),
        "random": jnp.asarray(np.random.default_rng(5).exponential(size=p.shape)),
        "optimal": 1 / (0.3 * p + 0.7 * q / ratio),
        "geometric": 1 / jnp.sqrt(p * q),
    }[kind]
    bridge = jnp.sum(toy.given_complied(low) * h * q) / jnp.sum(toy.given_complied(high) * h * p)
    np.testing.assert_allclose(bridge, ratio, rtol=1e-9)
