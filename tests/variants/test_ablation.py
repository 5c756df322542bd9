"""Directional ablation against NumPy loops and against hooks on a forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpe_jax.models.qwen3 import attend, project_qkv, rms_norm, rope_table
from lpe_jax.models.weights import leaves_from_module
from lpe_jax.variants.ablation import (
    ablate,
    difference_of_means,
    joint_direction,
    mean_activations,
    residual_stream,
    without,
)
from tests.helpers import tiny_module

WRITERS = ("embed_tokens", "o_proj", "down_proj")


@pytest.fixture(scope="module")
def model():
    return tiny_module(scale=5.0)


@pytest.fixture(scope="module")
def direction(model):
    return np.random.default_rng(1).normal(size=model.config.hidden_size)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(2)
    return rng.integers(5, 40, size=(5, 9)).astype(np.int32), np.array([0, 3, 1, 0, 5], np.int32)


def unit(r):
    return r / np.linalg.norm(r)


def test_stream_ends_in_what_the_model_returns(model, batch):
    tokens, start = batch
    stream = residual_stream(model, tokens, start)
    assert stream.shape == (model.config.num_layers + 1, 5, 9, model.config.hidden_size)
    hidden, _ = model(tokens, start)
    ended = rms_norm(stream[-1], model.norm[...], model.config.rms_norm_eps)
    real = np.arange(9)[None] >= start[:, None]
    np.testing.assert_allclose(np.asarray(ended)[real], np.asarray(hidden)[real], rtol=1e-5, atol=1e-5)


def test_means_are_over_the_chosen_positions_only(model, batch):
    tokens, start = batch
    chosen = np.zeros(tokens.shape, bool)
    chosen[0, 4] = chosen[1, 3] = chosen[1, 8] = chosen[4, 6] = True
    stream = np.asarray(residual_stream(model, tokens, start), np.float64)
    expected = (stream[:, 0, 4] + stream[:, 1, 3] + stream[:, 1, 8] + stream[:, 4, 6]) / 4
    got = mean_activations(model, tokens, start, chosen, batch_size=2)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="marks no position"):
        mean_activations(model, tokens, start, np.zeros_like(chosen))


def test_projected_difference_leaves_the_harmless_mean_alone():
    harmful, harmless = np.random.default_rng(3).normal(size=(2, 16))
    plain = difference_of_means(harmful, harmless, project=False)
    np.testing.assert_allclose(plain, harmful - harmless)
    projected = difference_of_means(harmful, harmless)
    assert abs(projected @ harmless) < 1e-12
    removed = plain - projected
    np.testing.assert_allclose(removed, harmless * (removed @ harmless) / (harmless @ harmless), atol=1e-12)


def test_joint_direction_weighs_unit_vectors():
    a, b = np.array([3.0, 0.0]), np.array([0.0, 0.1])
    np.testing.assert_allclose(joint_direction([a, b]), unit(np.array([1.0, 1.0])))
    np.testing.assert_allclose(joint_direction([a, b], [1.0, 0.5]), unit(np.array([1.0, 0.5])))
    with pytest.raises(ValueError):
        joint_direction([a, b], [1.0])


def test_edit_is_the_rank_one_projection_of_the_writing_matrices_only(model, direction):
    r = unit(direction)
    before, after = leaves_from_module(model), leaves_from_module(ablate(model, direction))
    for name in before:
        old, new = (np.asarray(leaves[name], np.float64) for leaves in (before, after))
        if name.split(".")[-1] not in WRITERS:
            np.testing.assert_array_equal(old, new)
            continue
        w, edited = (x.T if name == "embed_tokens" else x.reshape(len(r), -1) for x in (old, new))  # [D, in]
        np.testing.assert_allclose(edited, w - np.outer(r, r @ w), atol=1e-6 * np.abs(w).max())
        assert np.abs(r @ edited).max() < 1e-6 * np.abs(w).max()
        singular = np.linalg.svd(edited - w, compute_uv=False)
        assert singular[0] > 0.01 and singular[1] < 1e-5 * singular[0]


def test_the_given_module_is_unchanged_and_scale_and_sign_do_not_matter(model, direction):
    before = {name: np.asarray(value).copy() for name, value in leaves_from_module(model).items()}
    edited = leaves_from_module(ablate(model, direction))
    again = leaves_from_module(ablate(model, -3.0 * direction))
    for name, value in leaves_from_module(model).items():
        np.testing.assert_array_equal(before[name], value)
        np.testing.assert_allclose(edited[name], again[name], atol=1e-6)


def test_nothing_is_written_along_the_direction(model, direction, batch):
    stream = np.asarray(residual_stream(ablate(model, direction), *batch), np.float64)
    scale = np.abs(np.asarray(residual_stream(model, *batch), np.float64) @ unit(direction)).max()
    assert np.abs(stream @ unit(direction)).max() < 1e-5 * scale


def test_weights_without_the_direction_equal_hooks_that_remove_it(model, direction, batch):
    tokens, start = batch
    c, r = model.config, jnp.asarray(unit(direction), jnp.float32)

    def hook(y):
        return y - jnp.einsum("BTD,D->BT", y, r)[..., None] * r[None, None]

    slot = jnp.arange(tokens.shape[1])
    mask = (slot[None, None] <= slot[None, :, None]) & (slot[None, None] >= start[:, None, None])
    rope = rope_table(slot[None] - start[:, None], c)
    x = hook(model.embed_tokens[...][tokens])
    for layer in model.layers:
        attended = attend(*project_qkv(layer, x, rope, c), mask, c)
        x = x + hook(jnp.einsum("BTQ,DQ->BTD", attended.reshape(*x.shape[:2], -1), layer.o_proj[...]))
        h = rms_norm(x, layer.post_attention_norm[...], c.rms_norm_eps)
        gate = jnp.einsum("BTD,FD->BTF", h, layer.gate_proj[...])
        up = jnp.einsum("BTD,FD->BTF", h, layer.up_proj[...])
        x = x + hook(jnp.einsum("BTF,DF->BTD", jax.nn.silu(gate) * up, layer.down_proj[...]))
    real = np.arange(tokens.shape[1])[None] >= start[:, None]
    got = residual_stream(ablate(model, direction), tokens, start)[-1]
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(x)[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_only_a_tied_head_changes(direction, tied):
    model = tiny_module(tie_word_embeddings=tied)
    edited = ablate(model, direction)
    x = jnp.asarray(unit(direction), jnp.float32)[None]
    assert np.abs(model.head(x)).max() > 0.01
    if tied:
        assert np.abs(edited.head(x)).max() < 1e-5
    else:
        np.testing.assert_array_equal(edited.head(x), model.head(x))


def test_a_direction_that_is_none_is_refused(model):
    size = model.config.hidden_size
    for bad in (np.zeros(size), np.full(size, np.nan), np.ones(size - 1)):
        with pytest.raises(ValueError, match=f"must be {size} finite numbers"):
            ablate(model, bad)


def test_without_works_along_any_axis():
    values = jnp.asarray(np.random.default_rng(4).normal(size=(3, 4, 5)), jnp.float32)
    for axis, size in enumerate(values.shape):
        r = jnp.asarray(unit(np.random.default_rng(axis).normal(size=size)), jnp.float32)
        left = without(values, r, axis)
        assert np.abs(jnp.tensordot(left, r, axes=((axis,), (0,)))).max() < 1e-5
        np.testing.assert_allclose(without(left, r, axis), left, atol=1e-6)


def test_edited_module_compiles_like_the_original(model, direction, batch):
    edited = ablate(model, direction)
    assert jax.tree.structure(nnx.state(edited)) == jax.tree.structure(nnx.state(model))
    assert jax.jit(lambda m: m(*batch)[0])(edited).shape == (5, 9, model.config.hidden_size)
