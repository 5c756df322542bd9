"""The embedded pair judged through an API, against a local server that knows the exact rule: the rule's own table."""

import csv
import json
import sqlite3
from pathlib import Path

import httpx2
import pytest

from experiments import estimate, judge
from lpe_jax import rejudge
from lpe_jax.tiny.judge import judge_text
from lpe_jax.types import Outcome
from tests.judging.server import Answer, Server, completion, error, graded
from tests.judging.test_batches import Stub
from tests.programs import told_by

NAIVE = ["--limit=3", "--method=naive", "--n_naive=60", "--batch_size=64", "--nofigures"]
LPE = ["--limit=2", "--method=lpe", "--n_search=6", "--n_fit=12", "--naive_check=10", "--batch_size=64", "--nofigures"]
CANARY = "sk-canary-0123456789"


def by_the_rule(asked):
    """As the package's own judge of the embedded pair, in the rubric's words."""
    outcome = Outcome.COMPLIED if asked.trial else judge_text(asked.item[1]).outcome
    return Answer(completion(graded(asked, (int(outcome is Outcome.REFUSED), 4, 5))))


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch):
    """Reading them takes a third of a second each time."""

    class Plain(httpx2.AsyncClient):
        def __init__(self, **settings):
            super().__init__(**settings, verify=False)

    monkeypatch.setattr(httpx2, "AsyncClient", Plain)


@pytest.fixture
def here(tmp_path, capsys):
    """A program in this process; its exit status, output and errors."""

    return lambda program, *flags: told_by(capsys, tmp_path, program.main, *flags)


def table(out):
    with open(Path(out) / "estimates.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("flags", [NAIVE, LPE], ids=["naive", "lpe"])
def test_the_same_table_as_the_rule(here, tmp_path, flags):
    code, _, err = here(estimate, *flags, "--judge=tiny", f"--out={tmp_path / 'rule'}")
    assert code == 0, err
    with Server(by_the_rule) as server:
        judged = f"--judge={server.url}#stub"
        code, out, err = here(estimate, *flags, judged, "--judge_prices=1,4", f"--out={tmp_path / 'api'}")
        assert code == 0, err
        calls = len(server.asked)
        assert "nothing to do" in here(estimate, *flags, judged, "--judge_prices=1,4", f"--out={tmp_path / 'api'}")[1]
        assert len(server.asked) == calls
    rule, api = table(tmp_path / "rule"), table(tmp_path / "api")
    # The truth is told where the rule itself judges.
    assert [row | {"truth": ""} for row in rule] == api
    assert (
        f"{calls:,} calls, {600 * calls:,} input and {80 * calls:,} output tokens" in out and "at --judge_prices" in out
    )
    db = sqlite3.connect(tmp_path / "api" / "verdicts.sqlite")
    (verdicts,) = db.execute("select count(*) from verdicts").fetchone()
    db.close()
    assert calls == verdicts + 1, "each distinct response once, and the first call"


def test_a_cascade_with_an_api_behind_it(here, tmp_path):
    """The refusal phrases screen, the API confirms: a fraction of the calls."""
    with Server(by_the_rule) as server:
        spec = f"--judge=screen:rules,confirm:{server.url}#stub,audit=0.1"
        code, out, err = here(estimate, *NAIVE, spec, f"--out={tmp_path / 'two'}")
        assert code == 0, err
    assert "x fewer than all" in out and "(κ)" in out
    assert all("corrected for the judge's errors" in row["note"] for row in table(tmp_path / "two"))


def test_a_budget_stops_the_run_and_more_of_it_goes_on(here, tmp_path):
    with Server(by_the_rule) as server:
        judged = f"--judge={server.url}#stub"
        out = f"--out={tmp_path / 'run'}"
        code, _, err = here(estimate, *NAIVE, judged, "--judge_budget=8calls", out)
        assert code == 2 and "--judge_budget" in err and "Traceback" not in err
        spent = len(server.asked)
        assert spent <= 8
        code, _, err = here(estimate, *NAIVE, judged, "--judge_budget=8calls", out)
        assert code == 2 and len(server.asked) <= spent + 1, "it is the run's budget, not each call's"
        code, _, err = here(estimate, *NAIVE, judged, "--judge_budget=5000calls", out)
        assert code == 0, err
    assert here(estimate, *NAIVE, "--judge=tiny", f"--out={tmp_path / 'rule'}")[0] == 0
    assert [row | {"truth": ""} for row in table(tmp_path / "rule")] == table(tmp_path / "run")


@pytest.mark.parametrize("status", [401, 429])
def test_a_key_that_is_refused_stops_before_anything_is_drawn(here, tmp_path, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", CANARY)
    said = error(status, f"no money for {CANARY}", "insufficient_quota" if status == 429 else "invalid_api_key")
    with Server(lambda asked: said) as server:
        judged = [f"--judge={server.url}#stub", "--judge_key_env=MY_KEY"]
        code, out, err = here(estimate, *NAIVE, *judged, f"--out={tmp_path / 'run'}")
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ")
    assert CANARY not in out + err and not (tmp_path / "run").exists()


def test_calls_that_failed_are_in_the_metrics(here, tmp_path):
    """By what happened, as JSON, and a run over which a judge fails now and then has the same table."""
    answered = []

    def at_times(asked):
        answered.append(asked)
        return Answer("", 503) if len(answered) % 5 == 3 else by_the_rule(asked)

    with Server(at_times) as server:
        code, _, err = here(estimate, *NAIVE, f"--judge={server.url}#stub", f"--out={tmp_path / 'run'}")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (told,) = [line["failures"] for line in lines if line["event"] == "judge"]
    assert told == {"503": (len(answered) + 2) // 5}


def test_a_key_for_each_of_two_servers(here, tmp_path, monkeypatch):
    monkeypatch.setenv("FIRST", "first-key")
    monkeypatch.setenv("SECOND", "second-key")
    with Server(by_the_rule) as one, Server(by_the_rule) as two:
        spec = f"--judge=screen:{one.url}#a,confirm:{two.url}#b,audit=0.5"
        code, _, err = here(estimate, *NAIVE, spec, "--judge_key_env=FIRST", f"--out={tmp_path / 'one'}")
        assert code == 2 and "there are two servers; say whose it is" in err and not one.asked + two.asked
        each = f"--judge_key_env=127.0.0.1:{one.port}=FIRST,127.0.0.1:{two.port}=SECOND"
        code, _, err = here(estimate, *NAIVE, spec, each, f"--out={tmp_path / 'two'}")
        assert code == 0, err
        for server, key in ((one, "first-key"), (two, "second-key")):
            assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {key}"}


def test_batches_behind_a_screen_that_is_waited_for(here, tmp_path, monkeypatch):
    """The screen's loop ends with the look at what is open, and a new one judges."""
    monkeypatch.setattr(rejudge, "_POLL_SECONDS", 0.001)
    (tmp_path / "screens.py").write_text("async def even(prompt, response):\n    return len(response) % 2 == 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert here(estimate, *NAIVE, "--judge=rules", f"--out={tmp_path / 'run'}")[0] == 0
    stub = Stub()
    stub.result = by_the_rule
    with Server(stub) as server:
        spec = f"--judge=screen:screens:even,confirm:{server.url}#stub,audit=0.5"
        code, out, err = here(judge, f"--run={tmp_path / 'run'}", spec, "--judge_batch")
        assert code == 0, err
        assert "responses go out in batches" in out and "x fewer than all" in out
    assert set(stub.paid.values()) == {1}
    assert all(row["unscored"] == "0" for row in table(tmp_path / out.rstrip().rpartition("see ")[2]))


def test_a_stored_run_in_batches(here, tmp_path, monkeypatch):
    """The same verdicts as one by one, and nothing is sent twice."""
    monkeypatch.setattr(rejudge, "_POLL_SECONDS", 0.001)
    assert here(estimate, *NAIVE, "--judge=rules", f"--out={tmp_path / 'run'}")[0] == 0
    stub = Stub()
    stub.result = by_the_rule
    with Server(stub) as server:
        flags = [f"--run={tmp_path / 'run'}", f"--judge={server.url}#stub", "--judge_batch"]
        code, out, err = here(judge, *flags)
        assert code == 0, err
        assert "responses go out in batches" in out
        paid, batched = dict(stub.paid), table(tmp_path / out.rstrip().rpartition("see ")[2])
        code, out, err = here(judge, *flags)
        assert code == 0 and dict(stub.paid) == paid and "go out in batches" not in out
    code, out, err = here(judge, f"--run={tmp_path / 'run'}", "--judge=rules", "--judge_batch")
    assert code == 2 and "--judge_batch takes a judge behind an API" in err
    assert all(row["unscored"] == "0" for row in batched) and set(paid.values()) == {1}
    assert json.loads((tmp_path / "run" / "batches.json").read_text())
