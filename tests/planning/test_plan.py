"""The planning program as a user runs it: here for this machine's CPU, and ahead of time where the compilers are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpe_jax.models.checkpoint import config_json
from lpe_jax.plan import speed_in
from lpe_jax.planning.chips import CHIPS
from tests.helpers import tiny_config

ROOT = Path(__file__).parents[2]
QWEN3_4B = {
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_layers": 36,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40_960,
}


def write(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(tiny_config(**fields), "bfloat16")))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plan") / "tiny")


def run(*flags, **more):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | more
    command = [sys.executable, "-m", "experiments.plan", "--max_new_tokens=16", "--prompt_slots=8", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_plan_for_this_machine(tiny, tmp_path):
    path = tmp_path / "plan.json"
    given = (f"--original={tiny}", "--topology=cpu", "--batch_size=32", "--num_alphas=3", f"--json={path}")
    done = run(*given, "--pair_mode=shared", JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 0, done.stderr
    for words in ("2 devices; batch 32, 16 rows in 2 groups to a device", "collectives in the decode: none"):
        assert words in done.stdout
    assert "speed: unknown" in done.stdout
    plan = json.loads(path.read_text())
    memory = plan["memory_bytes"]
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    c = tiny_config()
    twice = c.vocab_size * c.hidden_size + c.num_layers * c.hidden_size * (
        c.num_heads * c.head_dim + c.intermediate_size
    )
    assert memory["weights"] == 4 * (c.num_params + twice)
    assert memory["responses' keys and values"] == 4 * 2 * c.num_layers * 2 * 16 * c.num_kv_heads * 16 * c.head_dim
    assert plan["asked"]["dtype"] == "float32" and plan["collectives"] == {} and plan["memory_limit_bytes"] is None
    assert plan["asked"]["attention"] == "einsum" and "attention by XLA's products" in done.stdout


def test_models_that_devices_share_ask_each_other(tiny, tmp_path):
    path = tmp_path / "plan.json"
    given = (f"--original={tiny / 'config.json'}", "--topology=cpu", "--batch_size=16", f"--json={path}")
    done = run(*given, "--model_parallel=2", JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 0, done.stderr
    plan = json.loads(path.read_text())
    assert sum(plan["collectives"].values()) > 0 and "2 of them to a copy" in done.stdout
    assert plan["rows_per_device"] == 16


def test_the_largest_batch_is_found_and_named(tmp_path):
    one_layer = write(tmp_path / "one", num_layers=1)
    given = (f"--original={one_layer}", "--topology=cpu", "--memory_gib=0.002", "--nogrid_logps")
    done = run(*given, "--batch_size=300")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--batch_size=300 does not fit cpu: it needs" in done.stderr
    named = int(done.stderr.split("--batch_size=")[-1].split()[0])
    found = run(*given, f"--batch_size={named}")
    assert f"batch {named}, {named} rows" in found.stdout and "it fits, with" in found.stdout, found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:2x2"], "there is no chip 'v9'"),
        ([], "--topology is missing"),
        (["--topology=cpu", "--model_parallel=3"], "--model_parallel=3 does not divide the 2 devices"),
        (["--topology=cpu", "--batch_size=33"], "--batch_size=33 is not a multiple of the 2 devices"),
        (["--topology=cpu", "--max_new_tokens=600"], "--max_new_tokens=600 is over the models' 512 positions"),
        (["--topology=cpu", "--attention=pallas"], "--attention=pallas takes an NVIDIA GPU"),
        (["--topology=cpu", "--memory_gib=0.001", "--batch_size=16"], "at any batch"),
        (["--topology=cpu", "--original=nowhere"], "checkpoint 'nowhere' does not exist"),
        (["--topology=cpu", "--original=EMPTY"], "config.json does not exist"),
        (["--topology=cpu", "--variant=OTHER"], "they differ in num_layers (2 against 3)"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(flags, message, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "OTHER": str(write(tmp_path / "other", num_layers=3))}
    for name, place in places.items():
        flags = [flag.replace(name, place) for flag in flags]
    if "memory" in "".join(flags):
        # Weights of 20 MB.
        flags = [*flags, f"--original={write(tmp_path / 'wide', intermediate_size=40_000)}"]
    flags = [f"--original={tiny}", *flags, f"--json={tmp_path / 'plan.json'}"]
    done = run(*flags, JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not (tmp_path / "plan.json").exists()


@pytest.fixture(scope="module")
def sizeable(tmp_path_factory):
    """Two layers of Qwen3-4B."""
    return write(tmp_path_factory.mktemp("plan") / "sizeable", **(QWEN3_4B | {"num_layers": 2}))


@pytest.mark.aot
def test_a_plan_for_tpus(sizeable, tmp_path):
    """Nothing is copied that is as large as the caches, and rows on several devices never ask each other."""
    pytest.importorskip("libtpu")
    path = tmp_path / "plan.json"
    given = ("--pair_mode=ablated", "--batch_size=256", "--max_new_tokens=256", "--prompt_slots=64")
    sweep = ("--nogrid_logps", "--n_naive=100", "--num_prompts=2", "--n=5", "--num_alphas=3")
    done = run(f"--original={sizeable}", "--topology=v5e:2x2", *given, *sweep, f"--json={path}")
    assert done.returncode == 0, done.stderr
    plan = json.loads(path.read_text())
    assert plan["devices"] == 4 and plan["collectives"] == {} and plan["asked"]["dtype"] == "bfloat16"
    memory = plan["memory_bytes"]
    logits = 64 * 151_936 * 2 * 4
    assert memory["temporary"] < 0.5 * memory["responses' keys and values"] + 2 * logits
    assert memory["total"] < plan["memory_limit_bytes"] == CHIPS["v5e"].memory
    assert plan["sweep"]["path"] == 30 and plan["sweep"]["naive"] == 200
    pair, alone = plan["step"]["pair"], plan["step"]["alone"]
    assert 0.4 < alone["flops"] / pair["flops"] < 0.6 and "device-hours" in done.stdout
    speed = speed_in(path)
    assert (speed.tokens, speed.devices) == (pair["tokens_per_second_expected"], 4) and "v5e:2x2" in speed.said


@pytest.mark.aot
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_what_a_tpus_compiler_says_is_its_memory(chip):
    pytest.importorskip("libtpu")
    code = f"""
from lpe_jax.planning import targets
targets.prepare()
import jax
from jax.sharding import SingleDeviceSharding
place = SingleDeviceSharding(targets.find({chip!r}).devices[0])
huge = jax.ShapeDtypeStruct((1 << 19, 1 << 18), "bfloat16", sharding=place)
try:
    jax.jit(lambda x: x + 1).lower(huge).compile()
except jax.errors.JaxRuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"(512.00G) exceeds available HBM ({CHIPS[chip[:3]].memory / 2**30:.2f}G)" in done.stdout, done


@pytest.mark.aot
def test_a_plan_for_gpus(sizeable, tmp_path):
    """By default the kernel is compiled and counted, which reads half of what XLA's products read."""
    pytest.importorskip("jax_cuda13_plugin")
    plans, path = {}, tmp_path / "plan.json"
    given = ("--topology=h200:2", "--batch_size=256", "--nogrid_logps", "--max_new_tokens=256", "--prompt_slots=64")
    for attention in ("auto", "einsum"):
        done = run(f"--original={sizeable}", *given, f"--attention={attention}", f"--json={path}")
        assert done.returncode == 0, done.stderr
        plans[attention] = plan = json.loads(path.read_text())
        assert plan["devices"] == 2 and plan["collectives"] == {} and plan["rows_per_device"] == 128
        memory, logits = plan["memory_bytes"], 128 * 151_936 * 2 * 4
        assert memory["temporary"] < 0.2 * memory["responses' keys and values"] + 2 * logits
    assert [plan["asked"]["attention"] for plan in plans.values()] == ["pallas", "einsum"]
    kernel, products = (plan["step"]["pair"]["parts"]["attention"]["bytes"] for plan in plans.values())
    of_slot = 2 * 2 * 2 * 2 * 8 * 128
    assert kernel == of_slot * (16 * 64 + 128 * (128.5 + 1)) and products == of_slot * (16 * 64 + 128 * (256 + 1))
