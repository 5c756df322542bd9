"""Several processes that share a run: what each takes, what they write, and what becomes of it when one dies."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments import estimate, launch, vocabulary
from lpe_jax import processes
from lpe_jax.errors import RunError, UserError
from lpe_jax.processes import ALONE, Processes
from lpe_jax.records.bank import read_bank
from lpe_jax.records.rollouts import RolloutStore
from tests.helpers import save_hf_pair

ROOT = Path(__file__).parents[1]
JUDGE = """
import os, time

def even(prompt, response):
    if "JUDGE_SLEEPS" in os.environ:
        time.sleep(float(os.environ["JUDGE_SLEEPS"]))
    return len(response.encode()) % 2 == 0
"""
# A program, with less patience than users need.
PROGRAM = """
import sys
from lpe_jax import processes
from lpe_jax.records import rollouts
processes.HEARTBEAT_SECONDS, processes._PATIENCE_SECONDS, rollouts._SHARD_ROWS = 20, 3.0, 16
from experiments import {name}, launch
launch.run({name}.main)
"""
LPE = ["--method=lpe", "--n_search=4", "--n_fit=6", "--alphas=0.9,0.5,0.1", "--naive_check=0", "--nofigures"]
NAIVE = ["--method=naive", "--n_naive=40", "--nofigures"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with two checkpoints, three prompts and a judge."""
    folder = tmp_path_factory.mktemp("place")
    save_hf_pair(folder, num_hidden_layers=1)
    (folder / "prompts.txt").write_text("fold a boat\nwhistle at a gate\nhum the third verse\n")
    (folder / "even_bytes.py").write_text(JUDGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def given(place, *flags):
    """The flags of a run on the two checkpoints."""
    models = [f"--{name}={place / name}" for name in ("original", "variant")]
    shared = [f"--prompts={place / 'prompts.txt'}", "--judge=even_bytes:even", "--max_new_tokens=8", "--batch_size=16"]
    return [*models, *shared, *flags]


@pytest.fixture
def one(place, monkeypatch, capsys):
    """One process alone, this one, as a program of its own takes long to start; it is to end well."""

    def call(*flags, **env):
        capsys.readouterr()
        with monkeypatch.context() as patch, flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
            patch.chdir(place)
            patch.setattr(sys, "argv", ["program", *given(place, *flags)])
            for name, value in env.items():
                patch.setenv(name, value)
            launch.run(estimate.main)
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out

    return call


def start(place, *flags, program="estimate", cwd=None, **env):
    """A program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(name=program), *given(place, *flags)],
        cwd=cwd or place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{place}"} | env,
    )


def start_two(place, *flags, folders=(None, None), second=(), **kwargs):
    """Two processes that share a run."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    where = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    more = ((), second)
    return [start(place, *flags, *more[k], *where, f"--process_id={k}", cwd=folders[k], **kwargs) for k in range(2)]


def ends(*started, seconds=400):
    """Exit status, stdout and stderr of each."""
    said = [process.communicate(timeout=seconds) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def rollouts(out):
    """Everything that a folder's rollouts are, by what identifies them."""
    return {
        # As text, since path scores of the original alone are NaN, which equals nothing.
        (r.prompt_id, r.alpha, r.index): (r.tokens.tolist(), r.text, r.logp_path, str(r.path_score))
        for r in RolloutStore(out / "rollouts").read()
    }


def table(out):
    with open(out / "estimates.csv", newline="") as file:
        return list(csv.reader(file))


def differing(one, other):
    """Cells of two tables that are not the same, with their row."""
    assert len(one) == len(other)
    pairs = ((a, *cells) for a, b in zip(one, other, strict=True) for cells in zip(a, b, strict=True))
    return [(row[0], mine, theirs) for row, mine, theirs in pairs if mine != theirs]


def test_every_prompt_is_in_one_share():
    shares = [Processes(k, 3).share(range(7)) for k in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert Processes(4, 5).share("ab") == [] and ALONE.share("ab") == ["a", "b"]


def test_one_process_meets_itself():
    assert ALONE.everyone("x", {"a": (1, 2)}) == [{"a": [1, 2]}]
    assert ALONE.prefix == "" and ALONE.gone({0: None}) == []


def test_settings_must_agree(monkeypatch):
    """Both processes say so, and name what differs."""
    said = [{"seed": 0, "dtype": "float32"}, {"seed": 1, "dtype": "float32"}]
    monkeypatch.setattr(Processes, "meet", lambda self, about, word=None: dict(enumerate(said)))
    with pytest.raises(RunError, match=r"processes 0 and 1 differ in seed \(process 0 0, process 1 1\); give all"):
        Processes(0, 2).open(Path("nowhere"), said[0], {}, {}, "")
    monkeypatch.setattr(Processes, "meet", lambda self, about, word=None: {1: word})
    with pytest.raises(RunError, match="process 0 of 2 ended before the run began"):
        Processes(1, 2).open(Path("nowhere"), said[0], {}, {}, "")
    assert not Path("nowhere").exists()


def test_two_processes_draw_what_one_does(place, one):
    """Rollouts to the last bit of every sum, and the table; then one process finds nothing left to draw in it."""
    first, second = ends(*start_two(place, *LPE, "--out=two"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    one(*LPE, "--out=alone")
    assert rollouts(place / "two") == rollouts(place / "alone")
    assert differing(table(place / "two"), table(place / "alone")) == []
    own = [RolloutStore(place / "two" / "rollouts").rows(k) for k in range(2)]
    assert min(own) > 0 and sum(own) == len(rollouts(place / "alone")), "nothing is drawn twice"
    assert "3 prompts shared by 2 processes" in first[1] and first[1].count("process 0: [2/2]") == 1
    assert second[1].count("process 1: [1/1]") == 1 and "interval]" not in second[1]
    names = {path.name for path in (place / "two").iterdir() if not path.name.startswith(".")}
    assert names - {path.name for path in (place / "alone").iterdir()} == {"verdicts-1.sqlite", "metrics-1.jsonl"}
    # As if it had not been finished.
    (place / "two" / "estimates.csv").unlink()
    before = {path: path.read_bytes() for path in (place / "two" / "rollouts").iterdir()}
    assert "going on from" in one(*LPE, "--out=two", JUDGE_SLEEPS="nothing is judged again")
    assert {path: path.read_bytes() for path in (place / "two" / "rollouts").iterdir()} == before
    assert table(place / "two") == table(place / "alone")


@pytest.mark.slow
def test_the_path_method_estimates_all_prompts_together(place, one):
    flags = ["--method=path", "--budget=40", "--naive_check=10", "--nofigures"]
    first, second = ends(*start_two(place, *flags, "--out=path-two"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    one(*flags, "--out=path-alone")
    assert rollouts(place / "path-two") == rollouts(place / "path-alone")
    assert table(place / "path-two") == table(place / "path-alone")


@pytest.mark.slow
def test_two_processes_fill_one_bank(place):
    flags = ["--alphas=1,0.5,0", "--n=8", "--n_naive=4"]
    first, second = ends(*start_two(place, *flags, "--out=bank-two", program="sample"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    ((code, _, error),) = ends(start(place, *flags, "--out=bank-alone", program="sample"))
    assert code == 0, error
    a, b = read_bank(place / "bank-two"), read_bank(place / "bank-alone")
    assert a.prompt_ids == b.prompt_ids and (a.logp == b.logp).all() and (a.complied == b.complied).all()


@pytest.mark.slow
def test_processes_with_other_settings_are_told_so(place):
    """Both end, at once, and nothing is written."""
    for code, _, error in ends(*start_two(place, *NAIVE, "--out=differ", second=["--seed=1"])):
        assert code == 2 and "differ in seed (process 0 0, process 1 1)" in error and "Traceback" not in error
    assert not (place / "differ").exists()


@pytest.mark.slow
def test_folders_that_are_not_shared_can_be_put_together(place, one):
    """Each process writes under its own working folder; the two copied into one are a run that needs no drawing."""
    folders = place / "machine0", place / "machine1"
    for folder in folders:
        folder.mkdir()
    first, second = ends(*start_two(place, *NAIVE, "--out=run", folders=folders))
    sentence = "--out=run is not one folder that all processes see: process 0's lacks what process 1 writes"
    assert first[0] == second[0] == 2 and "Traceback" not in first[2] + second[2]
    assert sentence in first[1], "said before anything is drawn"
    assert sentence in first[2] and "process 0 ended before the run was finished" in second[2]
    shutil.copytree(folders[0] / "run", place / "merged")
    shutil.copytree(folders[1] / "run", place / "merged", dirs_exist_ok=True)
    assert len(rollouts(place / "merged")) == 120
    one(*NAIVE, "--out=merged", JUDGE_SLEEPS="nothing is judged again")
    one(*NAIVE, "--out=naive-alone")
    assert table(place / "merged") == table(place / "naive-alone")
    assert rollouts(place / "merged") == rollouts(place / "naive-alone")


def killed(place, out, victim):
    """Two processes, of which one is killed once it has something on disk; how both ended."""
    both = start_two(place, *NAIVE, f"--out={out}", JUDGE_SLEEPS="0.2")
    manifest = place / out / "rollouts" / ("manifest-1.jsonl" if victim else "manifest.jsonl")
    until = time.monotonic() + 200
    while not manifest.exists() and time.monotonic() < until:
        time.sleep(0.05)
    both[victim].send_signal(signal.SIGKILL)
    first, second = ends(*both)
    assert (first, second)[victim][0] == -signal.SIGKILL
    return first, second


@pytest.mark.fault
def test_when_one_dies_the_others_draw_their_shares(place, one):
    first, _ = killed(place, "killed", victim=1)
    assert first[0] == 2 and "Traceback" not in first[2]
    assert "process 1 of 2 ended before the share was drawn, and 1 of 3 prompts are not complete" in first[2]
    store = RolloutStore(place / "killed" / "rollouts")
    assert store.rows(0) == 80 and 0 < store.rows(1) < 40
    assert not (place / "killed" / "estimates.csv").exists()
    again = ends(*start_two(place, *NAIVE, "--out=killed"))
    assert again[0][0] == again[1][0] == 0, again[0][2] + again[1][2]
    one(*NAIVE, "--out=whole")
    store = RolloutStore(place / "killed" / "rollouts")
    assert (store.rows(0), store.rows(1)) == (80, 40), "nothing is drawn twice"
    assert rollouts(place / "killed") == rollouts(place / "whole")
    assert table(place / "killed") == table(place / "whole")


@pytest.mark.fault
def test_when_the_first_dies_what_is_on_disk_stays(place, one):
    _, second = killed(place, "headless", victim=0)
    assert second[0] != 0
    kept = rollouts(place / "headless")
    assert kept
    one(*NAIVE, "--out=headless")
    one(*NAIVE, "--out=whole-too")
    assert len(rollouts(place / "headless")) == 120 and kept.items() <= rollouts(place / "headless").items()
    assert table(place / "headless") == table(place / "whole-too")


@pytest.mark.fault
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_told_to_end_all_do(place, one, victim):
    """With the status that says that the same command goes on; and it does, to the same table."""
    out = f"told-{victim}"
    both = start_two(place, *NAIVE, f"--out={out}", JUDGE_SLEEPS="0.2")
    until = time.monotonic() + 200
    while not list((place / out / "rollouts").glob("*.parquet")) and time.monotonic() < until:
        time.sleep(0.05)
    both[victim].send_signal(signal.SIGTERM)
    for code, _, error in ends(*both, seconds=60):
        assert code == 75 and "stopped by SIGTERM" in error and "Traceback" not in error
    kept = rollouts(place / out)
    assert kept and len(kept) < 120
    again = ends(*start_two(place, *NAIVE, f"--out={out}"))
    assert again[0][0] == again[1][0] == 0, again[0][2] + again[1][2]
    one(*NAIVE, f"--out=untold-{victim}")
    assert rollouts(place / out) == rollouts(place / f"untold-{victim}")
    assert table(place / out) == table(place / f"untold-{victim}")


@pytest.mark.fault
def test_a_first_process_that_fails_lets_the_others_end_their_shares(place, one):
    """Its folder belongs to another run: the others hear of it before they have drawn anything."""
    one(*NAIVE, "--out=other")
    first, second = ends(*start_two(place, *NAIVE, "--seed=3", "--out=other"))
    assert first[0] == 2 and "seed (there 0, now 3)" in first[2]
    assert second[0] == 2 and "process 0 of 2 ended before the run began" in second[2]
    assert not list((place / "other").glob("*-1*"))


def test_where_nobody_is_and_where_somebody_else_is(monkeypatch):
    monkeypatch.setattr(processes, "START_SECONDS", 0)
    with socket.socket() as taken:
        taken.bind(("", 0))
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--coordinator={address}: nobody answers there .*refused"):
            processes.join(address, 2, 1)
        taken.listen()
        with pytest.raises(UserError, match=f"--coordinator={address}: port .* cannot be had"):
            processes.join(address, 2, 0)
    assert processes.join(address, 1, 0) == processes.join(None, None, None) == ALONE


WRONG = {
    "alone": (["--process_id=1"], "--coordinator is missing; it goes with --process_id"),
    "both": (["--distributed", "--num_processes=2"], "--distributed finds what --num_processes says"),
    "too high": (
        ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
        "--process_id=2 is not below --num_processes=2",
    ),
    "no port": (["--coordinator=here", "--num_processes=2", "--process_id=0"], "--coordinator=here must be HOST:PORT"),
}


@pytest.mark.parametrize("case", WRONG)
def test_flags_that_do_not_fit(case):
    flags, message = WRONG[case]
    values = {name: value for name, _, value in (flag.removeprefix("--").partition("=") for flag in flags)}
    with flagsaver.flagsaver():
        if not vocabulary.FLAGS.is_parsed():
            vocabulary.FLAGS(["test"])
        for name, value in values.items():
            vocabulary.FLAGS[name].parse(value or "true")
        with pytest.raises(UserError, match=message):
            vocabulary.check()
