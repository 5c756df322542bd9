"""What a dry run says, against what the same command then takes; and that it touches nothing."""

import json
import re
import socket
from pathlib import Path

import pytest

from experiments import estimate, judge
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.tiny import world_folder
from tests.experiments.test_api_judge import by_the_rule, no_certificates  # noqa: F401  the fixture is used by all
from tests.judging.server import Server
from tests.programs import refused_by, told_by

SMALL = ["--batch_size=64", "--nofigures", "--max_new_tokens=40"]
METHODS = {
    "lpe": ["--method=lpe", "--n_search=4", "--n_fit=8", "--naive_check=5"],
    "reused": ["--method=lpe", "--n_search=4", "--n_fit=8", "--naive_check=0", "--reuse_search", "--alphas=0.6,0.3,0"],
    "path": ["--method=path", "--budget=60", "--naive_check=5"],
    "naive": ["--method=naive", "--n_naive=20"],
}


@pytest.fixture
def here(tmp_path, capsys):
    """A program in this process; its exit status, output and errors."""

    return lambda program, *flags: told_by(capsys, tmp_path, program.main, *flags)


@pytest.fixture
def dry(here, tmp_path, monkeypatch):
    """The same with --dry_run, in one text: it has no key, no network and no models, and leaves all as it was."""

    def refuse(*_, **__):
        raise AssertionError("nothing is to be loaded or asked")

    def call(program, *flags):
        before = seen(tmp_path)
        with monkeypatch.context() as patch:
            patch.delenv("OPENAI_API_KEY", raising=False)
            patch.setattr(socket.socket, "connect", refuse)
            patch.setattr("lpe_jax.asked.load", refuse)
            patch.setattr("lpe_jax.judging.on_device.load_judge", refuse)
            code, out, err = here(program, *flags, "--dry_run")
        assert (code, err) == (0, ""), err
        assert seen(tmp_path) == before
        return out

    return call


def seen(folder):
    """All that can be told of what is in a folder."""
    paths = sorted(folder.rglob("*"))
    return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths]


def numbers(pattern, text):
    """The numbers in the groups of what matches."""
    match = re.search(pattern, text)
    assert match, text
    return tuple(int(group.replace(",", "")) for group in match.groups())


def most_of(text):
    return numbers(r"rollouts: .*?([\d,]+), of [\d,]+ prompts?", text)[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_most_is_not_exceeded(here, dry, tmp_path, method):
    flags = [*SMALL, *METHODS[method], "--limit=2", "--out=run"]
    said = dry(estimate, *flags, "--tokens_per_second=10")
    most = most_of(said)
    (tokens,) = numbers(r"tokens: at most ([\d,]+),", said)
    assert tokens == 40 * most and "judge tiny: no calls" in said and "at 10 tokens/s" in said
    assert not (tmp_path / "run").exists()
    code, _, err = here(estimate, *flags)
    assert code == 0, err
    drawn = list(RolloutStore(tmp_path / "run" / "rollouts").read())
    assert len(drawn) <= most and sum(len(r.tokens) for r in drawn) <= tokens
    if method in ("path", "naive"):
        assert len(drawn) == most
    else:
        (expected,) = numbers(r"rollouts: about ([\d,]+), at most", said)
        assert len(drawn) / 2 < expected < most
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "rollouts").iterdir())
    amount, unit = re.search(r"disk: at most about ([\d.]+) (\w+)", said).groups()
    assert size < float(amount) * {"kB": 1e3, "MB": 1e6}[unit]
    assert "is finished: nothing to do" in dry(estimate, *flags)


@pytest.mark.parametrize("method", ["lpe", "naive"])
def test_of_a_run_that_is_there_only_what_is_left_counts(here, dry, tmp_path, method):
    """One prompt is done, and then there are to be two."""
    flags = [*SMALL, *METHODS[method], "--out=run"]
    assert here(estimate, *flags, "--limit=1")[0] == 0
    said = dry(estimate, *flags, "--limit=2")
    before = len(RolloutStore(tmp_path / "run" / "rollouts"))
    assert f"there: {before} rollouts; 1 of 2 prompts are done" in said and "as this run was drawn so far" in said
    one = most_of(dry(estimate, *flags, "--limit=1", "--out=other"))
    assert most_of(said) == one
    assert here(estimate, *flags, "--limit=2")[0] == 0
    assert len(RolloutStore(tmp_path / "run" / "rollouts")) - before <= one


def test_more_of_a_prompt_that_is_there(here, dry):
    flags = [*SMALL, "--method=naive", "--limit=2", "--out=run"]
    assert here(estimate, *flags, "--n_naive=20")[0] == 0
    assert most_of(dry(estimate, *flags, "--n_naive=50")) == 2 * 30


def test_a_run_in_which_nothing_was_judged_yet(here, dry, tmp_path):
    """Its rollouts are there, and its judge, which may not be asked, has said nothing of them."""
    flags = [*SMALL, *METHODS["lpe"], "--limit=2", "--out=run"]
    with Server(by_the_rule) as server:
        judged = [*flags, f"--judge={server.url}#stub"]
        most = most_of(dry(estimate, *judged))
        assert here(estimate, *judged)[0] == 0
        asked = len(server.asked)
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        drawn = len(RolloutStore(tmp_path / "run" / "rollouts"))
        assert record["status"] == "finished" and "nothing to do" in dry(estimate, *judged)
        (tmp_path / "run" / "estimates.txt").unlink()
        assert most_of(dry(estimate, *judged)) == 0, "all is drawn and judged, and the table is missing"
        for path in (tmp_path / "run").glob("verdicts.sqlite*"):
            path.unlink()
        assert most_of(dry(estimate, *judged)) == most - drawn
        assert len(server.asked) == asked


def test_calls_and_money(dry):
    flags = [*SMALL, *METHODS["naive"], "--limit=2"]
    said = dry(estimate, *flags, "--judge=openai:gpt-5.4-mini")
    assert numbers(r"at most ([\d,]+) calls", said) == (40,) and "give --judge_prices" in said
    said = dry(estimate, *flags, "--judge=openai:gpt-4.1", "--judge_prices=1000000,1000000")
    own, money = re.search(r"40 calls: ([\d,.]+) for what is sent, up to ([\d,.]+) with", said).groups()
    each = re.search(r"a call sends about (\d+) tokens", said)[1]
    money, own = (float(x.replace(",", "")) for x in (money, own))
    assert money - own == 40 * 2048 and own == pytest.approx(40 * int(each), rel=0.01) and 300 < int(each) < 1000
    assert "no calls" in dry(estimate, *flags, "--judge=jax:nowhere/at-all")
    said = dry(estimate, *flags, "--judge=screen:rules,confirm:openai:gpt-4.1,audit=0.02")
    assert "judge openai:gpt-4.1: at most 40 calls" in said and "2 % of the rest" in said
    said = dry(estimate, *SMALL, *METHODS["lpe"], "--judge=screen:rules,confirm:openai:gpt-4.1,audit=0.02")
    about, most = numbers(r"about ([\d,]+) calls, at most ([\d,]+)", said)
    assert 0 < about < most / 2


def test_judging_a_stored_run(here, dry, tmp_path):
    """As many calls as are then made, but for the first, which is about a paper boat."""
    assert here(estimate, *SMALL, *METHODS["lpe"], "--limit=2", "--out=run")[0] == 0
    with Server(by_the_rule) as server:
        flags = ["--run=run", f"--judge={server.url}#stub", "--judge_prices=1,4"]
        (calls,) = numbers(r": ([\d,]+) calls\.", dry(judge, *flags))
        assert not server.asked
        code, _, err = here(judge, *flags)
        assert code == 0, err
        assert len(server.asked) == calls + 1
        assert "no calls" in dry(judge, *flags)
    assert "no calls" in dry(judge, "--run=run")
    (status,) = (tmp_path / "run" / "judged").glob("*/status.json")
    now = json.loads(status.read_text())
    assert now["state"] == "finished" and now["judge_calls"] == calls + 1 and now["judge_cost"] > 0


def test_two_judges_over_a_stored_run(here, dry):
    assert here(estimate, *SMALL, *METHODS["lpe"], "--limit=2", "--out=run")[0] == 0
    with Server(by_the_rule) as server:
        flags = ["--run=run", f"--judge=screen:rules,confirm:{server.url}#stub,audit=0.1"]
        (calls,) = numbers(r": ([\d,]+) calls\.", dry(judge, *flags))
        assert here(judge, *flags)[0] == 0
        assert len(server.asked) == calls + 1


def plan(path, **more):
    """As experiments.plan --json writes it, as far as a dry run reads it."""
    step = {"pair": {"tokens_per_second_expected": 2000.0}}
    asked = {"original": "some/model", "topology": "v5e:2x2"}
    path.write_text(
        json.dumps({"asked": asked, "devices": 4, "batch_size": 64, "efficiency": 0.5, "step": step} | more)
    )
    return f"--plan={path}"


def test_time_and_device_hours_as_planned(dry, tmp_path):
    said = dry(estimate, "--limit=2", "--method=naive", "--n_naive=9000", plan(tmp_path / "plan.json"))
    # 18,000 rollouts of 64 tokens are 576 s at 2,000 tokens a second, on 4 devices.
    assert "time: at most 10 min at 2,000 tokens/s of all devices (50% of the ceiling that " in said
    assert "plan.json has for some/model on v5e:2x2, batch 64); device-hours: at most 0.64\n" in said
    hostile = {"original": "\x1b[31mred", "topology": "v5e:2x2"}
    assert "\x1b" not in dry(estimate, "--limit=2", plan(tmp_path / "plan.json", asked=hostile))
    said = dry(estimate, "--limit=2", "--method=lpe", plan(tmp_path / "plan.json"))
    assert re.search(r"device-hours: at most 0\.\d+, about 0\.\d+ expected\n", said)


def test_a_file_that_is_no_plan(capsys, tmp_path):
    (tmp_path / "text.json").write_text("a plan")
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    plan(tmp_path / "text2.json", step={"pair": {"tokens_per_second_expected": "12"}})
    plan(tmp_path / "true.json", devices=True)
    plan(tmp_path / "nan.json", step={"pair": {"tokens_per_second_expected": float("nan")}})
    plan(tmp_path / "cpu.json", asked={"original": "some/model", "topology": "cpu"})
    of_cpu = json.loads((tmp_path / "cpu.json").read_text())
    del of_cpu["step"]
    (tmp_path / "cpu.json").write_text(json.dumps(of_cpu))
    for name in ("none", "text", "other", "deep", "text2", "true", "nan"):
        err = refused_by(capsys, tmp_path, estimate.main, "--dry_run", f"--plan={tmp_path / name}.json")
        assert f"{name}.json is no file that experiments.plan --json=FILE wrote" in err
    err = refused_by(capsys, tmp_path, estimate.main, "--dry_run", f"--plan={tmp_path / 'cpu.json'}")
    assert "cpu.json is for cpu, and says nothing of its speed; measure it" in err


@pytest.mark.parametrize(
    "name, words",
    [
        ("gpt-4", "judge 'gpt-4' is not known; choose rules, tiny, openai:…"),
        ("rule", "Did you mean rules ?"),
        ("openai", "Did you mean openai:… ?"),
        ("jax:nothere", "checkpoint 'nothere' does not exist"),
        ("module:my.judges:complied", "as mypackage.judges:complied"),
        ("screen:rules,confirm:rule", "Did you mean rules ?"),
    ],
)
def test_a_judge_that_is_none_costs_a_sentence(capsys, tmp_path, name, words):
    """And is not told to cost nothing."""
    assert words in refused_by(capsys, tmp_path, estimate.main, "--dry_run", f"--judge={name}")


def test_a_judge_in_python_is_not_looked_for(dry):
    said = dry(estimate, "--judge=mypackage.judges:complied", "--limit=2", "--method=naive")
    assert "judge mypackage.judges:complied: a Python function, not looked for" in said


def test_flags_that_do_not_fit(here, tmp_path):
    code, _, err = here(estimate, plan(tmp_path / "plan.json"))
    assert code == 2 and "--plan goes with --dry_run" in err
    code, _, err = here(estimate, plan(tmp_path / "plan.json"), "--dry_run", "--tokens_per_second=5")
    assert code == 2 and "give one of them" in err
    code, _, err = here(estimate, "--tokens_per_second=5")
    assert code == 2 and "--tokens_per_second goes with --dry_run" in err
    code, _, err = here(judge, "--dry_run", "--judge=rules", "--validate=labels.jsonl")
    assert code == 2 and "RUN is missing" in err
    code, _, err = here(estimate, "--dry_run", f"--prompts={Path(tmp_path) / 'none.csv'}")
    assert code == 2 and "none.csv" in err


def test_models_are_looked_for_where_that_costs_nothing(here, dry, tmp_path):
    (tmp_path / "prompts.txt").write_text("fold a boat\n")
    (tmp_path / "empty").mkdir()
    own = ["--prompts=prompts.txt", "--judge=rules"]
    said = dry(estimate, "--original=maker/model", "--variant=other/model@main", *own)
    assert "models: maker/model and other/model@main on the hub, not looked for" in said
    folder = str(world_folder() / "original")
    said = dry(estimate, f"--original={folder}", "--variant=other/model", *own)
    assert "models: other/model on the hub" in said
    assert "on the hub" not in dry(estimate, f"--original={folder}", f"--variant={folder}", *own)
    for missing, message in (("./nowhere", "'./nowhere' does not exist"), ("./empty", "config.json")):
        code, _, err = here(estimate, f"--original={folder}", f"--variant={missing}", *own, "--dry_run")
        assert code == 2 and message in err and err.count("\n") == 1, err
