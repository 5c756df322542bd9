"""A run in other tools' files: every rollout with its verdict, true totals, nothing that runs, for its owner alone."""

import csv
import json
import math
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from experiments import estimate
from experiments import judge as judging
from lpe_jax import export
from lpe_jax.errors import RunError
from lpe_jax.records.rollouts import FOLDER, RolloutStore
from tests.helpers import save_hf_pair
from tests.programs import run_in, told_by

ROOT = Path(__file__).parents[2]
JUDGES = """
def short(prompt, response):
    n = len(response.encode())
    return None if n % 5 == 0 else n < 12

def long(prompt, response):
    return len(response.encode()) < 10
"""
CASCADE = "screen:exported_lengths:short,confirm:exported_lengths:long,audit=0.5"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with a run by one judge and a run by two."""
    folder = tmp_path_factory.mktemp("place")
    save_hf_pair(folder, num_hidden_layers=1)
    (folder / "prompts.txt").write_text("fold a boat\n=whistle(at;a gate)\n")
    (folder / "exported_lengths.py").write_text(JUDGES)
    given = [*(f"--{name}={folder / name}" for name in ("original", "variant")), f"--prompts={folder / 'prompts.txt'}"]
    own = ["--n_search=4", "--n_fit=6", "--alphas=0.9,0.5,0.1", "--naive_check=10", "--max_new_tokens=8", "--nofigures"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for out, judge in (("one", "exported_lengths:short"), ("two", CASCADE)):
            flags = [*given, *own, f"--judge={judge}", f"--out={out}", "--batch_size=16"]
            assert run_in(folder, estimate.main, *flags) == 0
        yield folder


def exported(place, run, kind, *sample):
    out = place / f"{run}.{kind}"
    export.run(place / run, out, kind, export.Sample(*sample))
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    return out


def table(place, run):
    with open(place / run / "estimates.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("run", ["one", "two"])
def test_every_rollout_is_there_with_its_verdict(place, run):
    lines = [json.loads(line) for line in exported(place, run, "jsonl").read_text().splitlines()]
    stored = {(r.prompt_id, r.alpha, r.index): r for r in RolloutStore(place / run / FOLDER).read()}
    assert len(lines) == len(stored)
    counted = Counter()
    for line in lines:
        assert list(line) == export.SCHEMA.names
        rollout = stored.pop((line["prompt_id"], line["alpha"], line["index"]))
        assert (line["text"], line["length"], line["finish"]) == (rollout.text, len(rollout.tokens), rollout.finish)
        known = math.isfinite(rollout.path_score)  # a naive check takes no sums
        assert line["path_score"] == (pytest.approx(rollout.path_score) if known else None)
        n = len(rollout.text.encode())
        if run == "one":
            assert line["outcome"] == ("unscored" if n % 5 == 0 else "complied" if n < 12 else "refused")
        elif line["fields"]["confirm"] is not None:
            assert line["outcome"] == ("complied" if n < 10 else "refused")
        else:
            assert line["outcome"] == "refused" and n >= 12
        counted[line["prompt_id"], line["outcome"]] += 1
    for row in table(place, run):
        for outcome in ("complied", "refused", "unscored"):
            assert counted[row["prompt_id"], outcome] == int(row[outcome])


def test_parquet_and_csv_say_the_same(place):
    lines = [json.loads(line) for line in exported(place, "one", "jsonl").read_text().splitlines()]
    kept = pq.read_table(exported(place, "one", "parquet"))
    assert kept.schema.equals(export.SCHEMA)
    assert [row | {"fields": json.loads(row["fields"])} for row in kept.to_pylist()] == lines
    with open(exported(place, "one", "csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, lines, strict=True):
        for cell in row.values():
            assert cell.isprintable() and (cell[:1] not in ("=", "+", "@", "-", "\t") or float(cell) < 0)
        assert float(row["alpha"]) == line["alpha"] and row["outcome"] == line["outcome"]
        assert float(row["logp_path"]) == pytest.approx(line["logp_path"])


def test_formulas_and_escapes_in_responses_do_nothing(place, monkeypatch):
    """As a response may say what it likes."""
    judged = export._judged

    def hostile(*args):
        for prompt, rollout, verdict in judged(*args):
            yield prompt, type(rollout)(**{**vars(rollout), "text": "=1+1\x1b[2J\n\u202e"}), verdict

    monkeypatch.setattr(export, "_judged", hostile)
    text = exported(place, "one", "csv").read_text()
    assert "'=1+1\\x1b[2J\\n\\u202e" in text and "\x1b" not in text


def test_a_sample_is_a_sample(place):
    """All hits or so many, so many of the others, the same ones each time, and none that is not there."""
    read = lambda out: [json.loads(line) for line in out.read_text().splitlines()]  # noqa: E731
    whole = read(exported(place, "one", "jsonl"))
    for hits, others in ((None, 2), (1, 0), (0, None)):
        some = read(exported(place, "one", "jsonl", hits, others))
        assert some == read(exported(place, "one", "jsonl", hits, others)) and all(line in whole for line in some)

        def count(lines, hit):
            return Counter((x["prompt_id"], x["alpha"]) for x in lines if (x["outcome"] == "complied") == hit)

        for most, hit in ((hits, True), (others, False)):
            expected = {cell: n if most is None else min(n, most) for cell, n in count(whole, hit).items()}
            assert count(some, hit) == Counter(expected)


def test_what_cannot_be_exported_is_said(place, tmp_path):
    for run, out, said in [
        ("none", "x.csv", "no run folder"),
        ("one", "one/estimates.csv", "a file of the run itself"),
        ("one", "one", "is a folder"),
    ]:
        with pytest.raises(RunError, match=said):
            export.run(place / run, place / out, "csv", export.Sample())
    (tmp_path / "run").mkdir()
    for path in (place / "one").iterdir():
        if not path.name.endswith("verdicts.sqlite"):
            (tmp_path / "run" / path.name).symlink_to(path)
    with pytest.raises(RunError, match=r"none of the verdicts .* experiments\.judge"):
        export.run(tmp_path / "run", tmp_path / "x.csv", "csv", export.Sample())
    assert not (tmp_path / "x.csv").exists()


def test_a_judge_is_held_against_the_two_that_a_run_was_made_with(place, capsys):
    code, out, err = told_by(capsys, place, judging.main, "--run=two", "--judge=exported_lengths:short")
    assert code == 0, err
    assert "against screen:exported_lengths:short" in out and "rollouts that both scored" in out


def test_the_program(place):
    call = [sys.executable, "-m", "experiments.export", f"--run={place / 'one'}"]
    done = subprocess.run([*call, "--format=csv"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --out is missing")
    call = [*call[:3], str(place / "one")]
    done = subprocess.run([*call, "--out=few"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--format is missing, and --out=few does not say it" in done.stderr
    # By its suffix.
    call += [f"--out={place / 'few.csv'}", "--sample=1"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "rollouts of 2 prompts written to" in done.stdout
    assert (place / "few.csv").read_text().startswith("prompt_id,")


def test_an_inspect_log_and_back(place):
    """Read by Inspect itself; its sample's shares are no rates, and what is read back are the run's own counts."""
    log = pytest.importorskip("inspect_ai.log")
    from lpe_jax.inspect_logs import read

    out = exported(place, "one", "inspect", None, 2).rename(place / "one.eval")
    kept = log.read_eval_log(str(out))
    lines = [json.loads(line) for line in exported(place, "one", "jsonl", None, 2).read_text().splitlines()]
    assert kept.status == "success" and "Shares among its samples are no rates" in kept.eval.task_description
    assert kept.results.scores[0].metrics == {} and len(list(log.read_eval_log_samples(str(out)))) == len(lines)
    samples = {(s.metadata["prompt_id"], s.metadata["alpha"], s.metadata["index"]): s for s in kept.samples}
    for line in lines:
        sample = samples.pop((line["prompt_id"], line["alpha"], line["index"]))
        value = sample.scores["judge"].value
        if line["outcome"] == "unscored":
            assert math.isnan(value)
        else:
            assert value == ("C" if line["outcome"] == "complied" else "I")
        assert sample.output.completion == line["text"]
        for name in ("prompt_id", "alpha", "index", "logp_original", "path_score"):
            assert sample.metadata[name] == line[name]
    trials = read([out], alpha="task_args.alpha")
    for row in table(place, "one"):
        cells = trials[row["prompt_id"]].values()
        for outcome in ("complied", "refused", "unscored"):
            assert sum(getattr(cell, outcome) for cell in cells) == int(row[outcome])
    assert kept.eval.metadata["estimates"] == table(place, "one")
