"""The benchmark as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpe_jax.benchmark.run import check_torch
from lpe_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def run(*flags):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.benchmark", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_a_table_and_every_round_come_out(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "b.json"
    done = run("--quick", "--workloads=real60-eos,naive", "--rounds=2", "--compile_limit=1", f"--json={path}")
    assert done.returncode == 0, done.stderr
    whole = json.loads(path.read_text())
    assert whole["machine"]["cores"] >= 1 and whole["machine"]["versions"]["jax"]
    eos, naive = whole["workloads"]
    assert eos["reference"].startswith("HF loop") and naive["reference"] == "plain rows of the original"
    assert {t["round"] for t in eos["turns"]} == {0, 1}
    names = [s["name"] for s in eos["standings"]]
    assert "our engine, shared" in names and "HF generate, CFG processor" in names
    assert all(name in done.stdout for name in names)
    assert "did not compile within 1 s" in done.stdout
    # Equal work: as many rollouts each, and about as many tokens.
    assert len({t["rollouts"] for t in eos["turns"]}) == 1
    lengths = [s["tokens_per_rollout"] for s in eos["standings"]]
    assert max(lengths) < 1.5 * min(lengths)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workloads=all"], "--workloads=all is none of embedded, naive, vocab4096"),
        (["--workloads="], "--workloads names none"),
        (["--modes=half"], "--modes=half is none of"),
        (["--loops=fast"], "--loops=fast must be some of dynamic"),
        (["--json=/nowhere/b.json"], "--json=/nowhere/b.json: there is no such folder"),
        (["--workloads=qwen3-4b-32", "--nopeers"], "takes a GPU"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(flags, words):
    done = run(*flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_without_torch_it_says_what_to_install():
    def importer(name):
        if name == "torch":
            raise ImportError

    with pytest.raises(UserError, match=r"torch is not installed.*pip install 'lpe_jax\[test\]'"):
        check_torch(importer)
