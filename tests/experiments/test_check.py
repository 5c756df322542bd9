"""A run that was damaged, repaired and continued is the run that nothing happened to; and nobody else can read it."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import sys

import pytest
from absl.testing import flagsaver

from experiments import check, estimate, judge, launch
from lpe_jax.records import rollouts
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import read_run, write_record
from tests.helpers import save_hf_pair
from tests.programs import told_by
from tests.records import scenario
from tests.records.scenario import plain

JUDGE = """
asked = []

def even_count(prompt, response):
    asked.append(response)
    return len(response.encode()) % 2 == 0
"""
LPE = ["--method=lpe", "--n_search=4", "--n_fit=6", "--alphas=0.9,0.5,0.1", "--naive_check=10"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with two checkpoints, three prompts and a judge."""
    folder = tmp_path_factory.mktemp("place")
    save_hf_pair(folder, num_hidden_layers=1)
    (folder / "prompts.txt").write_text("fold a boat\nwhistle at a gate\nhum the third verse\n")
    (folder / "counted.py").write_text(JUDGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def here(place, capsys):
    """A program in this process; its exit status, output and errors."""

    def call(main, *flags):
        before = os.umask(0o022)
        try:
            code, out, err = told_by(capsys, place, main, *flags)
        finally:
            os.umask(before)
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.fixture
def drawn(place, here, monkeypatch):
    """Runs the job into a folder, or goes on with it; the folder."""
    monkeypatch.setattr(rollouts, "_SHARD_ROWS", 16)
    models = [f"--{name}={place / name}" for name in ("original", "variant")]
    given = [*models, f"--prompts={place / 'prompts.txt'}", "--judge=counted:even_count", "--max_new_tokens=8"]
    given += [*LPE, "--batch_size=16"]

    def call(out, *more):
        code, printed, err = here(estimate.main, *given, f"--out={out}", *more)
        assert code == 0, err
        return place / out, printed

    call.given = given
    return call


def content(run):
    """Rollouts, and the tables."""
    found = sorted(map(plain, RolloutStore(run / "rollouts").read()))
    with open(run / "estimates.csv", newline="") as file:
        return found, list(csv.reader(file)), (run / "estimates.txt").read_text()


def lost_shard(run):
    (run / "rollouts" / "000002.parquet").unlink()


def flipped_shard(run):
    path = run / "rollouts" / "000001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lost_line(run):
    path = run / "rollouts" / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))


def lost_verdicts(run):
    with contextlib.closing(sqlite3.connect(run / "verdicts.sqlite")) as db, db:
        db.execute("delete from verdicts where response < '8'")


def changed_verdicts(run):
    with contextlib.closing(sqlite3.connect(run / "verdicts.sqlite")) as db, db:
        db.execute("update verdicts set outcome = 'complied'")


def lost_ledger(run):
    (run / "verdicts.sqlite").unlink()


def other_files(run):
    for name in ("run.json", "prompts.jsonl"):
        (run / name).write_text((run / name).read_text().replace("e", "a", 1))
    (run / "estimates.csv").unlink()


DAMAGE = {
    "one shard is gone": ([lost_shard], ["rollouts/000002.parquet is named in manifest.jsonl but does not exist"]),
    "everything at once": (
        [flipped_shard, lost_line, changed_verdicts, other_files],
        [
            "rollouts/000001.parquet is named in no manifest",
            "rollouts/manifest.jsonl line 2 is damaged, or one before it is missing",
            "verdicts.sqlite is damaged: a row of verdicts is not what was written",
            "run.json is damaged",
            "prompts.jsonl is damaged",
            "estimates.csv is missing",
        ],
    ),
    "verdicts are gone": ([lost_verdicts], ["verdicts.sqlite is damaged: rows are missing, or there are too many"]),
    "the ledger is gone": ([lost_ledger], ["verdicts.sqlite is missing"]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_repaired_and_continued(place, here, drawn, case):
    whole, _ = drawn("whole", "--nofigures")
    run = place / case.replace(" ", "-")
    shutil.copytree(whole, run)
    code, out, _ = here(check.main, str(run))
    there = f"{run}: 3 prompts, {len(RolloutStore(run / 'rollouts'))} rollouts in "
    assert code == 0 and out.startswith(there) and out.endswith(" distinct responses: all is well\n")
    damages, said = DAMAGE[case]
    for damage in damages:
        damage(run)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, _ = here(check.main, str(run))
    assert code == 1 and f"{len(said)} wrong" in out
    for words in said:
        assert f"wrong: {words}" in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files, "nothing is changed"
    (run / "status.json").write_text('{"state": "finished", "rollouts_left": 0}')
    code, out, _ = here(check.main, str(run), "--repair")
    assert code == 0 and "repaired; the command that began the run goes on with it" in out
    assert out.endswith(f"  python -m experiments.estimate --flagfile={run / 'flags.txt'} --out={run}\n")
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    asked = len(sys.modules["counted"].asked)
    _, printed = drawn(run.name, "--nofigures")
    assert ("going on from" in printed) and content(run) == content(whole)
    assert (len(sys.modules["counted"].asked) > asked) == (case != "one shard is gone"), "verdicts that are left stay"
    assert here(check.main, str(run))[0] == 0
    assert "nothing to do" in drawn(run.name, "--nofigures")[1]


def test_verdicts_are_not_paid_for_twice(place, here, drawn):
    """Where they were is missed before a judge is asked anything."""
    whole, _ = drawn("whole", "--nofigures")
    shutil.copytree(whole, place / "unpaid")
    lost_ledger(place / "unpaid")
    asked = len(sys.modules["counted"].asked)
    code, _, err = here(judge.main, f"--run={place / 'unpaid'}")
    assert code == 2 and "verdicts.sqlite is missing, and there was one" in err
    code, _, err = here(estimate.main, *drawn.given, "--naive_check=12", "--out=unpaid", "--nofigures")
    assert code == 2 and "verdicts.sqlite is missing, and there was one" in err
    assert len(sys.modules["counted"].asked) == asked


TABLES = {
    "another number": ("estimates.csv", lambda data: data.replace(b",16,", b",96,", 1) + b"\n"),
    "no text": ("estimates.txt", lambda data: b"\xff" + data[1:]),
    "a line less": ("estimates.txt", lambda data: data.partition(b"\n")[2]),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_damaged_table_is_no_result(place, here, drawn, case):
    """The run makes it again, and nothing else is made of it."""
    whole, _ = drawn("whole", "--nofigures")
    run, (name, damaged) = place / case.replace(" ", "-"), TABLES[case]
    shutil.copytree(whole, run)
    (run / name).write_bytes(damaged((run / name).read_bytes()))
    if name == "estimates.csv":
        code, _, err = here(judge.main, f"--run={run}", "--judge=counted:even_count")
        assert code == 2 and "estimates.csv is missing or damaged: its sha256 is not the one in run.json" in err
    _, printed = drawn(run.name, "--nofigures")
    assert "nothing to do" not in printed and content(run) == content(whole)
    assert "nothing to do" in drawn(run.name, "--nofigures")[1]


def test_a_table_is_printed_and_not_obeyed(place, here, drawn):
    """One of a folder that somebody else made, whose record has the right sha256 of it."""
    run, _ = drawn("obeyed", "--nofigures")
    (run / "estimates.txt").write_bytes(b"rates\n\x1b[2J\xff\n")
    record = read_run(run)
    record["made"]["estimates.txt"] = hashlib.sha256((run / "estimates.txt").read_bytes()).hexdigest()
    write_record(run, record)
    _, printed = drawn("obeyed", "--nofigures")
    assert printed.startswith("rates\n\\x1b[2J\ufffd\n\nobeyed is finished")


def test_a_run_is_its_owners_alone(place, drawn, monkeypatch):
    """Whatever the umask: without the program's own, the records'; and without those, the program's own."""
    umask = os.umask
    monkeypatch.setattr(launch.os, "umask", lambda mask: umask(0))
    run, _ = drawn("private")
    kinds = {stat.S_IMODE(path.stat().st_mode): path.is_dir() for path in [run, *run.rglob("*")]}
    assert kinds == {0o700: True, 0o600: False}
    assert {"figures", "rollouts"} <= {path.name for path in run.iterdir()}


def test_programs_write_for_their_user_alone(tmp_path, monkeypatch, capsys):
    before = os.umask(0)
    try:
        monkeypatch.setattr(sys, "argv", ["program"])
        with flagsaver.flagsaver(), pytest.raises(SystemExit):
            launch.run(lambda: (tmp_path / "file").touch())
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.fixture
def two_runs(tmp_path):
    """A folder with rollouts of two runs, which nothing mends."""
    scenario.draw(tmp_path / "run", rows=8, finish=False)
    other = RolloutStore(tmp_path / "run" / "rollouts", 1)
    other.append([dataclasses.replace(scenario.rollout(3), text="another")])
    other.flush()
    return tmp_path / "run"


def test_what_cannot_be_repaired_is_not_called_repaired(here, two_runs):
    code, out, _ = here(check.main, str(two_runs), "--repair")
    assert code == 1 and "it is of two runs" in out
    assert "\nrepaired" not in out and "nothing of it can be mended" in out
    (two_runs / ".shared-0").touch()
    code, out, _ = here(check.main, str(two_runs), "--repair")
    assert code == 1 and "\nrepaired, and 1 cannot be\n" in out


def test_names_of_files_are_printed_and_not_obeyed(here, two_runs):
    (two_runs / ".shared-\x1b[2J").touch()
    _, out, _ = here(check.main, str(two_runs))
    assert "note: .shared-\\x1b[2J is what a crash left" in out and "\x1b" not in out


@pytest.mark.parametrize("odd", ["--bogus", "--repair=perhaps"])
def test_a_wrong_flag_is_no_finding(here, two_runs, odd):
    code, _, err = here(check.main, str(two_runs), odd)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


WRONG = {
    "none": ([], "RUN is missing"),
    "two": (["a", "b"], "unexpected argument 'b'"),
    "nowhere": (["nowhere"], "nowhere is no run folder"),
    "a name that is too long": (["x" * 300], "File name too long"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_checked(here, case):
    flags, message = WRONG[case]
    code, _, err = here(check.main, *flags)
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1
