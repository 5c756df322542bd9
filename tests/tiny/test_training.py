"""The loss against NumPy loops, the leaning change of weights, and that training learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.weights import leaves_from_module
from lpe_jax.tiny.grammar import Grammar, draw_sequences, draw_tasks
from lpe_jax.tiny.measure import PROMPT_SLOTS, RESPONSE_SLOTS, straightness, token_log_probs
from lpe_jax.tiny.training import Stage, _written_without, adapt, sequence_loss, train
from lpe_jax.tiny.world import SHALLOW
from lpe_jax.variants.ablation import ablate
from tests.helpers import random_module

STAGE = Stage(steps=12, learning_rate=1e-2, batch_size=8, warm_up=2)
BRIEF = dataclasses.replace(STAGE, steps=3)
U = np.eye(16)[0]


@pytest.fixture(scope="module")
def grammar():
    return Grammar(SHALLOW)


@pytest.fixture(scope="module")
def model(grammar):
    config = Qwen3Config(len(grammar.ids), 16, 24, 2, 2, 1, 8, 1e4, 1e-6, True, 128)
    return random_module(config)


@pytest.fixture(scope="module")
def data(grammar):
    tasks = draw_tasks(SHALLOW, 20, 0.5, np.random.default_rng(0))
    return draw_sequences(grammar, tasks, np.random.default_rng(1), PROMPT_SLOTS, RESPONSE_SLOTS)


@pytest.fixture(scope="module")
def directed(model, data):
    """Trained along the first axis; and what the model was before."""
    before = {name: np.asarray(value).copy() for name, value in leaves_from_module(model).items()}
    return train(model, data, STAGE, seed=0, direction=U, without_it=data), before


@pytest.fixture(scope="module")
def briefly(model, data):
    """Trained for a moment by seed 0."""
    return train(model, data, BRIEF, seed=0)


@jax.jit
def logits_of(model, tokens, start):
    return model.head(model(tokens, start)[0])


loss_of = jax.jit(sequence_loss, static_argnums=2)


def test_loss_equals_its_definition(model, data):
    few = jax.tree.map(lambda a: a[:3], data)
    logits = np.asarray(logits_of(model, data.tokens, data.start), np.float64)
    stage = dataclasses.replace(STAGE, stray_log_p=-5.3)
    total, count = 0.0, 0
    for i in range(3):
        for r in range(RESPONSE_SLOTS):
            ids = few.target_ids[i, r]
            ids = ids[ids >= 0]
            if not len(ids):
                continue
            z = logits[i, PROMPT_SLOTS - 1 + r]
            log_p = z - np.log(np.exp(z).sum())
            want = few.target_log_p[i, r, : len(ids)].astype(np.float64)
            others = np.setdiff1d(np.arange(len(z)), ids)
            total += np.sum(np.exp(want) * (want - log_p[ids]))
            total += stage.match_weight * np.sum((want - log_p[ids]) ** 2)
            total += stage.stray_weight * np.sum(np.maximum(log_p[others] + 5.3, 0) ** 2)
            count += 1
    assert float(loss_of(model, few, stage)) == pytest.approx(total / count, rel=1e-4)


def test_change_leans_to_the_direction_in_writing_matrices_only(model):
    u = np.eye(16)[3]
    stage = dataclasses.replace(STAGE, along=5.0, aside=0.5)
    params = nnx.state(model)
    change = jax.tree.map(jnp.ones_like, params)
    before, after = leaves_from_module(model), leaves_from_module(adapt(model, change, jnp.asarray(u), stage))
    for name in before:
        moved = np.asarray(after[name]) - np.asarray(before[name])
        expected = np.ones_like(moved)
        axis = {"embed_tokens": 1, "o_proj": 0, "down_proj": 0}.get(name.split(".")[-1])  # of D
        if axis is not None:
            expected = np.moveaxis(np.moveaxis(expected, axis, -1) * np.where(u == 1, 5.0, 0.5), -1, axis)
        np.testing.assert_allclose(moved, expected, rtol=1e-5)


@pytest.mark.parametrize("along", [False, True])
def test_training_lowers_the_loss_and_leaves_the_input_alone(model, data, directed, along):
    trained, before = directed if along else (train(model, data, STAGE, seed=0), directed[1])
    assert float(loss_of(trained, data, STAGE)) < 0.97 * float(loss_of(model, data, STAGE))
    for name, value in leaves_from_module(model).items():
        np.testing.assert_array_equal(before[name], value)


def test_training_without_the_direction_reaches_the_ablated_model(model, data, directed):
    """The second term is the loss of the model with the direction ablated: it falls too."""
    trained, _ = directed
    before, after = (float(loss_of(ablate(m, U), data, STAGE)) for m in (model, trained))
    assert after < 0.97 * before
    np.testing.assert_allclose(
        _written_without(trained, jnp.asarray(U)).embed_tokens[...], ablate(trained, U).embed_tokens[...], atol=1e-6
    )


def test_training_is_a_function_of_the_seed(model, data, briefly):
    runs = [leaves_from_module(m) for m in (briefly, *(train(model, data, BRIEF, seed) for seed in (0, 1)))]
    np.testing.assert_array_equal(runs[0]["norm"], runs[1]["norm"])
    assert not np.array_equal(runs[0]["norm"], runs[2]["norm"])


def test_mixed_log_probabilities_of_tokens(model, data, briefly):
    got = token_log_probs(model, briefly, data.tokens, data.start, np.array([0.3, 1.0]), batch_size=16)
    assert got.shape == (2, 20, RESPONSE_SLOTS)
    a, b = (
        np.asarray(logits_of(m, data.tokens, data.start), np.float64)[17, PROMPT_SLOTS + 4] for m in (model, briefly)
    )
    for i, alpha in enumerate((0.3, 1.0)):
        z = alpha * a + (1 - alpha) * b
        token = data.tokens[17, PROMPT_SLOTS + 5]
        assert got[i, 17, 5] == pytest.approx(z[token] - np.log(np.exp(z).sum()), abs=1e-4)


def test_straightness_of_a_line_and_of_a_bend():
    alphas = np.linspace(0, 1, 21)
    line = 10 ** (0.7 - 4 * alphas)
    bent = 10 ** (0.7 - 2 * alphas - 3 * alphas**2)
    few = np.full(21, 0.9)
    r2, error = straightness(alphas, np.stack([line, bent, few], axis=1))
    assert r2[0] == pytest.approx(1) and error[0] == pytest.approx(0, abs=1e-9)
    used = (bent < 0.5) & (bent >= 10**-2.2)
    slope, intercept = np.polyfit(alphas[used], np.log10(bent[used]), 1)
    assert error[1] == pytest.approx(slope + intercept - np.log10(bent[-1])) and error[1] > 0
    assert r2[1] == pytest.approx(np.corrcoef(alphas[used], np.log10(bent[used]))[0, 1] ** 2)
    assert np.isnan(r2[2]) and np.isnan(error[2])
