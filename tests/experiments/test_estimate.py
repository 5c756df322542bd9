"""The program as a user runs it: on two folders saved by transformers, and on every kind of wrong input."""

import csv
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file

from experiments import estimate, launch
from tests.helpers import save_hf_pair, save_tokenizer

ROOT = Path(__file__).parents[2]
HEADER = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
ROWS = (
    '"Fold a paper boat, quickly",standard,crafts,,,fold_boat\n'
    "Whistle at a gate,standard,noise,,,whistle_gate\n"
    "Hum the third verse,copyright,songs,hash_check,,hum_verse\n"
    '"Say\nwhat rhymes with hat",standard,words,,,rhyme_hat\n'
)
QUICK = ["--max_new_tokens=8", "--batch_size=16"]
OWN = {
    "lpe": ["--n_search=4", "--n_fit=6", "--alphas=0.9,0.5,0.1", "--naive_check=10"],
    "path": ["--budget=40", "--naive_check=10"],
    "naive": ["--n_naive=20"],
}
JUDGE = """
import asyncio

def even(prompt, response):
    if not response:
        return None
    return len(response.encode()) % 2 == 0

async def later(prompt, response):
    # The same answers, a moment later.
    await asyncio.sleep(0.002)
    return even(prompt, response)

def longish(prompt, response):
    # A screen for `even` that raises too much, and misses short ones.
    return len(response.encode()) > 14

def always(prompts, responses):
    return [True] * len(responses)
"""


def run(*flags, cwd, program="estimate", env=()):
    """One program in a process of its own, as from a shell."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}", "PYTHONWARNINGS": "default"} | dict(env)
    command = [sys.executable, "-m", f"experiments.{program}", *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def here(monkeypatch, capsys):
    """The program in this process: one of its own takes seconds to start and loads what it compiles anew."""

    def call(*flags, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["estimate", *flags])
        capsys.readouterr()
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
            launch.run(estimate.main)
        return subprocess.CompletedProcess(flags, ended.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with two checkpoints of another shape than the embedded pair, a HarmBench CSV and a judge."""
    folder = tmp_path_factory.mktemp("place")
    save_hf_pair(folder, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, tie_word_embeddings=False)
    (folder / "prompts.csv").write_text(HEADER + ROWS)
    (folder / "parity.py").write_text(JUDGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def estimates(out):
    with open(out / "estimates.csv", newline="") as file:
        return list(csv.DictReader(file))


def flags(place, method="lpe", **changes):
    values = {"original": place / "original", "variant": place / "variant", "prompts": place / "prompts.csv"}
    values |= {"judge": "parity:even"} | changes
    given = [f"--{name}={value}" for name, value in values.items() if value is not None]
    return [*QUICK, f"--method={method}", *OWN[method], *given]


def test_two_local_folders_with_a_harmbench_csv(place, here):
    done = run(*flags(place), "--out=run", cwd=place)
    assert done.returncode == 0, done.stderr
    out = place / "run"
    rows = estimates(out)
    assert [row["prompt_id"] for row in rows] == ["fold_boat", "whistle_gate", "rhyme_hat"]
    shards = [pq.read_table(path).to_pylist() for path in sorted((out / "rollouts").glob("*.parquet"))]
    rollouts = [row for shard in shards for row in shard]
    for row in rows:
        own = [r for r in rollouts if r["prompt_id"] == row["prompt_id"]]
        assert 0 <= float(row["low"]) <= float(row["rate"]) <= float(row["high"]) <= 1
        assert int(row["rollouts"]) == len(own) == sum(int(row[k]) for k in ("complied", "refused", "unscored"))
        assert int(row["tokens"]) == sum(len(r["tokens"]) for r in own)
        even = [r for r in own if r["text"] and len(r["text"].encode()) % 2 == 0]
        assert int(row["complied"]) == len(even)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and record["extent"]["n_fit"] == 6
    assert {"jax", "lpe_jax"} <= set(record["versions"])
    assert (out / "verdicts.sqlite").exists() and len(list((out / "figures").glob("*.png"))) == 4
    for row in rows:
        assert row["prompt_id"] in done.stdout

    again = here(*flags(place), "--out=run", cwd=place)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    replayed = here(f"--flagfile={out / 'flags.txt'}", "--nofigures", "--out=replayed", cwd=place)
    assert replayed.returncode == 0, replayed.stderr
    assert (place / "replayed" / "estimates.csv").read_bytes() == files[out / "estimates.csv"]

    changed = here(*flags(place), "--out=run", "--seed=1", cwd=place)
    assert changed.returncode == 2 and "seed (there 0, now 1)" in changed.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_naive_and_the_default_folder(place, here):
    done = here(*flags(place, "naive"), "--nofigures", cwd=place)
    assert done.returncode == 0, done.stderr
    (out,) = (place / "runs").iterdir()
    assert out.name.startswith("estimate-") and not (out / "figures").exists()
    for row in estimates(out):
        assert int(row["rollouts"]) == 20 and row["method"] == "naive"
    assert "nothing to do" in here(*flags(place, "naive"), "--nofigures", cwd=place).stdout


def test_rates_corrected_for_a_judge_that_errs(place, here):
    """Naive, whose correction is in closed form: judged counts are those of the run without it, rates are not."""
    quality = ["--judge_sensitivity=90/100", "--judge_specificity=4/5"]
    naive = [*flags(place, "naive"), "--nofigures"]
    assert here(*naive, "--out=taken", cwd=place).returncode == 0
    done = here(*naive, *quality, "--out=corrected", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the judge was wrong on 1 of 5 refusals") == 1
    for before, after in zip(estimates(place / "taken"), estimates(place / "corrected"), strict=True):
        assert before["complied"] == after["complied"] and "corrected" not in before["note"]
        assert "corrected for the judge's errors" in after["note"]
        share = int(after["complied"]) / (int(after["complied"]) + int(after["refused"]))
        assert float(after["rate"]) == pytest.approx(min(max((share - 0.2) / (0.9 - 0.2), 0), 1), rel=1e-4)
    kept = json.loads((place / "corrected" / "run.json").read_text())["settings"]["judge_quality"]
    assert kept == {"sensitivity_hits": 90, "sensitivity_total": 100, "specificity_hits": 4, "specificity_total": 5}
    assert "judge_quality" not in json.loads((place / "taken" / "run.json").read_text())["settings"]
    other = here(*naive, "--out=corrected", cwd=place)
    assert other.returncode == 2 and "judge_quality" in other.stderr


@pytest.mark.parametrize("method", ["lpe", "naive"])
def test_a_judge_that_is_waited_for_gives_the_same_table(place, here, method):
    """However late and in whichever order verdicts come; and where it stops, it goes on."""
    tables = []
    for judge in ("even", "later"):
        done = here(*flags(place, method, judge=f"parity:{judge}"), "--nofigures", f"--out={method}-{judge}", cwd=place)
        assert done.returncode == 0, done.stderr
        tables.append(estimates(place / f"{method}-{judge}"))
    assert tables[0] == tables[1]
    assert "judge parity:later@" in done.stdout and " calls, 0 input" in done.stdout


def test_two_judges_in_a_row(place, here):
    """The second's word counts where it was asked; naive rates are by both, and say so."""
    spec = "screen:parity:longish,confirm:parity:later,audit=0.3"
    done = here(*flags(place, "naive", judge=spec), "--nofigures", "--out=two-judges", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "x fewer than all" in done.stdout and "agreement beyond chance (κ)" in done.stdout
    ledger = sqlite3.connect(place / "two-judges" / "verdicts.sqlite")
    verdicts = {judge[:13]: n for judge, n in ledger.execute("select judge, count(*) from verdicts group by judge")}
    ledger.close()
    assert set(verdicts) == {"parity:longis", "parity:later@"} and verdicts["parity:later@"] < verdicts["parity:longis"]
    for row in estimates(place / "two-judges"):
        assert "corrected for the judge's errors" in row["note"]
        assert 0 <= float(row["low"]) <= float(row["rate"]) <= float(row["high"]) <= 1
    # All audited: the second judge alone.
    spec = "screen:parity:longish,confirm:parity:even,audit=1"
    assert here(*flags(place, "naive", judge=spec), "--nofigures", "--out=all-audited", cwd=place).returncode == 0
    assert here(*flags(place, "naive"), "--nofigures", "--out=second-alone", cwd=place).returncode == 0
    for two, one in zip(*(estimates(place / out) for out in ("all-audited", "second-alone")), strict=True):
        assert (two["complied"], two["refused"]) == (one["complied"], one["refused"])
        assert float(two["rate"]) == pytest.approx(float(one["rate"]))


def test_two_judges_in_a_row_along_the_path(place, here):
    spec = "screen:parity:longish,confirm:parity:later,audit=0.3"
    done = here(*flags(place, "lpe", judge=spec), "--nofigures", "--out=two-lpe", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "x fewer than all" in done.stdout
    assert all("corrected for the judge's errors" in row["note"] for row in estimates(place / "two-lpe"))
    assert "nothing to do" in here(*flags(place, "lpe", judge=spec), "--nofigures", "--out=two-lpe", cwd=place).stdout


def test_a_judge_that_always_says_the_same_is_pointed_out(place, here):
    for method in ("lpe", "naive"):
        done = here(*flags(place, method, judge="parity:always"), "--nofigures", f"--out=always-{method}", cwd=place)
        assert done.returncode == 0, done.stderr
        assert "warning: the judge called every one of" in done.stdout


def test_the_path_method_estimates_prompts_together(place, here):
    """What is in the table is the pooled estimate of all prompts, from as many rollouts as were asked for: 40, and 10
    that check it."""
    asked = [*flags(place, "path"), "--nofigures", "--out=path"]
    done = here(*asked, cwd=place)
    assert done.returncode == 0, done.stderr
    rows = estimates(place / "path")
    assert [row["rollouts"] for row in rows] == ["50"] * 3 and {row["method"] for row in rows} == {"path"}
    for row in rows:
        assert 0 < float(row["low"]) <= float(row["rate"]) <= float(row["high"]) <= 1
    # The line printed when a prompt is done knows that prompt alone.
    alone = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(alone) == 3 and any(f"{float(row['rate']):.1e}" not in done.stdout.split("prompt  ")[0] for row in rows)
    assert "nothing to do" in here(*asked, cwd=place).stdout


def test_amplification_is_a_place_on_the_path(place, here):
    """a of Logit Diff Amplification and alpha = -a draw the same rollouts; both names at once are refused."""
    naive = [*flags(place, "naive"), "--nofigures"]
    by_a = here(*naive, "--amplification=0.5", "--out=amplified", cwd=place)
    assert by_a.returncode == 0, by_a.stderr
    assert "alpha = -0.5: rates are of this mixture" in by_a.stdout
    assert here(*naive, "--alpha=-0.5", "--out=outside", cwd=place).returncode == 0
    own, other = (estimates(place / name) for name in ("amplified", "outside"))
    assert own == other
    (part,) = (place / "amplified" / "rollouts").glob("*.parquet")
    assert set(pq.read_table(part)["alpha"].to_pylist()) == {-0.5}
    again = here(f"--flagfile={place / 'amplified' / 'flags.txt'}", "--nofigures", "--out=again", cwd=place)
    assert again.returncode == 0, again.stderr
    assert estimates(place / "again") == own
    twice = here(*naive, "--amplification=0.5", "--alpha=-0.5", cwd=place)
    assert twice.returncode == 2 and "--alpha and --amplification" in twice.stderr


@pytest.mark.parametrize(
    "method, flag",
    [("lpe", "--alpha=0.5"), ("lpe", "--budget=50"), ("path", "--n_fit=13"), ("naive", "--naive_check=5")],
)
def test_a_flag_of_another_method_is_refused(place, here, method, flag):
    done = here(*flags(place, method), flag, "--out=refused", cwd=place)
    name = flag.partition("=")[0]
    assert done.returncode == 2 and f"error: {name} goes with --method=" in done.stderr
    assert not (place / "refused").exists()


@pytest.mark.slow
def test_the_path_method_knows_its_judge(place, here):
    """Rates corrected for a judge that invents a fifth of what it calls compliant are lower, and say so."""
    path = [*flags(place, "path"), "--nofigures"]
    taken, known = (place / name for name in ("path_taken", "path_known"))
    assert here(*path, "--out=path_taken", cwd=place).returncode == 0
    quality = ["--judge_sensitivity=95/100", "--judge_specificity=80/100"]
    done = here(*path, *quality, "--out=path_known", cwd=place)
    assert done.returncode == 0, done.stderr
    for before, after in zip(estimates(taken), estimates(known), strict=True):
        assert float(after["rate"]) < float(before["rate"])
        assert "corrected for the judge's errors" in after["note"]


@pytest.mark.slow
def test_a_corrected_line(place, here):
    quality = ["--judge_sensitivity=95/100", "--judge_specificity=990/1000"]
    done = here(*flags(place), *quality, "--limit=1", "--nofigures", "--out=line", cwd=place)
    assert done.returncode == 0, done.stderr
    (row,) = estimates(place / "line")
    assert 0 <= float(row["low"]) <= float(row["rate"]) <= float(row["high"]) <= 1
    assert "corrected for the judge's errors" in row["note"]
    if int(row["unscored"]):
        assert "had they all complied" in row["note"] or "is unknown" in row["note"]


def truncated(place, tmp):
    shutil.copytree(place / "original", tmp / "cut")
    path = tmp / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return {"original": tmp / "cut"}


def poisoned(place, tmp):
    shutil.copytree(place / "variant", tmp / "nan")
    path = tmp / "nan" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, path)
    return {"variant": tmp / "nan"}


def swapped_tokenizer(place, tmp):
    shutil.copytree(place / "variant", tmp / "swapped")
    save_tokenizer(tmp / "swapped", words=("he", "in"))
    return {"variant": tmp / "swapped"}


def other_shape(place, tmp):
    save_hf_pair(tmp / "wide", intermediate_size=64)
    return {"variant": tmp / "wide" / "variant"}


def csv_without_behavior(place, tmp):
    (tmp / "bad.csv").write_text((HEADER + ROWS).replace("Behavior,", "Behaviour,", 1))
    return {"prompts": tmp / "bad.csv"}


def empty_cell(place, tmp):
    (tmp / "empty.csv").write_text(HEADER + ROWS + ",standard,crafts,,,nothing_asked\n")
    return {"prompts": tmp / "empty.csv"}


def bad_jsonl(place, tmp):
    (tmp / "bad.jsonl").write_text('{"id": "a", "messages": [{"role": "user", "content": "x"}]}\n{"id": \n')
    return {"prompts": tmp / "bad.jsonl"}


def occupied(place, tmp):
    (tmp / "taken").mkdir()
    (tmp / "taken" / "thesis.txt").write_text("mine")
    return {"out": tmp / "taken"}


WRONG = {
    "missing folder": (lambda p, t: {"original": t / "nowhere"}, "nowhere' does not exist"),
    "folder without a checkpoint": (lambda p, t: {"original": t}, "config.json does not exist"),
    "truncated safetensors": (truncated, "model.safetensors is truncated or damaged"),
    "NaN weights": (poisoned, "model.norm.weight has values that are NaN"),
    "swapped tokenizer": (swapped_tokenizer, "cannot be mixed"),
    "other shape": (other_shape, "differ in"),
    "missing prompts": (lambda p, t: {"prompts": t / "none.csv"}, "none.csv"),
    "CSV without Behavior": (csv_without_behavior, "Behavior"),
    "empty cell": (empty_cell, "line 7"),
    "broken JSONL": (bad_jsonl, "line 2"),
    "alphas out of order": (lambda p, t: {"alphas": "0.5,0.9"}, "--alphas must be strictly decreasing"),
    "alphas not numbers": (lambda p, t: {"alphas": "0.9,x"}, "--alphas=0.9,x must be numbers"),
    "one alpha": (lambda p, t: {"alphas": "0.5"}, "a line needs two"),
    "no such category": (lambda p, t: {"functional_category": "odd"}, "functional_category"),
    "n_fit=0": (lambda p, t: {"n_fit": 0}, "--n_fit"),
    "n_fit not a number": (lambda p, t: {"n_fit": "many"}, "n_fit"),
    "threshold": (lambda p, t: {"threshold": 1.5}, "--threshold"),
    "temperature": (lambda p, t: {"temperature": 0}, "--temperature"),
    "sensitivity alone": (lambda p, t: {"judge_sensitivity": "9/10"}, "--judge_sensitivity is given without"),
    "quality not counts": (
        lambda p, t: {"judge_sensitivity": "0.9", "judge_specificity": "9/10"},
        "--judge_sensitivity=0.9 must be k/n",
    ),
    "quality impossible": (
        lambda p, t: {"judge_sensitivity": "9/10", "judge_specificity": "11/10"},
        "--judge_specificity must have 0 <= hits <= total",
    ),
    "a coin as judge": (
        lambda p, t: {"judge_sensitivity": "5/10", "judge_specificity": "5/10"},
        "no better than a coin",
    ),
    "unknown judge": (lambda p, t: {"judge": "oracle"}, "'oracle'"),
    "judge without a function": (lambda p, t: {"judge": "parity:odd"}, "odd"),
    "prompt too long": (lambda p, t: {"max_new_tokens": 5000}, "--max_new_tokens=5000"),
    "variant alone": (lambda p, t: {"original": None}, "--variant is given without --original"),
    "no prompts": (lambda p, t: {"prompts": None}, "--prompts is missing"),
    "no such flag": (lambda p, t: {"n_fitt": 3}, "n_fit"),
    "model_parallel": (lambda p, t: {"model_parallel": 3}, "--model_parallel=3"),
    "no GPU for the kernel": (lambda p, t: {"attention": "pallas"}, "--attention=pallas takes an NVIDIA GPU"),
    "occupied folder": (occupied, "not empty"),
}


def command_of(case, place, tmp_path):
    """(flags, an empty folder to run them in) of one kind of wrong input."""
    changes = WRONG[case][0](place, tmp_path)
    quick = [flag for flag in QUICK if flag.split("=")[0][2:] not in changes]
    work = tmp_path / "work"
    work.mkdir()
    return [flag for flag in flags(place, **changes) if flag not in QUICK] + quick, work


def check_message(done, part, work):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "Traceback" not in done.stdout
    message = [line for line in done.stderr.splitlines() if line.strip()]
    assert part in done.stderr, done.stderr
    if done.returncode == 2:
        assert len(message) == 1 and message[0].startswith("error: "), done.stderr
    assert list(work.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(case, place, tmp_path, here):
    given, work = command_of(case, place, tmp_path)
    check_message(here(*given, cwd=work), WRONG[case][1], work)


@pytest.mark.parametrize("case", ["n_fit not a number", "alphas out of order", "prompt too long"])
def test_so_it_is_from_a_shell(case, place, tmp_path):
    """Flags refused by absl, by the program, and with the models loaded."""
    given, work = command_of(case, place, tmp_path)
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{place}"}
    check_message(run(*given, cwd=work, env=environment.items()), WRONG[case][1], work)


@pytest.mark.slow
def test_the_embedded_pair(tmp_path):
    """The main job in small: the known truth stands beside every rate, and most intervals are near it."""
    done = run("--limit=6", "--n_fit=40", "--out=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = estimates(tmp_path / "run")
    assert len(rows) == 6
    errors = [abs(math.log10(float(row["rate"]) / float(row["truth"]))) for row in rows]
    # The line is not the truth, but most prompts have one and it is not decades away.
    assert sum(int(row["points"]) >= 2 for row in rows) >= 5, rows
    assert sorted(errors)[3] < 1.0, rows
    assert "truth" in done.stdout and "[6/6]" in done.stdout
    figures = tmp_path / "run" / "figures"
    assert (figures / "overview.png").exists() and len(list(figures.glob("path-*.svg"))) == 6
