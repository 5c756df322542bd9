import csv
import json

import pytest

from tests.experiments.test_estimate import run

QUICK = ["--limit=40", "--n=60", "--n_fit=5,12", "--sizes=10,40", "--repeats=6", "--interval_repeats=2"]


def evaluate(*flags, cwd):
    return run(*QUICK, *flags, cwd=cwd, program="evaluate")


@pytest.mark.slow
def test_a_simulated_world_with_both_labels(tmp_path):
    methods = "naive,lpe,importance,count at 0.4,count at 0.5"
    flags = ["--simulate=stages", f"--methods={methods}", "--labels=naive,truth", "--drift=0,3", "--out=there/it"]
    done = evaluate(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "there" / "it"
    with open(out / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (11 + 2 + 3 * 2)
    by = {tuple(row[key] for key in ("drift", "labels", "method", "budget")): row for row in rows}
    assert len(by) == len(rows)
    lpe, count = by["0", "naive", "lpe", "12"], by["0", "naive", "count at 0.5", "40"]
    assert float(lpe["coverage"]) <= 1 and float(lpe["factor_low"]) <= float(lpe["factor_high"])
    assert count["rmse"] == "" and float(count["rollouts"]) == 40
    # Drift changes weights, and nothing that is counted.
    assert lpe["auroc"] == by["3", "naive", "lpe", "12"]["auroc"]
    one, other = (by[drift, "truth", "importance", "40"] for drift in ("0", "3"))
    assert float(one["rmse"]) < float(other["rmse"])
    record = json.loads((out / "evaluation.json").read_text())
    assert record["settings"]["repeats"] == 6 and set(record["seconds"]) == {"stages, drift 0", "stages, drift 3"}
    for name in ("figure1-drift0", "figure1-drift3-truth", "figure2-drift0"):
        assert all((out / f"{name}.{kind}").stat().st_size > 1000 for kind in ("svg", "png"))
    assert "Best of the counts" in done.stdout and "by the truth labels" in done.stdout


@pytest.mark.parametrize(
    "flags, part",
    [
        (["--out=x"], "nothing to evaluate on"),
        (["--simulate=stages"], "--out is missing"),
        (["--simulate=steep", "--out=x"], "--simulate=steep is not one of stages"),
        (["--simulate=stages", "--out=x", "--methods=lpe,magic"], "'magic'"),
        (["--simulate=stages", "--out=x", "--labels=mine"], "--labels=mine"),
        (["--simulate=stages", "--out=x", "--drift=-1"], "--drift=-1"),
        (["--simulate=stages", "--out=x", "--n_fit=3,many"], "--n_fit=3,many must be whole numbers"),
        (["--simulate=stages", "--out=x", "--sizes=500", "--methods=importance"], "lower its budgets"),
        (["--simulate=stages", "--out=x", "--limit=2"], "use more prompts"),
        (["--bank=nowhere", "--out=x"], "nowhere holds no bank"),
    ],
)
def test_wrong_input_is_one_clear_line(flags, part, tmp_path):
    done = evaluate(*flags, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and part in lines[0], done.stderr
