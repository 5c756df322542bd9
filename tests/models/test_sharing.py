"""Pair modes: what is kept once, and that every mode computes what both models compute by themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.errors import PairError
from lpe_jax.models.checkpoint import open_checkpoint, verified
from lpe_jax.models.edits import measure
from lpe_jax.models.pair import ORIGINAL, VARIANT, describe_sharing, load_pair, pair_modules
from lpe_jax.models.sharing import find_sharing
from lpe_jax.models.weights import leaves_from_module, module_from_leaves, save_module
from lpe_jax.types import Request
from lpe_jax.variants.ablation import ablate, without
from tests.helpers import tiny_module

MODES = ("copies", "shared", "ablated")
TOKENS = np.random.default_rng(0).integers(0, 60, (3, 20))


def direction(seed=1, size=16):
    return np.random.default_rng(seed).standard_normal(size)


def edited(model, rank=1, part=1.0):
    """The model with so many directions, its own in every layer, taken out of what each matrix writes, in part."""
    new = ablate(model, direction())
    if rank > 1 or part != 1.0:
        new = ablate(model, direction())  # a copy of all parameters
        fresh = leaves_from_module(model)
        writers = [(new.embed_tokens, "embed_tokens", 1)]
        for i, layer in enumerate(new.layers):
            writers += [(layer.o_proj, f"layers.{i}.o_proj", 0), (layer.down_proj, f"layers.{i}.down_proj", 0)]
        for at, (parameter, name, axis) in enumerate(writers):
            values = fresh[name]
            for r in range(rank):
                unit = direction(1000 + 100 * at + r)  # 0 would be what drew the first embedding
                unit = jnp.asarray(unit / np.linalg.norm(unit), jnp.float32)
                values = part * without(values, unit, axis) + (1 - part) * values
            parameter[...] = values
    return new


def both_logits(pair, tokens=TOKENS):
    hidden, _ = pair.forward(jnp.asarray(tokens), jnp.zeros(len(tokens), jnp.int32))
    return pair.head(hidden)


@pytest.mark.parametrize(("tied", "rank", "part"), [(True, 1, 1.0), (True, 2, 1.0), (True, 3, 0.9), (False, 1, 0.7)])
def test_modes_agree_with_both_models(tied, rank, part):
    original = tiny_module(tie_word_embeddings=tied)
    variant = edited(original, rank, part)
    expected = [model.head(model(jnp.asarray(TOKENS), jnp.zeros(3, jnp.int32))[0]) for model in (original, variant)]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    sizes = []
    for mode in MODES:
        pair = pair_modules(original, variant, num_tokens=60, eos_ids=(3,), mode=mode)
        logits = both_logits(pair)
        for at in (ORIGINAL, VARIANT):
            scale = np.abs(expected[at]).max()
            np.testing.assert_allclose(logits[at], expected[at], atol=5e-5 * scale, rtol=0)
            alone = pair.alone(at)
            np.testing.assert_allclose(both_logits(alone)[0], expected[at], atol=5e-5 * scale, rtol=0)
            assert alone.edit_rank == (rank if mode == "ablated" and at == VARIANT else 0)
        sizes.append(pair.nbytes)
    assert sizes[0] == 2 * 4 * original.config.num_params
    assert sizes[0] > sizes[1] > sizes[2]
    assert pair.edit_rank == rank


def test_modes_draw_the_same_tokens():
    original = tiny_module(tie_word_embeddings=True)
    requests = [Request(p, a, i) for p in ("p", "q") for a in (0.0, 0.3, 1.0, 1.5) for i in range(8)]
    prompts, drawn = {"p": [10, 11, 12], "q": [13] * 7}, []
    for mode in MODES:
        pair = pair_modules(original, edited(original), num_tokens=60, eos_ids=(3, 7), mode=mode)
        sampler = Sampler(pair, prompts, str, SamplingSettings(max_new_tokens=16), 0, 16, 8)
        drawn.append([r.tokens.tolist() for r in sampler.draw(requests)])
        if mode == "ablated":
            alone = [r.tokens.tolist() for r in sampler.alone.draw([r for r in requests if r.alpha == 1])]
            assert alone == [t for t, r in zip(drawn[-1], requests, strict=True) if r.alpha == 1]
    assert drawn[0] == drawn[1] == drawn[2]


def checkpoints(folder, original, variant, dtype=jnp.float32, stored=np.float32):
    from safetensors.numpy import load_file, save_file

    found = []
    for name, model in (("a", original), ("b", variant)):
        save_module(model, folder / name)
        path = folder / name / "model.safetensors"
        save_file({n: v.astype(stored) for n, v in load_file(path).items()}, path)
        found.append(verified(open_checkpoint(str(folder / name)), dtype))
    return found


def test_auto_takes_what_is_exact(tmp_path):
    original = tiny_module(tie_word_embeddings=True)
    pair = checkpoints(tmp_path, original, edited(original))
    sharing = find_sharing(*pair, "auto", jnp.float32)
    assert sharing.mode == "ablated" and all(sharing.once.values()) and sharing.edit_rank == 1
    assert "o_proj x 2 of rank 1" in sharing.why and "embed_tokens of rank 1" in sharing.why
    loaded = load_pair(*pair, num_tokens=60, eos_ids=(3,), dtype=jnp.float32, sharing=sharing)
    assert "one copy of the weights serves both, as the variant is the original with edits of rank 1" in (
        describe_sharing(loaded)
    )
    copies = pair_modules(original, edited(original), num_tokens=60, eos_ids=(3,), mode="copies")
    assert describe_sharing(copies).endswith(f" {copies.nbytes / 1e6:,.1f} MB: a copy of the weights for each")
    expected = both_logits(copies)
    np.testing.assert_allclose(both_logits(loaded), expected, atol=5e-5 * np.abs(expected).max(), rtol=0)

    same = checkpoints(tmp_path, original, original)
    assert find_sharing(*same, "auto", jnp.float32).mode == "shared"
    assert find_sharing(*pair, "copies", jnp.float32).mode == "copies"
    assert find_sharing(*pair, "shared", jnp.float32).mode == "shared"


def test_an_edit_stored_in_bfloat16_is_known_by_its_rounding(tmp_path):
    """Wide enough that the change of an entry, about 1 / sqrt(D) of it, stands above its rounding."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": True, "scale": 1.0}
    original = tiny_module(**shape)
    # As tools do it: from stored weights, rounded when stored.
    leaves = leaves_from_module(original).items()
    original = module_from_leaves(
        original.config, {name: leaf.astype(jnp.bfloat16).astype(jnp.float32) for name, leaf in leaves}
    )
    pair = checkpoints(tmp_path, original, ablate(original, direction(size=128)), stored=ml_dtypes.bfloat16)
    for dtype in (jnp.bfloat16, jnp.float32):
        sharing = find_sharing(*pair, "auto", dtype)
        assert sharing.mode == "ablated", sharing.why
        assert all(1e-3 < edit.off < edit.allowed[2] < 0.02 for edit in sharing.edits.values())


def test_what_is_no_edit_is_refused_with_numbers(tmp_path):
    original = tiny_module(tie_word_embeddings=True)
    tuned = edited(original)
    noise = np.random.default_rng(0).standard_normal(tuned.layers[1].down_proj.shape)
    tuned.layers[1].down_proj[...] += 1e-4 * jnp.asarray(noise, jnp.float32)
    pair = checkpoints(tmp_path, original, tuned)
    with pytest.raises(PairError) as caught:
        find_sharing(*pair, "ablated", jnp.float32)
    message = str(caught.value)
    assert "model.layers.1.mlp.down_proj.weight is no edit of rank 3 or less (rank 3, next singular value" in message
    assert message.endswith("use --pair_mode=shared") and "\n" not in message
    sharing = find_sharing(*pair, "auto", jnp.float32)
    assert sharing.mode == "shared" and "down_proj" in sharing.why and not sharing.edits

    other = edited(original)
    other.layers[0].q_proj[...] *= 1.01
    pair = checkpoints(tmp_path, original, other)
    with pytest.raises(PairError, match=r"layers\.0\.self_attn\.q_proj\.weight differs and does not write"):
        find_sharing(*pair, "ablated", jnp.float32)


def test_a_light_fine_tune_in_bfloat16_is_not_taken_for_rounding():
    """Every entry is within a rounding of the original's, and yet that is all of the change."""
    rng = np.random.default_rng(0)
    before = rng.uniform(1, 2, (300, 64)).astype(ml_dtypes.bfloat16)
    step = rng.choice([-1, 0, 1], before.shape).astype(np.int16)
    after = (before.view(np.int16) + step).view(ml_dtypes.bfloat16)
    found = measure(lambda: iter([(before, after)]), 64, float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps))
    assert found.off <= 1.01 * found.allowed[2] and not found.exact


@pytest.mark.parametrize("besides", ["nothing", "a step of every entry", "another direction"])
def test_an_edit_and_something_besides_in_bfloat16(besides):
    """An abliteration that was healed by a little training is another model, though each entry is within rounding."""
    rng, bfloat16 = np.random.default_rng(1), ml_dtypes.bfloat16
    before = rng.standard_normal((800, 256)).astype(bfloat16)
    unit = direction(5, 256) / np.linalg.norm(direction(5, 256))
    wide = before.astype(np.float64)
    after = wide - np.outer(wide @ unit, unit)
    if besides == "another direction":
        other = np.outer(rng.standard_normal(800), rng.standard_normal(256))
        after += 0.17 * other * np.linalg.norm(after - wide) / np.linalg.norm(other)
    after = after.astype(bfloat16)
    if besides == "a step of every entry":
        after = (after.view(np.int16) + rng.choice([-1, 1], after.shape).astype(np.int16)).view(bfloat16)
    found = measure(lambda: iter([(before, after)]), 256, float(ml_dtypes.finfo(bfloat16).eps))
    assert found.rank == 1 or besides != "nothing"
    assert found.exact == (besides == "nothing")


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_rank_is_found_whatever_the_blocks(rank, blocks):
    rng = np.random.default_rng(rank)
    before = rng.standard_normal((210, 24))
    u = np.linalg.qr(rng.standard_normal((24, rank)))[0]
    c = np.diag(rng.uniform(0.3, 1.0, rank)) + 0.1 * rng.standard_normal((rank, rank))
    after = before - before @ (u @ c @ u.T).T
    parts = list(zip(np.split(before, blocks), np.split(after, blocks), strict=True))
    found = measure(lambda: iter(parts), 24, 1e-7)
    assert found.exact == (rank <= 3)
    if rank <= 3:
        assert found.rank == rank
        np.testing.assert_allclose(found.u @ found.a, u @ c @ u.T, atol=1e-9)
        assert found.next_ratio < 1e-6


def test_signs_of_zeros_are_no_change():
    before = np.zeros((5, 4), np.float32)
    found = measure(lambda: iter([(before, -before)]), 4, 1e-7)
    assert found.exact and not found.a.any()


def test_edits_stay_float32_beside_half_precision_weights():
    original = tiny_module(tie_word_embeddings=True)
    pair = pair_modules(original, edited(original), num_tokens=60, eos_ids=(3,), mode="ablated")
    half = dataclasses.replace(
        pair,
        leaves=tuple(
            leaf if axis == 0 else leaf.astype(jnp.bfloat16) for leaf, axis in zip(pair.leaves, pair.axes, strict=True)
        ),
    )
    assert half.dtype == jnp.bfloat16 and both_logits(half).dtype == jnp.float32
    assert half.empty_cache(1, 4).k[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_states_are_mixed_where_both_have_one_head(tied):
    original = tiny_module(tie_word_embeddings=tied)
    rng = np.random.default_rng(0)
    alpha = jnp.asarray([0.0, 0.3, 1.0, 1.7])
    for mode in MODES:
        pair = pair_modules(original, edited(original), num_tokens=60, eos_ids=(3,), mode=mode)
        assert pair.one_head == (mode == "ablated" or (mode == "shared" and not tied))
        hidden = jnp.asarray(rng.standard_normal((2, 4, 16)), jnp.float32)
        logits = pair.head(hidden)
        expected = alpha[:, None] * logits[0] + (1 - alpha)[:, None] * logits[1]
        np.testing.assert_allclose(jnp.moveaxis(pair.logits(hidden), 0, -1), logits, atol=1e-6)
        np.testing.assert_allclose(pair.mixed_logits(hidden, alpha).T, expected, atol=1e-5 * np.abs(expected).max())
        program = str(jax.make_jaxpr(pair.mixed_logits)(hidden, alpha))
        assert program.count("dot_general") == 1
        assert ("f32[64,4] = dot_general" in program) == pair.one_head


def test_without_sums_the_same_is_drawn():
    original = tiny_module(tie_word_embeddings=True)
    pair = pair_modules(original, edited(original), num_tokens=60, eos_ids=(3, 7), mode="ablated")
    requests = [Request("p", a, i) for a in (0.0, 0.3, 1.0, 1.5) for i in range(8)]

    def drawn(**more):
        sampler = Sampler(pair, {"p": [10, 11, 12]}, str, SamplingSettings(max_new_tokens=16), 0, 16, 8, **more)
        found = list(sampler.draw(requests))
        assert sampler.verify("p", found) < 1e-5
        return found

    for with_sums, without_sums in zip(drawn(), drawn(sums=False), strict=True):
        np.testing.assert_array_equal(with_sums.tokens, without_sums.tokens)
        np.testing.assert_allclose(with_sums.logp_path, without_sums.logp_path, atol=1e-4)
        for name in ("logp_original", "logp_variant", "path_score", "path_variance"):
            assert np.isnan(getattr(without_sums, name)) and np.isfinite(getattr(with_sums, name))
    with pytest.raises(ValueError, match="leave sums on"):
        drawn(sums=False, grid=(1.0, 0.5))
