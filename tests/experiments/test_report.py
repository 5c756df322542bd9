"""The report that every run leaves, and that the program makes again from what is on disk."""

import csv
import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments import estimate
from lpe_jax import report
from lpe_jax.errors import RunError, UserError
from lpe_jax.records.check import Check
from lpe_jax.records.run import read_run, write_record
from lpe_jax.reporting.report import Options
from tests.helpers import save_hf_pair
from tests.programs import run_in

ROOT = Path(__file__).parents[2]
JUDGES = """
def short(prompt, response):
    # Without a verdict on some, and with odd words for it.
    if len(response.encode()) == 7:
        raise ValueError("<b>seven</b>")
    return len(response.encode()) < 12

def longish(prompt, response):
    return len(response.encode()) < 14
"""
OWN = {
    "lpe": ["--method=lpe", "--n_search=4", "--n_fit=6", "--alphas=0.9,0.5,0.1", "--naive_check=10"],
    "naive": ["--method=naive", "--n_naive=60", "--judge=screen:lengths:longish,confirm:lengths:short,audit=0.3"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with a run of each kind in it."""
    folder = tmp_path_factory.mktemp("place")
    save_hf_pair(folder, num_hidden_layers=1)
    (folder / "prompts.txt").write_text("fold a <b>boat</b>\nwhistle at a gate\n")
    (folder / "lengths.py").write_text(JUDGES)
    models = [f"--{name}={folder / name}" for name in ("original", "variant")]
    given = [*models, f"--prompts={folder / 'prompts.txt'}", "--judge=lengths:short", "--max_new_tokens=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name, own in OWN.items():
            flags = [*given, *own, f"--out={name}", "--batch_size=16", "--figure_formats=pdf", "--report_rollouts=2"]
            assert run_in(folder, estimate.main, *flags) == 0
        # What made the runs is not there any more.
        for gone in ("original", "variant", "lengths.py", "prompts.txt"):
            path = folder / gone
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield folder


def program(*flags, cwd):
    """The program as from a shell."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "experiments.report", *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


def make(folders, out, **options):
    """The same in this process, which has compiled what it takes."""
    return report.run(folders, out=out, options=Options(**options)).read_text(encoding="utf-8")


def files(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", OWN)
def test_a_run_leaves_a_report_and_it_can_be_made_again(place, tmp_path, name):
    folder = place / name
    page = folder / "report.html"
    assert page.stat().st_mode & 0o777 == 0o600
    before = files(folder)
    assert make([folder], tmp_path / "again.html", rollouts=2) == page.read_text(encoding="utf-8")
    assert files(folder) == before
    assert Check(folder).findings == []


@pytest.mark.parametrize("name", OWN)
def test_its_numbers_are_those_of_the_table(place, name):
    page = (place / name / "report.html").read_text()
    with open(place / name / "estimates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    told = re.findall(r'data-rate="([^"]*)" data-low="([^"]*)" data-high="([^"]*)"', page)
    assert told == [(row["rate"], row["low"], row["high"]) for row in rows]
    for row in rows:
        assert row["note"] in html.unescape(page)
        assert f"{int(row['complied']):,} complied, {int(row['refused']):,} refused, {row['unscored']} unscored" in page
    assert "other numbers" not in page and "not finished" not in page


def test_it_says_what_the_judges_did(place):
    page = (place / "naive" / "report.html").read_text()
    assert "agreement beyond chance" in page and "screen:lengths:longish" in page
    # The ledger has replies alone; why a judge failed is known from what the run wrote down.
    assert "<b>seven" not in page and "&lt;b&gt;seven&lt;/b&gt;" in page
    assert "fold a &lt;b&gt;boat" in page and "fold a <b>" not in page


def test_texts_can_be_left_out(place, tmp_path):
    page = make([place / "lpe"], tmp_path / "bare.html", rollouts=0)
    assert "<pre" not in page and "boat" not in page
    assert "<pre" in (place / "lpe" / "report.html").read_text()


def test_several_runs_in_one_page(place, tmp_path):
    done = program("lpe", "naive", cwd=place)
    assert done.returncode == 2 and "--out is missing" in done.stderr and done.stderr.count("\n") == 1
    page = make([place / "lpe", place / "naive"], tmp_path / "both.html", risk=1e-3)
    assert "2 runs compared" in page and 'value="1e-3"' in page


@pytest.mark.slow
def test_the_program(place, tmp_path):
    done = program("naive", f"--out={tmp_path / 'out.html'}", "--risk=1e-3", "--rollouts=2", cwd=place)
    assert done.returncode == 0 and "out.html" in done.stdout and not done.stderr
    assert (tmp_path / "out.html").read_text() == make([place / "naive"], tmp_path / "in.html", risk=1e-3, rollouts=2)


def test_what_cannot_be_read_is_named(place, tmp_path):
    with pytest.raises(RunError, match="is no run folder"):
        make([tmp_path / "nowhere"], tmp_path / "out.html")
    damaged = tmp_path / "damaged"
    shutil.copytree(place / "naive", damaged)
    ledger = bytearray((damaged / "verdicts.sqlite").read_bytes())
    at = ledger.rindex(b"refused")
    ledger[at : at + 7] = b"refuses"
    (damaged / "verdicts.sqlite").write_bytes(ledger)
    with pytest.raises(RunError, match="verdicts.sqlite is damaged"):
        make([damaged], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_a_table_that_says_otherwise_is_seen(place, tmp_path):
    folder = tmp_path / "lpe"
    shutil.copytree(place / "lpe", folder)
    table = (folder / "estimates.csv").read_text().splitlines()
    cells = table[1].split(",")
    cells[1] = "0.123"
    (folder / "estimates.csv").write_text("\n".join([table[0], ",".join(cells), *table[2:]]) + "\n")
    with pytest.raises(RunError, match="its sha256 is not the one in run.json"):
        make([folder], tmp_path / "out.html")
    # As another version of this package may have made it.
    record = read_run(folder)
    record["made"]["estimates.csv"] = hashlib.sha256((folder / "estimates.csv").read_bytes()).hexdigest()
    write_record(folder, record)
    assert "in the run's own estimates.csv: 1 of 2" in " ".join(make([folder], tmp_path / "out.html").split())


def test_figures_are_written_as_asked(place):
    assert {path.suffix for path in (place / "lpe" / "figures").iterdir()} == {".pdf"}
    with (
        flagsaver.flagsaver(figure_formats=["png", "gif"]),
        pytest.raises(UserError, match="must be some of svg, png, pdf"),
    ):
        from experiments import outputs

        outputs.asked_fields()
