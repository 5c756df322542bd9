"""The decode on a mesh that splits rows: the same rollouts on any number of devices, which never ask each other."""

import os
import subprocess
import sys

import pytest

SPLIT = """
import os, re, sys
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lpe_jax.decoding import sampler as sampling
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.types import Request
from tests.helpers import tiny_pair

pair, programs, texts = tiny_pair(), [], []
decode = sampling.decode

def caught(*arguments, **named):
    if not programs:
        texts.append(decode.lower(*arguments, **named).compile().as_text())
    programs.append(1)
    return decode(*arguments, **named)

sampling.decode = caught
requests = [Request(p, a, i) for p in ("p", "q", "r") for a in (0.0, 0.5, 1.0) for i in range(8)]
prompts = {"p": [10, 11, 12], "q": [13] * 7, "r": [14]}

def tokens(pair, mesh):
    sampler = sampling.Sampler(pair, prompts, str, SamplingSettings(max_new_tokens=12), 0, 16, 8, mesh)
    return [r.tokens.tolist() for r in sampler.draw(requests)]

alone = tokens(pair, None)
collective = re.compile(r"= \\S+ (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)")
for data, model in (map(int, shape.split("x")) for shape in sys.argv[1:]):
    devices = jax.devices()[: data * model]
    mesh = jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    def place(leaf):
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "model") if leaf.shape[-1] % 2 == 0 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))
    programs.clear()
    before = decode._cache_size()
    assert tokens(jax.tree.map(place, pair), mesh) == alone, (data, model)
    assert decode._cache_size() == before + 1, (data, model)  # one program, from the first call to the last
    assert bool(collective.findall(texts[-1])) == (model > 1), (data, model)

# As a TPU keeps them, on the last mesh.
sampling.cache.axes_for = lambda platform, kernel: sampling.cache.TPU
before = decode._cache_size()
assert tokens(jax.tree.map(place, pair), mesh) == alone
assert decode._cache_size() == before + 1
print("ok")
"""


@pytest.mark.parametrize("meshes", [["8x1", "4x2"], pytest.param(["2x1", "4x1", "2x2"], marks=pytest.mark.slow)])
def test_rollouts_and_collectives_on_several_devices(meshes):
    """Virtual devices. With weights split too there are collectives, so that finding none means something."""
    out = subprocess.run([sys.executable, "-c", SPLIT, *meshes], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "ok", out.stderr[-2000:]


CORES = """
import os
os.environ.pop("XLA_FLAGS", None)
import jax
from lpe_jax import loading
loading.cores = lambda: 7
loading.split_cpu(60)  # at least 16 rows a core, and as many on each
print(jax.device_count(), dict(loading.make_mesh(1).shape))
loading.split_cpu(16)  # too late: nothing happens
print(jax.device_count())
"""


def test_cores_of_a_cpu_are_devices_that_share_rows():
    out = subprocess.run([sys.executable, "-c", CORES], capture_output=True, text=True, check=False)
    assert out.stdout.splitlines() == ["3 {'data': 3, 'model': 1}", "3"], out.stderr[-2000:]


WIRED = """
import sys
from lpe_jax import loading
from lpe_jax.sweep import Sweep
loading.cores = lambda: 2
given = {"alphas": (1.0, 0.0), "model_parallel": 1, "batch_size": int(sys.argv[1])}
given |= {"share_prefixes": False, "sums": True}
mesh = Sweep(**dict.fromkeys(Sweep.__dataclass_fields__) | given).mesh()
print(None if mesh is None else dict(mesh.shape))
"""


@pytest.mark.parametrize(("rows", "mesh"), [(64, "{'data': 2, 'model': 1}"), (33, "None"), (16, "None")])
def test_a_tiny_world_is_drawn_on_all_cores_that_can_share_its_rows(rows, mesh):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    out = subprocess.run(
        [sys.executable, "-c", WIRED, str(rows)], capture_output=True, text=True, check=False, env=environment
    )
    assert out.stdout.strip() == mesh, out.stderr[-2000:]
