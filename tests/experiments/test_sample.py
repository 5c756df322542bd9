"""The grid sweep on a small random world: both samplers, interrupted and not, and as a user runs it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from lpe_jax import dry, shards
from lpe_jax import sweep as sweeping
from lpe_jax.decoding import verify
from lpe_jax.errors import RunError, UserError
from lpe_jax.loading import load
from lpe_jax.models.checkpoint import save_checkpoint
from lpe_jax.models.qwen3 import Qwen3
from lpe_jax.models.weights import leaves_from_module
from lpe_jax.records.bank import BankStore, read_bank
from lpe_jax.records.check import Check, held
from lpe_jax.reporting.bill import Pace
from lpe_jax.sweep import Sweep
from lpe_jax.tiny.tokenizer import write_tokenizer
from lpe_jax.types import Outcome
from tests.helpers import tiny_config

ROOT = Path(__file__).parents[2]
WORDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "yes", "sorry", "maybe")
EOS = 2
# Chi-square tests fail by chance once in 10,000 runs each; seeds are fixed.
LEVEL = 1e-4
JUDGE = """
def yes(prompt, response):
    words = response.split()
    return None if not words else words[0] == "yes" and "sorry" not in words
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A world of three prompts, and a folder with a judge, which is on the path."""
    place = tmp_path_factory.mktemp("place")
    folder = place / "world"
    config = tiny_config(vocab_size=12, max_position_embeddings=64)
    for name in ("original", "variant"):
        model = Qwen3(config, rngs=nnx.Rngs(0))
        model.lm_head[...] = 10 * model.lm_head[...]
        if name == "variant":
            for layer in model.layers:
                layer.o_proj[...] = -4 * jnp.asarray(layer.o_proj[...])
        leaves = {k: np.asarray(v) for k, v in leaves_from_module(model).items()}
        save_checkpoint(model.config, leaves, folder / name)
        write_tokenizer(WORDS, folder / name)
        (folder / name / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    lines = [{"id": f"p{i}", "prompt": word} for i, word in enumerate(WORDS[6:])]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "words.py").write_text(JUDGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        # These responses are so short that nothing would be settled early.
        patch.setattr(shards, "_JUDGE_EVERY", 1)
        yield place


BASE = Sweep(
    original=None,
    variant=None,
    prompts=None,
    functional_category="standard",
    limit=2,
    judge="words:yes",
    thinking=False,
    seed=0,
    max_new_tokens=5,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    batch_size=32,
    dtype="float32",
    model_parallel=1,
    world=None,
    alphas=(1.0, 0.4, 0.0),
    n=300,
    n_naive=500,
    processes=1,
    share_prefixes=True,
    grid_logps=True,
    texts=False,
)


def sample(place, out, **changes):
    """A sweep within this process; returns its folder."""
    sweep = dataclasses.replace(BASE, world=str(place / "world"), **changes)
    asked = {k: v for k, v in dataclasses.asdict(sweep).items() if k != "processes"}
    return sweeping.run(sweep, out=str(place / out), asked=asked, flagfile="")


@pytest.fixture(scope="module")
def tree(place):
    return sample(place, "tree")


@pytest.fixture(scope="module")
def plain(place):
    return sample(place, "plain", share_prefixes=False)


def same(a, b):
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=f.name in ("truth", "truth_error"))
        for f in dataclasses.fields(a)
    )


def agree(*tables):
    """p-value of two rows of counts being from one distribution, columns of nothing left out."""
    table = np.array(tables)
    return stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue


def test_the_two_samplers_agree(tree, plain):
    """Outcomes of each of six cells and the extra rollouts of both prompts, log p's mean and spread beside."""
    a, b = read_bank(tree), read_bank(plain)
    assert a.prompt_ids == b.prompt_ids == ("p0", "p1")
    assert 0.02 < a.complied.mean() < 0.98 and not a.scored.all(), "else nothing is compared"
    for cell in np.ndindex(2, 3):
        counts = [[x.complied[cell].sum(), (~x.scored[cell]).sum(), 300 - x.complied[cell].sum()] for x in (a, b)]
        assert agree(*([c, u, rest - u] for c, u, rest in counts)) > LEVEL
        for name in ("logp", "path_score", "path_variance", "tokens"):
            # Rounded, as the two round one and the same response differently and many rollouts are alike.
            x, y = (getattr(bank, name)[cell].reshape(300, -1).T.round(3) for bank in (a, b))
            for one, other in zip(x, y, strict=True):
                assert stats.ks_2samp(one, other).pvalue > LEVEL, name
    for i in range(2):
        rows = [[x.naive_complied[i], x.naive_scored[i] - x.naive_complied[i], 500 - x.naive_scored[i]] for x in (a, b)]
        assert agree(*rows) > LEVEL


@pytest.mark.parametrize("which", ["tree", "plain"])
def test_sums_fit_each_other(which, request):
    folder = request.getfixturevalue(which)
    store = BankStore(folder)
    for number in range(2):
        rows = store.read(number).rows
        assert np.allclose(rows.grid_logp[:, 0], rows.logp_original, atol=1e-4)
        assert np.allclose(rows.grid_logp[:, 2], rows.logp_variant, atol=1e-4)
        assert np.allclose(rows.grid_logp[np.arange(len(rows.cell)), rows.cell], rows.logp_path, atol=1e-4)
        assert np.array_equal(np.bincount(rows.cell, rows.count), [300, 300, 300])
        assert (rows.count == 1).all() == (which == "plain")
        assert rows.text == [None] * len(rows.text), "texts are left out unless they are asked for"


def test_a_rule_that_settles_early_changes_no_rate(place):
    """The tiny judge refuses at "sorry" and leaves the rest unscored; the tree stops there, the sampler goes on."""
    folders = [sample(place, f"tiny-{tree}", judge="tiny", share_prefixes=tree) for tree in (True, False)]
    a, b = map(read_bank, folders)
    assert not a.complied.any() and 0.02 < a.scored.mean() < 0.98
    for cell in np.ndindex(2, 3):
        assert agree(*([x.scored[cell].sum(), (~x.scored[cell]).sum()] for x in (a, b))) > LEVEL
    assert agree(*([x.naive_scored.sum(), 1000 - x.naive_scored.sum()] for x in (a, b))) > LEVEL
    rows = BankStore(folders[0]).read(0).rows
    assert (rows.outcome[rows.finish == "decided"] == Outcome.REFUSED).all() and (rows.finish == "decided").any()


@pytest.mark.parametrize("which", ["tree", "plain"])
def test_a_sweep_that_was_killed_goes_on(which, request, place, monkeypatch, capsys):
    whole = request.getfixturevalue(which)
    write, changes = BankStore.write, {"share_prefixes": which == "tree"}

    def killed(store, number, shard):
        write(store, number, shard)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BankStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            sample(place, f"{which}-killed", **changes)
    with pytest.raises(RunError, match="not finished"):
        read_bank(place / f"{which}-killed")
    resumed = sample(place, f"{which}-killed", **changes)
    assert "going on from 1 prompts" in capsys.readouterr().out
    assert same(read_bank(whole), read_bank(resumed))
    files = {path: path.read_bytes() for path in resumed.rglob("*") if path.is_file()}
    sample(place, f"{which}-killed", **changes)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"n \(there 300, now 301\)"):
        sample(place, f"{which}-killed", n=301, **changes)
    assert {path: path.read_bytes() for path in resumed.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("which", ["tree", "plain"])
def test_a_bank_grows_by_prompts(which, request, place, capsys):
    """Wherever the new ones stand in the file; what is there stays, and it does not lose what it has."""
    whole, changes = request.getfixturevalue(which), {"share_prefixes": which == "tree"}
    lines = (place / "world" / "prompts.jsonl").read_text().splitlines()
    first, both = place / f"{which}-first.jsonl", place / f"{which}-both.jsonl"
    first.write_text(lines[1] + "\n")
    both.write_text("\n".join(lines[:2]) + "\n")
    folder = sample(place, f"{which}-grows", prompts=str(first), **changes)
    kept = {path: path.read_bytes() for path in folder.glob("bank/*.parquet")}
    assert len(kept) == 1
    sample(place, f"{which}-grows", prompts=str(both), **changes)
    assert "the bank grows: 1 more prompts\ngoing on from 1 prompts" in capsys.readouterr().out
    assert kept.items() <= {path: path.read_bytes() for path in folder.glob("bank/*.parquet")}.items()
    grown, fresh = read_bank(folder), read_bank(whole)
    assert grown.prompt_ids == ("p1", "p0")
    for field in dataclasses.fields(fresh):
        a, b = getattr(grown, field.name), getattr(fresh, field.name)
        if field.name not in ("alpha", "prompt_ids"):
            assert np.array_equal(a[::-1], b, equal_nan=field.name in ("truth", "truth_error")), field.name
    assert Check(folder).findings == []
    sample(place, f"{which}-grows", prompts=str(both), **changes)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RunError, match=r'can grow, and not lose what it has: .*without "p0"'):
        sample(place, f"{which}-grows", prompts=str(first), **changes)


def test_a_bank_that_grew_meanwhile_is_not_taken_for_what_it_was(place, tree, monkeypatch):
    """A command that read the order of prompts before another one added some is refused, and nothing is changed."""
    folder = place / "meanwhile"
    shutil.copytree(tree, folder)
    prompts = place / "all.jsonl"
    prompts.write_text((place / "world" / "prompts.jsonl").read_text())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(sweeping, "_in_order", lambda folder, prompts: ["p1", "p0", "p2"])
    with pytest.raises(RunError, match=r'can grow, and not lose what it has: places \(with another "p'):
        sample(place, "meanwhile", prompts=str(prompts), limit=3)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_crash_as_a_bank_begins_to_grow_is_no_damage(place, tree, monkeypatch):
    """The record tells of more prompts than are written down."""
    folder = place / "crashed"
    shutil.copytree(tree, folder)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweeping, "write_prompts", crash)
        sample(place, "crashed", limit=3)
    assert all(finding.harmless for finding in Check(folder).findings)
    sample(place, "crashed", limit=3)
    assert Check(folder).findings == [] and read_bank(folder).prompt_ids == ("p0", "p1", "p2")


@pytest.mark.parametrize("change", ["category", "turns"])
def test_prompts_that_are_others_to_a_judge_are_others(place, tree, change):
    """A judge may read what the models are not shown."""
    folder, prompts = place / f"another-{change}", place / f"another-{change}.jsonl"
    shutil.copytree(tree, folder)
    rows = [json.loads(line) for line in (place / "world" / "prompts.jsonl").read_text().splitlines()]
    rows[0] |= {"category": "another"} if change == "category" else {"prompt": f" {rows[0]['prompt']} "}
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match=r'prompts \(with another "p0"\)'):
        sample(place, folder.name, prompts=str(prompts))


def test_a_damaged_bank_is_repaired_and_sampled_again(place, tree):
    """The damaged prompt alone is drawn again, and the bank is what it was."""
    run = place / "damaged"
    shutil.copytree(tree, run)
    (run / "bank" / "000001.parquet").write_bytes(b"PAR1")
    with held(run, to_write=True):
        found = Check(run)
        assert [finding.path for finding in found.findings] == ["bank/000001.parquet"]
        found.mend()
    whole = (run / "bank" / "000000.parquet").stat().st_mtime_ns
    assert sample(place, "damaged") == run
    assert (run / "bank" / "000000.parquet").stat().st_mtime_ns == whole
    for field in dataclasses.fields(read_bank(tree)):
        np.testing.assert_array_equal(getattr(read_bank(run), field.name), getattr(read_bank(tree), field.name))
    with held(run, to_write=False):
        assert Check(run).findings == []
        shutil.rmtree(run / "bank")
        assert [finding.wrong for finding in Check(run).findings] == ["lacks 2 prompts of a finished run"]


def test_a_prompt_does_not_depend_on_the_others(place, tree):
    alone = read_bank(sample(place, "alone", limit=1))
    assert np.array_equal(alone.logp[0], read_bank(tree).logp[0])
    other = read_bank(sample(place, "seed", limit=1, seed=1))
    assert not np.array_equal(alone.logp[0], other.logp[0])


def test_texts_of_compliant_rows_only(place):
    rows = BankStore(sample(place, "texts", limit=1, texts=True)).read(0).rows
    for outcome, text in zip(rows.outcome, rows.text, strict=True):
        assert (text is not None) == (outcome == Outcome.COMPLIED)
        assert text is None or text.startswith("yes")


def test_truth_joins_where_it_was_sampled_alike(place):
    """The table is taken with the same weights and settings, and left with any other."""
    table = {"log10_rate": -2.5, "se_log10": 0.1, "ess": 5.0, "log10_bank": -2.5, "se_log10_bank": 0.1}
    table |= dict.fromkeys(("naive_complied", "naive_unscored", "naive_rollouts"), 0)
    table |= dict.fromkeys(("check_complied", "check_rollouts"), 0)
    loaded = load(*(str(place / "world" / name) for name in ("original", "variant")), dtype="float32")
    settings = {"temperature": 1.0, "max_new_tokens": 5}
    truth = place / "world" / "truth.json"
    truth.write_text(json.dumps({"world": loaded.identity, "settings": settings, "prompts": {"p0": table}}))
    quick = {"judge": "tiny", "n": 5, "n_naive": 0}
    try:
        bank = read_bank(sample(place, "truth", **quick))
        assert bank.truth[0] == -2.5 and bank.truth_error[0] == 0.1 and np.isnan(bank.truth[1])
        assert bank.naive_scored.tolist() == [0, 0]
        assert np.isnan(read_bank(sample(place, "hot", temperature=0.9, **quick)).truth).all()
        assert np.isnan(read_bank(sample(place, "words", **(quick | {"judge": "words:yes"}))).truth).all()
    finally:
        truth.unlink()


def shell(place, *flags):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{place}"}
    command = [sys.executable, "-m", "experiments.sample", f"--world={place / 'world'}", *flags]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_as_a_user_runs_it_with_two_processes(place, tree):
    flags = ["--limit=2", "--alphas=1,0.4,0", "--n=300", "--n_naive=500", "--max_new_tokens=5", "--batch_size=32"]
    done = shell(place, "--judge=words:yes", *flags, "--out=shell")
    assert done.returncode == 0, done.stderr
    assert "2/2 p" in done.stdout and "finished in" in done.stdout
    a, b = read_bank(place / "shell"), read_bank(tree)
    for name in ("scored", "complied", "tokens", "naive_scored", "naive_complied"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    # One thread or several may sum in another order.
    for name in ("logp", "path_score", "path_variance"):
        assert np.allclose(getattr(a, name), getattr(b, name), atol=1e-4), name
    again = shell(place, f"--flagfile={place / 'shell' / 'flags.txt'}", "--out=shell", "--processes=1")
    assert again.returncode == 0 and "nothing to do" in again.stdout


WRONG = {
    "not from 1": ({"alphas": "0.9,0.5"}, "--alphas must be finite and strictly decreasing from 1"),
    "not numbers": ({"alphas": "1,x"}, "--alphas=1,x must be numbers"),
    "n=0": ({"n": 0}, "n"),
    "truncation": ({"top_k": 3}, "--noshare_prefixes with --top_k"),
    "kernel": ({"attention": "pallas"}, "--noshare_prefixes with --attention=pallas"),
    "two worlds": ({"original": "a", "variant": "b", "prompts": "c"}, "--world names both models"),
    "temperature": ({"temperature": 0}, "--temperature"),
    "no world": ({"world": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(case, place):
    changes, message = WRONG[case]
    done = shell(place, *(f"--{name}={value}" for name, value in changes.items()), "--out=wrong")
    assert done.returncode != 0 and message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr and not (place / "wrong").exists()


def test_what_computes_attention_is_part_of_a_run(place, capsys):
    """A kernel gives the counts that XLA's products give and sums that verify; neither goes on with the other's run."""
    quick = {"share_prefixes": False, "n": 20, "n_naive": 20, "limit": 1}
    by_kernel = sample(place, "kernel", **quick, attention="interpret", verify=5)
    assert "the sums of up to 5 rollouts of each of 1 prompts are within" in capsys.readouterr().out
    by_products = sample(place, "products", **quick)
    a, b = read_bank(by_kernel), read_bank(by_products)
    for name in ("scored", "complied", "tokens", "naive_scored", "naive_complied"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    records = [json.loads((folder / "run.json").read_text()) for folder in (by_kernel, by_products)]
    assert [record["settings"]["attention"] for record in records] == ["pallas", None]
    with pytest.raises(RunError, match="attention .there .pallas., now null"):
        sample(place, "kernel", **quick)
    with pytest.raises(UserError, match="--attention=pallas takes an NVIDIA GPU"):
        sample(place, "refused", **quick, attention="pallas")
    assert not (place / "refused").exists()


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_verified_as_it_is_drawn(place, monkeypatch, capsys, share_prefixes):
    more = {"share_prefixes": share_prefixes, "n": 20, "n_naive": 0, "limit": 1}
    sample(place, f"verified-{share_prefixes}", **more, verify=5)
    assert "the sums of up to 5 rollouts of each of 1 prompts are within" in capsys.readouterr().out
    monkeypatch.setitem(verify.TOLERANCE, "float32", 0.0)
    with pytest.raises(RunError, match="nothing drawn with it is to be trusted"):
        sample(place, f"wrong-{share_prefixes}", **more, verify=5)
    sample(place, f"unverified-{share_prefixes}", **more)


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_a_sweep_is_known_beforehand(place, share_prefixes):
    """What a dry run says is what is then drawn, and told of in status.json; a judge of one's own is not run for it."""
    sweep = dataclasses.replace(
        BASE, world=str(place / "world"), n=5, n_naive=10, max_new_tokens=5, share_prefixes=share_prefixes
    )
    out = place / f"known-{share_prefixes}"
    asked = {k: v for k, v in dataclasses.asdict(sweep).items() if k != "processes"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lpe_jax.judging.registry.load_predicate", None)
        said = "\n".join(dry.of_sweep(sweep, out=str(out), asked=asked, speed=Pace(10.0, "--tokens_per_second")))
    assert "rollouts: 50, of 2 prompts" in said and "tokens: at most 250," in said and "time: at most 25 s" in said
    assert not out.exists()
    sweeping.run(sweep, out=str(out), asked=asked, flagfile="")
    now = json.loads((out / "status.json").read_text())
    assert (now["state"], now["rollouts"], now["judged"], now["prompts_done"]) == ("finished", 50, 50, 2)
    assert 0 < now["tokens"] <= 250 and now["hits"] + now["unscored"] <= 50
    known = dataclasses.replace(sweep, limit=3)
    said = "\n".join(dry.of_sweep(known, out=str(out), asked=asked, speed=None))
    assert "there: 50 rollouts; 2 of 3 prompts are done\nrollouts: 25, of 1 prompt" in said
    assert "time: unknown; give --tokens_per_second" in said


def _die(*_):
    os.kill(os.getpid(), 9)


def test_a_child_that_is_killed_is_a_sentence():
    with pytest.raises(RunError, match="a process that draws was killed, perhaps for want of memory"):
        list(shards._shared_out(_die, {0: (1,), 1: (2,)}, 2, lambda: None))


PARENT = """
import os, sys, time
from lpe_jax import shards
def sleep(*_):
    print(os.getpid(), flush=True)
    time.sleep(120)
if __name__ == "__main__":
    list(shards._shared_out(sleep, {0: (1,), 1: (2,)}, 2, lambda: None))
"""


def test_no_child_outlives_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, "parent.py"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
