"""Stored runs judged again, held against labels, and shown to a person."""

import csv
import json
import shutil
import sqlite3
import sys

import pytest

from experiments import estimate, judge
from tests.helpers import save_hf_pair
from tests.programs import run_in, told_by

JUDGES = """
import asyncio

asked = []

def short(prompt, response):
    asked.append(response)
    return len(response.encode()) < 12

def shorter(prompt, response):
    asked.append(response)
    return len(response.encode()) < 9

async def later(prompt, response):
    await asyncio.sleep(0.001)
    return short(prompt, response)
"""
OWN = {
    "lpe": ["--n_search=4", "--n_fit=6", "--alphas=0.9,0.5,0.1", "--naive_check=10"],
    "path": ["--budget=40", "--naive_check=10"],
    "naive": ["--n_naive=40"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with a run of each method in it, judged by `short`."""
    folder = tmp_path_factory.mktemp("place")
    save_hf_pair(folder, num_hidden_layers=1)
    (folder / "prompts.txt").write_text("fold a boat\nwhistle at a gate\nhum the third verse\n")
    (folder / "lengths.py").write_text(JUDGES)
    models = [f"--{name}={folder / name}" for name in ("original", "variant")]
    given = [*models, f"--prompts={folder / 'prompts.txt'}", "--judge=lengths:short", "--max_new_tokens=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for method, own in OWN.items():
            flags = [*given, *own, f"--method={method}", f"--out={method}", "--batch_size=16", "--nofigures"]
            assert run_in(folder, estimate.main, *flags) == 0
        yield folder


@pytest.fixture
def here(place, capsys):
    """The program in this process; its exit status, output and errors."""

    def call(*flags):
        code, out, err = told_by(capsys, place, judge.main, *flags)
        assert "Traceback" not in err
        return code, out, err

    return call


def table(folder):
    with open(folder / "estimates.csv", newline="") as file:
        return list(csv.DictReader(file))


def judged(place, out):
    """The table that a call's last line names."""
    return table(place / out.rstrip().rpartition("see ")[2])


@pytest.mark.parametrize("method", OWN)
def test_the_same_judge_gives_the_same_table(place, here, method):
    """From its ledger, without a question; and so does its equal, that is waited for."""
    asked = sys.modules["lengths"].asked
    before, rollouts = len(asked), {p: p.read_bytes() for p in (place / method / "rollouts").iterdir()}
    code, out, err = here(f"--run={method}")
    assert code == 0, err
    assert judged(place, out) == table(place / method) and len(asked) == before
    assert "by this one alone 0, by that one alone 0" in out
    code, out, err = here(f"--run={method}", "--judge=lengths:later")
    assert code == 0, err
    assert judged(place, out) == table(place / method) and len(asked) > before
    assert {p: p.read_bytes() for p in (place / method / "rollouts").iterdir()} == rollouts
    assert json.loads((place / method / "run.json").read_text())["settings"]["judge"].startswith("lengths:short")


@pytest.mark.parametrize("method", OWN)
def test_another_judge(place, here, method):
    """Every rollout that there is has its word; where its procedure would have gone elsewhere the table says so."""
    code, out, err = here(f"--run={method}", "--judge=lengths:shorter")
    assert code == 0, err
    rows, before = judged(place, out), table(place / method)
    for new, old in zip(rows, before, strict=True):
        assert 0 <= float(new["low"]) <= float(new["rate"]) <= float(new["high"]) <= 1
        assert new["rollouts"] == old["rollouts"] or "would have had other rollouts drawn" not in new["note"]
        if "would have had other rollouts drawn" in new["note"]:
            assert sum(int(new[k]) for k in ("complied", "refused", "unscored")) == int(new["rollouts"])
        assert int(new["complied"]) <= int(old["complied"])
    assert "compliant by this one alone 0," in out and "agreement beyond chance (κ) 0." in out
    if method == "naive":
        assert all(int(new["rollouts"]) == 40 for new in rows)
    ledger = sqlite3.connect(place / method / "verdicts.sqlite")
    names = {name.partition("@")[0] for (name,) in ledger.execute("select distinct judge from verdicts")}
    ledger.close()
    assert {"lengths:short", "lengths:shorter"} <= names


def test_two_judges_over_a_stored_run(place, here):
    code, out, err = here("--run=naive", "--judge=screen:lengths:short,confirm:lengths:shorter,audit=0.5")
    assert code == 0, err
    assert "x fewer than all" in out and all("corrected" in row["note"] for row in judged(place, out))


def test_what_a_person_is_shown_and_says(place, here):
    """Labels by another rule: shares by the judge's word are the person's agreement, and pass on as flags."""
    code, out, err = here("--run=naive", "--show=15", "--to_label=labels.jsonl")
    assert code == 0, err
    assert out.count("asked: ") == 30 and "15 of " in out and "responses called refused" in out
    rows = [json.loads(line) for line in (place / "labels.jsonl").read_text().splitlines()]
    assert len(rows) == 30 and all(row["complied"] is None for row in rows)
    code, _, err = here("--run=naive", "--validate=labels.jsonl")
    assert code == 2 and "labels.jsonl holds no labels" in err
    for row in rows[:-1]:
        row["complied"] = len(row["response"].encode()) < 11
    (place / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = here("--run=naive", "--validate=labels.jsonl")
    assert code == 0, err
    called = [len(row["response"].encode()) < 12 for row in rows[:-1]]
    agreed = sum(c and row["complied"] for c, row in zip(called, rows, strict=False))
    assert f"of {sum(called)} that it calls compliant comply {agreed}," in out
    assert f"of {29 - sum(called)} that it calls refused refuse {29 - sum(called)}, 100 %" in out
    assert "to correct rates for it: --judge_sensitivity=" in out
    # Another judge on the same labels: they were not drawn by its word.
    code, out, err = here("--run=naive", "--judge=lengths:shorter", "--validate=labels.jsonl")
    assert code == 0 and "drawn by another judge's word" in out and "--judge_sensitivity" not in out


def test_labels_of_two_kinds_do_not_mix(place, here):
    """A share of what the judge calls compliant and a share of all is one share of nothing."""
    assert here("--run=naive", "--show=5", "--to_label=mixed.jsonl")[0] == 0
    rows = [json.loads(line) | {"complied": True} for line in (place / "mixed.jsonl").read_text().splitlines()]
    rows.append({"prompt": "fold", "response": "x", "complied": True})
    (place / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = here("--run=naive", "--validate=mixed.jsonl")
    assert code == 2 and "--validate mixes labels that were drawn by this judge's word" in err


def test_a_label_may_hold_any_line_break(place, here):
    """JSON as others write it leaves U+2028 and U+0085 as they are; they end no line of the file."""
    rows = [{"prompt": "fold", "response": f"x\u2028y\u0085{n}", "complied": True} for n in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (place / "breaks.jsonl").write_text(text, encoding="utf-8")
    code, out, err = here("--judge=lengths:short", "--validate=breaks.jsonl")
    assert code == 0 and "held against 3 labels" in out, err


def test_what_other_processes_judged_is_known(place, here, tmp_path):
    """A run of three processes has three ledgers; nothing in any of them is asked again."""
    shutil.copytree(place / "naive", tmp_path / "run")
    known = sqlite3.connect(tmp_path / "run" / "verdicts.sqlite")
    (before,) = known.execute("select count(*) from verdicts").fetchone()
    known.close()
    # The first process has judged nothing, and the third everything.
    for dot in ("", "."):
        (tmp_path / "run" / f"{dot}verdicts.sqlite").rename(tmp_path / "run" / f"{dot}verdicts-2.sqlite")
    asked = sys.modules["lengths"].asked
    so_far = len(asked)
    code, out, err = here(f"--run={tmp_path / 'run'}")
    assert code == 0 and before > 10, err
    assert len(asked) == so_far
    assert table(tmp_path / out.rstrip().rpartition("see ")[2]) == table(place / "naive")


def test_labels_that_were_drawn_whatever_the_judge_said(place, here):
    rows = [{"prompt": "fold", "response": "x" * n, "complied": n < 10} for n in range(1, 20)]
    (place / "random.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for flags in (["--run=naive"], ["--judge=lengths:short"]):
        code, out, err = here(*flags, "--validate=random.jsonl")
        assert code == 0, err
        assert "of 9 that comply it found 9, 100 %" in out and "of 10 that refuse it cleared 8, 80 %" in out
        assert "--judge_sensitivity=9/9 --judge_specificity=8/10" in out


def test_what_is_shown_cannot_write_to_the_terminal(place, here):
    code, out, _ = here("--run=path", "--show=30")
    assert code == 0
    assert not any(c != "\n" and not c.isprintable() for c in out)
    code, out, _ = here("path", "--show=3", "--noshow_texts")
    assert code == 0 and "asked: " not in out and out.count(", rollout ") == 6


WRONG = {
    "no run": (["--judge=rules"], "RUN is missing"),
    "two runs": (
        ["path", "--run=naive"],
        "run folders are named in two ways, 'path' and --run=naive; choose one of them",
    ),
    "a third": (["path", "naive"], "unexpected argument 'naive'"),
    "no folder": (["--run=nowhere"], "nowhere is no run folder: it is not there"),
    "no such judge": (["--run=naive", "--judge=rule"], "judge 'rule' is not known"),
    "labels nowhere": (["--run=naive", "--validate=nowhere.jsonl"], "--validate=nowhere.jsonl cannot be read"),
    "no show": (["--run=naive", "--to_label=x.jsonl"], "--to_label takes --show"),
    "money without prices": (["--run=naive", "--judge_budget=3"], "takes --judge_prices"),
    "odd prices": (["--run=naive", "--judge_prices=3"], "must be two prices"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence(place, here, case):
    flags, message = WRONG[case]
    code, _, err = here(*flags)
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1


LINES = {
    "not json": ("{", "not a JSON object"),
    "a list": ("[]", "not a JSON object"),
    "no word": ('{"prompt": "a", "response": "b"}', '"complied" must be true, false or null'),
    "a number": ('{"prompt": "a", "response": "b", "complied": 1}', '"complied" must be true, false or null'),
    "half a key": ('{"prompt_id": "a", "alpha": 1, "complied": true}', 'it takes "prompt_id", "alpha" and "index"'),
    "odd key": ('{"prompt_id": "a", "alpha": "1", "index": 0, "complied": true}', '"alpha" a number'),
    "deep": ("[" * 100_000, "not a JSON object"),
    "huge alpha": ('{"prompt_id": "a", "alpha": 1' + "0" * 400 + ', "index": 0, "complied": true}', '"alpha" a number'),
    "odd index": ('{"prompt_id": "a", "alpha": 1, "index": true, "complied": true}', '"index" a whole number'),
    "elsewhere": ('{"prompt_id": "a", "alpha": 1, "index": 0, "complied": true}', "rollout 0 of 'a' at alpha = 1"),
}


@pytest.mark.parametrize("case", LINES)
def test_wrong_labels_are_named(place, here, case):
    line, message = LINES[case]
    (place / "odd.jsonl").write_text(line + "\n")
    code, _, err = here("--run=naive", "--validate=odd.jsonl")
    assert code == 2 and message in err


def test_a_damaged_run_is_not_judged(place, here, tmp_path):
    shutil.copytree(place / "naive", tmp_path / "run")
    (shard,) = (tmp_path / "run" / "rollouts").glob("*.parquet")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, _, err = here(f"--run={tmp_path / 'run'}")
    assert code == 2 and "is damaged" in err
    (tmp_path / "run" / "prompts.jsonl").unlink()
    code, _, err = here(f"--run={tmp_path / 'run'}")
    assert code == 2 and "prompts.jsonl is missing" in err
