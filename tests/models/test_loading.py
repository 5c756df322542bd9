"""The loader: strict in both directions, refusing what it cannot know, small on the host, sharded in place."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lpe_jax.errors import CheckpointError, PairError
from lpe_jax.loading import checkpoint_stamp
from lpe_jax.models.checkpoint import locate, open_checkpoint, verified
from lpe_jax.models.config import read_config
from lpe_jax.models.pair import describe_sharing, load_pair
from lpe_jax.models.weights import leaves_from_module, save_module
from tests.helpers import load_module, tiny_module


@pytest.fixture
def folder(tmp_path):
    save_module(tiny_module(), tmp_path / "model")
    return tmp_path / "model"


def change(folder, edit):
    """Rewrites model.safetensors after edit(tensors)."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def change_config(folder, **fields):
    raw = json.loads((folder / "config.json").read_text())
    raw |= fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def load(folder):
    return verified(open_checkpoint(str(folder)), jnp.float32)


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_round_trip(folder):
    model = tiny_module()
    assert sum(v.size for v in jax.tree.leaves(nnx.state(model))) == model.config.num_params
    expected, loaded = leaves_from_module(model), leaves_from_module(load_module(folder))
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_transformers_reads_what_we_write(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    for tied in (True, False):
        model = tiny_module(tie_word_embeddings=tied)
        save_module(model, tmp_path / str(tied))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / str(tied), dtype=torch.float32)
        tokens = np.random.default_rng(0).integers(0, 64, (2, 30))
        with torch.no_grad():
            expected = theirs(torch.as_tensor(tokens)).logits.numpy()
        ours = model.head(model(jnp.asarray(tokens), jnp.zeros(2, jnp.int32))[0])
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-5)


def test_every_problem_is_named_in_one_error(folder):
    def edit(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((16, 24), np.float32)
        tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((24, 16), np.int64)
        tensors["lm_head.weight"][3, 4] = np.nan
        tensors["model.layers.0.self_attn.q_norm.weight"][0] = np.inf

    change(folder, edit)
    message = refused(folder)
    for part in (
        "model.layers.7.mlp.up_proj.weight is unknown",
        "model.norm.weight is missing",
        "model.layers.0.mlp.up_proj.weight has shape [16, 24] instead of [24, 16]",
        "model.layers.1.mlp.up_proj.weight has dtype I64",
        "lm_head.weight has values that are NaN or infinite",
        "q_norm.weight has values that are NaN or infinite",
        str(folder),
    ):
        assert part in message


def test_a_layer_too_few_names_its_tensors(folder):
    change_config(folder, num_hidden_layers=3)
    assert "model.layers.2.self_attn.q_proj.weight is missing" in refused(folder)


def test_tied_checkpoint_with_a_head(tmp_path):
    save_module(tiny_module(tie_word_embeddings=True), tmp_path)
    change(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    load_module(tmp_path)
    change(tmp_path, lambda t: t["lm_head.weight"].__setitem__((0, 0), 9.0))
    assert "lm_head.weight differs from model.embed_tokens.weight" in refused(tmp_path)


def test_overflow_in_the_target_dtype_is_seen(folder):
    change(folder, lambda t: t["lm_head.weight"].__setitem__((0, 0), 1e38))
    load(folder)
    with pytest.raises(CheckpointError, match=r"lm_head.weight has values"), np.errstate(over="ignore"):
        verified(open_checkpoint(str(folder)), jnp.float16)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 5000, -1])
def test_truncated_file(folder, kept):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:kept])
    message = refused(folder)
    assert "model.safetensors is truncated or damaged" in message


def test_pickle_weights_are_refused_by_name(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "neither model.safetensors nor" in refused(folder)


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_index_that_lies(folder):
    names = list(load_file(folder / "model.safetensors"))
    good = dict.fromkeys(names, "model.safetensors")
    index(folder, good)
    load(folder)
    index(folder, good | {"model.extra": "model.safetensors"})
    assert "model.extra" in refused(folder)
    index(folder, {n: f for n, f in good.items() if n != "model.norm.weight"})
    assert "model.norm.weight" in refused(folder)
    index(folder, good | {"model.norm.weight": "gone.safetensors"})
    assert "gone.safetensors does not exist" in refused(folder)
    index(folder, good | {"model.norm.weight": "../model/model.safetensors"})
    assert "not a plain file name" in refused(folder)
    shutil.copy(folder / "model.safetensors", folder / "twice.safetensors")
    index(folder, good | {"model.norm.weight": "twice.safetensors"})
    assert "is in both" in refused(folder)
    for broken in ({}, {"weight_map": 3}, {"weight_map": {"a": 3}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(broken))
        assert "weight_map" in refused(folder)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ...}, "architectures is None"),
        ({"hidden_size": ...}, "'hidden_size' is missing"),
        ({"hidden_size": "16"}, "hidden_size = '16'"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"num_attention_heads": 0}, "num_heads = 0"),
        ({"num_attention_heads": 3}, "3 query heads cannot share 2"),
        ({"head_dim": 7}, "head_dim = 7 is odd"),
        ({"rope_theta": ...}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": "x"}, "not an object"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1"),
    ],
)
def test_config_is_not_guessed(folder, fields, part):
    change_config(folder, **fields)
    message = refused(folder)
    assert part in message and "config.json" in message


@pytest.mark.parametrize("text", ["", "{", "[1]", "nul", '{"a":' * 100_000])
def test_config_that_is_not_an_object(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)


def test_missing_folder_and_missing_config(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="does not exist"):
        locate("no-slash-no-folder")
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_config(tmp_path)
    with pytest.raises(CheckpointError, match="hub did not give it"):
        locate("some-org/some-model@main")


def test_pair_keeps_equal_parameters_once(tmp_path):
    original, variant = tiny_module(), tiny_module()
    changed = variant.layers[1].o_proj
    changed[...] *= 2.0
    for name, model in (("a", original), ("b", variant)):
        save_module(model, tmp_path / name)
    pair = load_pair(load(tmp_path / "a"), load(tmp_path / "b"), num_tokens=60, eos_ids=(3,), dtype=jnp.float32)
    text = describe_sharing(pair)
    assert (
        "24 of 25 tensors are kept once, two of o_proj" in text
        and f"instead of {8 * original.config.num_params / 1e6:,.1f}" in text
    )
    assert pair.shared_bytes == 4 * (original.config.num_params - changed[...].size)
    for at, model in enumerate((original, variant)):
        expected, got = leaves_from_module(model), leaves_from_module(pair.model(at))
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name])
    same = load_pair(load(tmp_path / "a"), load(tmp_path / "a"), num_tokens=60, eos_ids=(3,), dtype=jnp.float32)
    assert all(same.shared)


def test_pair_of_other_shapes_is_refused(tmp_path):
    save_module(tiny_module(), tmp_path / "a")
    save_module(tiny_module(intermediate_size=32, rope_theta=5e6), tmp_path / "b")
    with pytest.raises(
        PairError, match=r"intermediate_size \(24 against 32\), rope_theta \(10000.0 against 5000000.0\)"
    ):
        load_pair(load(tmp_path / "a"), load(tmp_path / "b"), num_tokens=60, eos_ids=(3,), dtype=jnp.float32)


def test_half_precision_files(tmp_path):
    """bfloat16 and float16 on disk, loaded in their own dtype and in float32."""
    import ml_dtypes

    for stored in (ml_dtypes.bfloat16, np.float16):
        save_module(tiny_module(), tmp_path)
        change(tmp_path, lambda t, s=stored: t.update({n: v.astype(s) for n, v in t.items()}))
        expected = tiny_module().embed_tokens[...].astype(stored)
        for dtype in (stored, np.float32):
            got = leaves_from_module(load_module(tmp_path, dtype))["embed_tokens"]
            assert got.dtype == dtype
            np.testing.assert_array_equal(np.asarray(got), np.asarray(expected).astype(dtype))


PEAK = """
import sys
import jax, jax.numpy as jnp
from lpe_jax.models.checkpoint import open_checkpoint, verified
from lpe_jax.models.pair import load_pair
from lpe_jax.models import checkpoint as module
jnp.zeros(8).block_until_ready()
a, b = (verified(open_checkpoint(p), jnp.float32) for p in sys.argv[1:3])
def peak():
    # Not getrusage, whose mark a process inherits from the one that started it.
    with open("/proc/self/status") as f: return next(int(l.split()[1]) * 1024 for l in f if l.startswith("VmHWM"))
def current():
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) * 4096
before = current()
pair = load_pair(a, b, num_tokens=10, eos_ids=(3,), dtype=jnp.float32)
jax.block_until_ready(pair.leaves)
print(peak() - before, pair.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_host_memory(tmp_path):
    """Loading needs at most 1.3 x the largest tensor beyond what it loads (and 40 MB for compiled updates)."""
    shape = {"vocab_size": 60_000, "hidden_size": 512, "intermediate_size": 4096, "num_layers": 6, "head_dim": 64}
    original = tiny_module(num_kv_heads=4, tie_word_embeddings=True, scale=1.0, **shape)
    save_module(original, tmp_path / "a")
    for layer in original.layers:
        layer.down_proj[...] += 1
    save_module(original, tmp_path / "b")
    largest = 60_000 * 512 * 4
    del original
    out = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "a", tmp_path / "b"], capture_output=True, text=True, check=True
    )
    grown, loaded = map(int, out.stdout.split())
    assert loaded > 1.5 * largest
    assert grown <= loaded + 1.3 * largest + 40e6, (grown / 1e6, loaded / 1e6, largest / 1e6)


MESH = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.errors import CheckpointError
from lpe_jax.models.checkpoint import open_checkpoint, verified
from lpe_jax.models.pair import load_pair
from lpe_jax.types import Request
a, b = (verified(open_checkpoint(p), jnp.float32) for p in sys.argv[1:3])
load = lambda mesh: load_pair(a, b, num_tokens=60, eos_ids=(3, 7), dtype=jnp.float32, mesh=mesh)
make = lambda *shape: jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
plain, mesh = load(None), make(4, 2)
sharded = load(mesh)
split = 0
for x, y in zip(plain.leaves, sharded.leaves):
    assert x.shape == y.shape and (np.asarray(x) == np.asarray(y)).all()
    split += y.addressable_shards[0].data.size * 2 == y.size
assert split == 2 + 7 * 2, split
requests = [Request("p", alpha, i) for alpha in (0.0, 0.5, 1.0) for i in range(8)]
def tokens(pair, mesh):
    sampler = Sampler(pair, {"p": [10, 11, 12]}, str, SamplingSettings(max_new_tokens=16), 0, 8, 16, mesh)
    return [r.tokens.tolist() for r in sampler.draw(requests)]
assert tokens(plain, None) == tokens(sharded, mesh)
try:
    load(make(2, 4))
except CheckpointError as error:
    assert "does not divide axis K of size 2" in str(error)
else:
    raise AssertionError("a mesh that does not divide the heads was accepted")
print("ok")
"""


def test_sharded_load_and_decode(tmp_path):
    """On 8 virtual devices: each holds its part only, and the rollouts are those of one device."""
    original, variant = tiny_module(), tiny_module()
    for layer in variant.layers:
        layer.o_proj[...] *= -8.0
    save_module(original, tmp_path / "a")
    save_module(variant, tmp_path / "b")
    out = subprocess.run(
        [sys.executable, "-c", MESH, tmp_path / "a", tmp_path / "b"], capture_output=True, text=True, check=False
    )
    assert out.stdout.strip() == "ok", out.stderr[-2000:]


def test_a_stamp_is_of_files_that_are_there(tmp_path):
    """A link that leads nowhere is none: whoever loads the checkpoint says what is missing."""
    (tmp_path / "config.json").write_text("{}")
    before = checkpoint_stamp(str(tmp_path))
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    assert checkpoint_stamp(str(tmp_path)) == before and [name for name, *_ in before] == ["config.json"]
