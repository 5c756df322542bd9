"""The attention kernel: against a loop in float64 and XLA's products, interpreted on a CPU, and compiled for GPUs."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpe_jax.decoding import attention, cache
from lpe_jax.decoding.attention import INTERPRET, Kernel, choose_kernel, merged, partial_attention
from lpe_jax.errors import UserError
from tests.decoding.test_loop import all_requests, by_request, mismatches, sampler

ROOT = Path(__file__).parents[2]
# Relative to the largest value: float32 sums in another order; halves where weights and results are rounded to them.
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
interpreted = jax.jit(Kernel(interpret=True).attend)


@dataclasses.dataclass(frozen=True)
class Case:
    """Random queries, keys and values; seen and said slots count."""

    q: jax.Array
    k_prompt: jax.Array
    v_prompt: jax.Array
    seen: jax.Array
    k: jax.Array
    v: jax.Array
    said: jax.Array

    @property
    def of_prompts(self):
        return self.k_prompt, self.v_prompt, self.seen

    @property
    def of_responses(self):
        return self.k, self.v, self.said


def case(groups, rows, heads, width, head_dim, prompt, response, dtype="float32", seed=0):
    """seen has 0 and all slots of a prompt, said 1 and all of a response, where there is more than one."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    def up_to(most, least, size):
        found = rng.integers(least, most + 1, size)
        found[:2] = [least, most][:size]
        return jnp.asarray(found, jnp.int32)

    batch = groups * rows
    return Case(
        q=normal(batch, heads * width, head_dim),
        k_prompt=normal(groups, heads, prompt, head_dim),
        v_prompt=normal(groups, heads, prompt, head_dim),
        seen=up_to(prompt, 0, groups),
        k=normal(batch, heads, response, head_dim),
        v=normal(batch, heads, response, head_dim),
        said=up_to(response, 1, batch),
    )


def by_loops(c):
    """[B, N, H] in float64."""
    numbers = {name: np.asarray(value).astype(np.float64) for name, value in vars(c).items()}
    q, k_prompt, v_prompt, k, v = (numbers[name] for name in ("q", "k_prompt", "v_prompt", "k", "v"))
    out, width, rows = np.zeros_like(q), q.shape[1] // k.shape[1], len(q) // len(k_prompt)
    for row, head in np.ndindex(q.shape[:2]):
        group, own = row // rows, head // width
        seen, said = int(c.seen[group]), int(c.said[row])
        keys = np.concatenate([k_prompt[group, own, :seen], k[row, own, :said]])
        values = np.concatenate([v_prompt[group, own, :seen], v[row, own, :said]])
        score = keys @ q[row, head] / np.sqrt(q.shape[-1])
        weight = np.exp(score - score.max())
        out[row, head] = weight @ values / weight.sum()
    return out


@jax.jit
def by_products(q, of_prompts, of_responses):
    """As XLA computes it, in float32: it has no products of halves on a CPU."""
    q, of_prompts, of_responses = jax.tree.map(
        lambda x: x if x.dtype == jnp.int32 else x.astype(jnp.float32), (q, of_prompts, of_responses)
    )
    (k_prompt, v_prompt, seen), (k, v, said) = of_prompts, of_responses
    in_prompt, in_response = (
        jnp.arange(keys.shape[2])[None, :] < n[:, None] for keys, n in ((k_prompt, seen), (k, said))
    )
    return cache.attend(q, (k_prompt, v_prompt, in_prompt), (k, v, in_response), q.shape[-1], cache.KERNEL)


SHAPES = {
    "several blocks": (2, 3, 2, 4, 64, 200, 300),
    "no multiple of a block": (3, 2, 2, 2, 64, 129, 127),
    "one block and few slots": (4, 2, 2, 2, 8, 8, 20),
    "as many key-value heads as heads": (2, 2, 3, 1, 16, 24, 40),
    "odd numbers of heads": (2, 3, 1, 5, 128, 9, 70),
    "one row to a prompt": (3, 1, 2, 4, 32, 1, 1),
    "many queries share keys": (1, 8, 1, 5, 16, 40, 16),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_as_a_loop_in_float64(shape, dtype):
    c = case(*shape, dtype)
    found = interpreted(c.q, c.of_prompts, c.of_responses)
    assert found.dtype == dtype and found.shape == c.q.shape
    expected = by_loops(c)
    largest = max(1.0, np.abs(expected).max())
    for others in (expected, by_products(c.q, c.of_prompts, c.of_responses)):
        apart = np.abs(np.asarray(found, np.float64) - np.asarray(others, np.float64)).max()
        assert apart < TOLERANCE[dtype] * largest


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_any_size(seed):
    """Ages at random, and scores in the hundreds: weights relative to anything but the largest would overflow."""
    c = case(2, 4, 2, 2, 16, 30, 290, seed=seed)
    c = dataclasses.replace(c, q=c.q * 100)
    found = np.asarray(interpreted(c.q, c.of_prompts, c.of_responses), np.float64)
    assert np.abs(found - by_loops(c)).max() < 2e-3


def test_what_one_part_returns():
    """Unnormalised sums, the largest score and the sum of weights, over the slots that count alone."""
    c = case(1, 5, 2, 3, 16, 8, 150)
    count = jnp.asarray([0, 1, 64, 149, 150], jnp.int32)
    q = c.q.reshape(5, 2, 3, 16)
    out, top, total = jax.jit(lambda *x: partial_attention(*x, interpret=True))(q, c.k, c.v, count)
    assert out.dtype == top.dtype == total.dtype == jnp.float32
    assert (top[0] == -1e30).all() and not total[0].any() and not out[0].any()
    for row, head, query in np.ndindex(4, 2, 3):
        row, n = row + 1, int(count[row + 1])
        score = np.asarray(c.k[row, head, :n], np.float64) @ np.asarray(q[row, head, query], np.float64) / 4
        weight = np.exp(score - score.max())
        assert top[row, head, query] == pytest.approx(score.max(), abs=1e-6)
        assert total[row, head, query] == pytest.approx(weight.sum(), rel=1e-6)
        expected = weight @ np.asarray(c.v[row, head, :n], np.float64)
        assert np.asarray(out[row, head, query]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_parts_merge_to_the_whole_however_they_are_cut():
    c = case(1, 3, 2, 2, 16, 8, 90)
    q, call = c.q.reshape(3, 2, 2, 16), jax.jit(lambda *x: partial_attention(*x, interpret=True))
    whole = merged(call(q, c.k, c.v, jnp.full(3, 90, jnp.int32)))
    for cut in (1, 16, 89):
        first = call(q, c.k[:, :, :cut], c.v[:, :, :cut], jnp.full(3, cut, jnp.int32))
        rest = call(q, c.k[:, :, cut:], c.v[:, :, cut:], jnp.full(3, 90 - cut, jnp.int32))
        nothing = call(q, c.k, c.v, jnp.zeros(3, jnp.int32))
        assert np.abs(np.asarray(merged(nothing, rest, first)) - np.asarray(whole)).max() < 2e-6


def test_both_models_at_once():
    """The model axis is a vmap; ages are the same for both."""
    pairs = [case(2, 3, 2, 2, 16, 20, 40, seed=seed) for seed in (0, 1)]
    pairs[1] = dataclasses.replace(pairs[1], seen=pairs[0].seen, said=pairs[0].said)
    stacked = [jnp.stack([getattr(c, name) for c in pairs]) for name in ("q", "k_prompt", "v_prompt", "k", "v")]

    def one(q, k_prompt, v_prompt, k, v):
        return Kernel(interpret=True).attend(q, (k_prompt, v_prompt, pairs[0].seen), (k, v, pairs[0].said))

    together = jax.jit(jax.vmap(one))(*stacked)
    for found, c in zip(together, pairs, strict=True):
        assert np.array_equal(found, interpreted(c.q, c.of_prompts, c.of_responses))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_know_the_others(dtype):
    """Bit for bit what it is alone, in another place, among longer ones and after others that said more."""
    c = case(3, 4, 2, 2, 16, 50, 200, dtype)
    whole = np.asarray(interpreted(c.q, c.of_prompts, c.of_responses))
    for row in (0, 5, 11):
        group, own = row // 4, slice(row, row + 1)
        prompt = tuple(x[group : group + 1] for x in c.of_prompts)
        alone = interpreted(c.q[own], prompt, tuple(x[own] for x in c.of_responses))
        assert np.array_equal(np.asarray(alone)[0], whole[row])
    order = np.array([2, 0, 1])
    rows = (order[:, None] * 4 + np.arange(4)[::-1]).reshape(-1)
    moved = interpreted(c.q[rows], tuple(x[order] for x in c.of_prompts), tuple(x[rows] for x in c.of_responses))
    assert np.array_equal(np.asarray(moved), whole[rows])


def test_slots_that_do_not_count_are_not_read():
    """NaN in each of them reaches nothing; in one that counts it does."""
    c = case(3, 2, 2, 2, 16, 50, 200)

    def spoilt(x, n):
        return jnp.where((jnp.arange(x.shape[2])[None, :] < n[:, None])[:, None, :, None], x, jnp.nan)

    def found(less):
        prompts = *(spoilt(x, c.seen) for x in (c.k_prompt, c.v_prompt)), c.seen
        responses = *(spoilt(x, c.said - less) for x in (c.k, c.v)), c.said
        return np.asarray(interpreted(c.q, prompts, responses))

    assert np.array_equal(found(0), interpreted(c.q, c.of_prompts, c.of_responses))
    assert np.isnan(found(1)).all()


def test_rollouts_are_those_of_the_products():
    """Sums round otherwise; a full forward pass agrees with them."""
    one = sampler()
    other = dataclasses.replace(one, attention=INTERPRET)
    responses = other.shapes()[2].responses
    assert {a.shape for a in (*responses.k, *responses.v)} == {(2, 16, 2, 20, 8)} and responses.kernel.interpret
    assert one.kernel is None and one.shapes()[2].responses.axes == cache.CPU
    expected, found = (by_request(s.draw(all_requests())) for s in (one, other))
    for key, rollout in found.items():
        assert np.array_equal(rollout.tokens, expected[key].tokens)
        assert rollout.logp_path == pytest.approx(expected[key].logp_path, abs=1e-4)
    assert {r.logp_path for r in found.values()} != {r.logp_path for r in expected.values()}, "the kernel was there"
    for prompt_id in other.prompts:
        assert other.verify(prompt_id, [r for r in found.values() if r.prompt_id == prompt_id]) < 1e-5


def test_rollouts_do_not_depend_on_batch_mates_or_order():
    assert mismatches(dataclasses.replace(sampler(), attention=INTERPRET), packings=5) == 0


def test_the_original_alone():
    both = dataclasses.replace(sampler(), attention=INTERPRET)
    requests = [request for request in all_requests(2) if request.alpha == 1.0]
    for one, other in zip(both.draw(requests), both.alone.draw(requests), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
    assert both.alone.kernel == both.kernel


def gpu(capability="9.0", kind="NVIDIA H200"):
    return SimpleNamespace(compute_capability=capability, device_kind=kind, platform="gpu")


def test_who_gets_the_kernel():
    cpu = jax.devices("cpu")[0]
    assert choose_kernel("auto", cpu, 128) is None and choose_kernel("einsum", gpu(), 128) is None
    for capability in ("8.0", "8.9", "9.0", "10.3", "12.0"):
        assert choose_kernel("auto", gpu(capability), 128) == choose_kernel("pallas", gpu(capability)) == Kernel()
    for capability in ("7.5", "gfx942", ""):
        assert choose_kernel("auto", gpu(capability), 128) is None
    assert choose_kernel("auto", gpu(), 80) is None and choose_kernel("auto", gpu(), 64) == Kernel()
    mesh = jax.make_mesh((1, 1), ("data", "model"), devices=[cpu])
    assert choose_kernel("auto", gpu(), 128, mesh) == Kernel(mesh)


@pytest.mark.parametrize(
    ("device", "head_dim", "words"),
    [
        (gpu("7.5", "Tesla T4"), 128, "8.0 or more, which Tesla T4 is not"),
        (gpu(), 80, "takes heads of 16, 32, 64, 128, 256 numbers, and the models' have 80"),
        (None, None, "which cpu is not"),
    ],
)
def test_a_kernel_that_cannot_be_had_is_refused_in_words(device, head_dim, words):
    with pytest.raises(UserError, match=f"--attention=pallas .*{words}"):
        choose_kernel("pallas", device or jax.devices("cpu")[0], head_dim)


def test_without_the_backend_products_are_taken(monkeypatch):
    monkeypatch.setattr(attention, "triton", None)
    assert choose_kernel("auto", gpu(), 128) is None
    with pytest.raises(UserError, match=f"jax {jax.__version__} does not have"):
        choose_kernel("pallas", gpu(), 128)


SPLIT = """
import os, re
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.types import Request
from tests.helpers import tiny_pair

pair = tiny_pair(num_layers=1)
requests = [Request(p, a, i) for p in ("p", "q", "r") for a in (0.0, 1.0) for i in range(6)]
prompts = {"p": [10, 11, 12], "q": [13] * 7, "r": [14]}

def sampler(pair, mesh):
    return Sampler(pair, prompts, str, SamplingSettings(max_new_tokens=12), 0, 16, 8, mesh, attention="interpret")

def tokens(sampler):
    return [r.tokens.tolist() for r in sampler.draw(requests)]

alone = tokens(sampler(pair, None))
collective = re.compile(r"= \\S+ (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)")
for data, model in ((2, 1), (1, 2)):
    mesh = jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    def place(leaf):
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "model") if leaf.shape[-1] % 2 == 0 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))
    one = sampler(jax.tree.map(place, pair), mesh)
    assert tokens(one) == alone, (data, model)
    text = one.lower().compile().as_text()
    assert bool(collective.findall(text)) == (model > 1), (data, model)
    # Each device has its own part of what the kernel reads: rows, or heads.
    rows, heads = 16 // data, 2 // model
    assert f"f32[2,{rows},{heads},12,8]" in text and "f32[2,16,2,12,8]" not in text, (data, model)
print("ok")
"""


def test_devices_that_share_rows_do_not_ask_each_other():
    """Virtual devices. With heads split there are collectives, of other parts, so that finding none means something."""
    out = subprocess.run([sys.executable, "-c", SPLIT], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "ok", out.stderr[-2000:]


COMPILED = """
import sys
from lpe_jax.planning import targets
targets.prepare()
import jax.numpy as jnp
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.loading import make_mesh
from lpe_jax.models.pair import abstract_pair
from lpe_jax.planning.compiled import compile_decode
from tests.helpers import tiny_config

topology, dtype, head_dim = sys.argv[1:]
devices = targets.find(topology).devices
mesh = make_mesh(1, devices)
config = tiny_config(hidden_size=256, num_heads=16, num_kv_heads=4, head_dim=int(head_dim), vocab_size=512)
place = devices[0] if mesh is None else mesh
pair = abstract_pair(
    config, doubled=lambda name: False, num_tokens=512, eos_ids=(0,), dtype=jnp.dtype(dtype), place=place
)
sampler = Sampler(pair, {}, str, SamplingSettings(200), 0, 64 * len(devices), 40, mesh)
found = compile_decode(sampler)
kept = sum(size for part, size in found.memory.items() if part.endswith("keys and values"))
assert found.memory["temporary"] < 0.2 * kept, (found.memory["temporary"], kept)
assert found.collectives == {}
calls = sampler.lower().compile().as_text().count('custom_call_target="__gpu$xla.gpu.triton"')
assert calls == 2 * config.num_layers, calls
print("ok")
"""


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "dtype", "head_dim"),
    [
        ("h200", "bfloat16", 128),
        ("h200:2", "bfloat16", 64),
        ("h100", "float32", 128),
        ("h100", "float16", 64),
        ("a100", "bfloat16", 256),
        ("a100", "float32", 16),
    ],
)
def test_it_compiles_for_gpus_and_copies_no_cache(topology, dtype, head_dim):
    """The decode whole, two calls a layer; what it keeps for itself is a fifth of keys and values at most."""
    pytest.importorskip("jax_cuda13_plugin")
    command = [sys.executable, "-c", COMPILED, topology, dtype, str(head_dim)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert out.stdout.strip() == "ok", out.stderr[-2000:]
