"""The commands of docs/how-to.md, one after another in a folder of their own, with budgets that a CPU has."""

import csv
import json
import os
import subprocess
import sys

import pytest

from lpe_jax.tiny import world_folder
from tests.test_docs import ROOT, commands

# What is added to the commands of a program; a flag that is given twice is what it is last.
SMALL = {
    "estimate": [
        *("--limit=3", "--max_new_tokens=48", "--batch_size=16", "--nofigures", "--judge=tiny"),
        *("--n_search=4", "--n_fit=8", "--alphas=0.4,0.2", "--naive_check=0", "--nosums"),
    ],
    "path": ["--limit=3", "--max_new_tokens=48", "--batch_size=16", "--nofigures", "--naive_check=0"],
    "sample": ["--n=60", "--processes=1", "--max_new_tokens=64"],
    "evaluate": ["--repeats=2", "--interval_repeats=2", "--n=60", "--n_fit=13", "--sizes=25"],
    "forecast": ["--draws=20", "--top=2"],
    "plan": ["--topology=h200"],
}


def section(title):
    """(program, words) of the commands under a heading."""
    text = (ROOT / "docs" / "how-to.md").read_text()
    assert f"\n## {title}\n" in text
    return list(commands(text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The embedded pair under the names that the page has, and counts of another pipeline."""
    folder = tmp_path_factory.mktemp("how-to")
    for name in ("original", "variant", "prompts.jsonl"):
        (folder / name).symlink_to(world_folder() / name)
    rows = [("boat", 0.2, 100, 60), ("boat", 0.4, 100, 25), ("boat", 0.6, 100, 11), ("kite", 0.2, 50, 20)]
    lines = ["prompt_id,alpha,scored,complied", *(",".join(map(str, row)) for row in rows)]
    (folder / "counts.csv").write_text("\n".join(lines) + "\n")
    return folder


def ran(place, program, words, status=0):
    """What a command printed."""
    words = [str(place / word[1:]) if word.startswith("/shared") else word for word in words]
    kind = "path" if "--method=path" in words else program
    call = [sys.executable, "-m", f"experiments.{program}", *words, *SMALL.get(kind, [])]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == status, f"{program} {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def mine(place):
    """The run that others read."""
    ((program, words),) = section("Estimate the rates of your own pair")
    return ran(place, program, words)


def test_estimate_check_and_export(place, mine):
    assert "see runs/mine" in mine
    with open(place / "runs" / "mine" / "estimates.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    for program, words in section("Export a run"):
        if any(word.endswith(".eval") for word in words):
            pytest.importorskip("inspect_ai")
        ran(place, program, words)
        assert (place / words[-1].removeprefix("--out=")).stat().st_size


def test_extrapolate(place):
    (program, words), logs = section("Extrapolate another pipeline's passes and failures")
    assert "boat" in ran(place, program, words) and (place / "rates.csv").exists()
    assert logs[1][0] == "logs/*.eval"


@pytest.mark.slow
def test_check_a_judge(place, mine):
    show, validate, another = section("Check a judge")
    ran(place, *show)
    labels = place / "labels.jsonl"
    lines = [json.loads(line) | {"complied": False} for line in labels.read_text().splitlines()]
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert f"held against {len(lines)} labels" in ran(place, *validate)
    assert "see runs/mine/judged" in ran(place, *another)


@pytest.mark.slow
def test_continue_and_grow(place):
    (begin,), (again, check, repair) = section("Estimate with the fewest rollouts"), section("Continue after a crash")
    assert begin == again
    own = ["--budget=24"]
    first = ran(place, begin[0], [*begin[1], *own])
    shard = min((place / "runs" / "path" / "rollouts").glob("*.parquet"))
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    assert "wrong: " in ran(place, *check, status=1)
    assert "repaired" in ran(place, *repair)
    ran(place, again[0], [*again[1], *own])
    table = (place / "runs" / "path" / "estimates.txt").read_text()
    assert table.splitlines()[0] in first and "all is well" in ran(place, *check)
    ((program, words),) = section("Grow a run")
    ran(place, program, [*words, "--budget=40"])
    assert (place / "runs" / "path" / "estimates.txt").read_text() != table


@pytest.mark.slow
def test_compare_estimators(place):
    for program, words in section("Compare estimators"):
        ran(place, program, words)
    assert (place / "runs" / "evaluation" / "evaluation.csv").exists()


@pytest.mark.slow
def test_forecast(tmp_path):
    """From rates that are as a run of a dozen prompts writes them."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    rates = [10 ** (-2 - i / 3) for i in range(12)]
    lines = ["prompt_id,rate,low,high,method", *(f"p{i},{r},{r / 3},{r * 3},lpe" for i, r in enumerate(rates))]
    (folder / "estimates.csv").write_text("\n".join(lines) + "\n")
    ((program, words),) = section("Forecast the risk of a deployment")
    said = ran(tmp_path, program, words)
    assert all(size in said for size in ("10000", "1e+06", "1e+09")), said


@pytest.mark.slow
def test_sweep_on_a_pod(place):
    """On one host, where there is no pod."""
    plan, (program, words) = section("Sweep a grid on a pod")
    assert plan[0] == "plan" and "--distributed" in words
    ran(place, program, [*(word for word in words if word != "--distributed"), "--limit=2"])
