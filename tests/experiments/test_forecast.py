"""The forecasting program as a user runs it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lpe_jax.estimation.forecast import Rates, forecast

ROOT = Path(__file__).parents[2]


def run(*flags):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.forecast", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def write(path, rates, **columns):
    """An estimates.csv of these rates, each with an interval of half a decade on either side."""
    columns = {"rate": rates, "low": rates / 3, "high": np.minimum(rates * 3, 1), **columns}
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt_id", "method", *columns])
        for i, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([f"p{i}", "lpe", *row])
    return path


@pytest.fixture(scope="module")
def rates():
    return 10 ** np.minimum(np.random.default_rng(0).normal(-4, 1, 40), -0.05)


def test_a_forecast_is_printed_written_and_the_librarys(rates, tmp_path):
    low = np.where(np.arange(40) < 5, 0.0, rates / 3)
    rate = np.where(np.arange(40) < 2, 0.0, rates)
    path = write(tmp_path / "e.csv", rate, low=low, high=np.minimum(rates * 3, 1))
    done = run(f"--estimates={path}", "--queries=1e4,1e9", "--draws=10", f"--out={tmp_path / 'f.csv'}")
    assert done.returncode == 0, done.stderr
    assert "40 prompts, 5 of them bounded from above only" in done.stdout
    assert "same distribution" in done.stdout or "the distribution that these prompts" in done.stdout
    with open(tmp_path / "f.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 + 2 + 3)
    with np.errstate(divide="ignore"):
        table = Rates(*(np.log10(x) for x in (rate, low, np.minimum(rates * 3, 1))))
    known = forecast(table, [1e4, 1e9], [1e-3, 1e-2, 0.5], draws=10)
    said = [float(row["value"]) for row in rows if row["method"] == "gumbel" and row["quantity"] == "worst"]
    np.testing.assert_allclose(said, 10**known.worst, rtol=1e-4)


def test_backtest_of_the_embedded_world():
    done = run("--backtest", "--repeats=4", "--draws=4")
    assert done.returncode == 0, done.stderr
    assert "embedded world, noise 0.3 in log10: 4 splits, 100 prompts for 100" in done.stdout
    assert done.stdout.count("rate noise") == 4 and "another data set" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "RUN is missing"),
        (["--estimates=/nowhere/e.csv"], "cannot be read"),
        (["--estimates=FILE", "--queries=0.5"], "--queries=0.5 must be numbers between 1"),
        (["--estimates=FILE", "--queries=many"], "--queries=many must be numbers"),
        (["--estimates=FILE", "--thresholds=2"], "--thresholds=2"),
        (["--estimates=FILE", "--estimator=naive"], "no estimates by naive"),
        (["--estimates=FILE", "--backtest"], "no column 'truth'"),
        (["--estimates=SHORT", "--top=10"], "19 prompts are too few for top = 10"),
        (["--estimates=ABOVE"], "must lie between 0 and 1"),
        (["--estimates=TEXT"], "must be numbers"),
        (["--backtest", "--evaluated=200"], "less than 200"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, words, rates, tmp_path):
    files = {
        "FILE": write(tmp_path / "file.csv", rates),
        "SHORT": write(tmp_path / "short.csv", rates[:19]),
        "ABOVE": write(tmp_path / "above.csv", rates + 1),
        "TEXT": write(tmp_path / "text.csv", rates, low=["low"] * 40),
    }
    for name, path in files.items():
        flags = [flag.replace(f"={name}", f"={path}") for flag in flags]
    done = run(*flags)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr and done.stderr.count("\n") == 1
