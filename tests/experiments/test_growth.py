"""One run folder gone on with: more may be asked for, anything else that could change a result is refused by name."""

import csv
import json
import re
import shutil

import pytest
from absl import flags as absl_flags

from experiments import estimate, judges, methods, outputs, quality, vocabulary
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import less, more
from tests.helpers import hf_model, save_hf_pair, save_tokenizer
from tests.programs import run_in, told_by

JUDGES = """
def odd(prompt, response):
    return len(response.encode()) % 2 == 1

def few(prompt, response):
    return len(response.encode()) < 11
"""
PROMPTS = "fold a boat\nwhistle at a gate\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with two checkpoints, two prompts and two judges."""
    folder = tmp_path_factory.mktemp("place")
    save_hf_pair(folder, num_hidden_layers=1)
    (folder / "prompts.txt").write_text(PROMPTS)
    (folder / "more.txt").write_text(PROMPTS + "hum the third verse, and then hum it again until it is dark\n")
    (folder / "growing.py").write_text(JUDGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def here(place, monkeypatch, capsys):
    """The program in this process; its exit status, output and errors."""

    def call(*flags, env=()):
        with monkeypatch.context() as patch:
            for name, value in dict(env).items():
                patch.setenv(name, value)
            return told_by(capsys, place, estimate.main, *flags)

    return call


def given(place, **changes):
    values = {"original": place / "original", "variant": place / "variant", "prompts": place / "prompts.txt"}
    values |= {"judge": "growing:odd", "max_new_tokens": 8, "batch_size": 16, "figures": False} | changes
    return [f"--{name}={value}" for name, value in values.items()]


def rollouts(out):
    return {(r.prompt_id, r.alpha, r.index): (r.tokens.tolist(), r.text) for r in RolloutStore(out / "rollouts").read()}


def table(out):
    with open(out / "estimates.csv", newline="") as file:
        return list(csv.DictReader(file))


LPE = {"method": "lpe", "n_search": 4, "n_fit": 6, "alphas": "0.9,0.5,0.1", "naive_check": 0}
GROWTH = {
    "naive": ({"method": "naive", "n_naive": 20}, {"n_naive": 50}, "n from 20 to 50"),
    "fit": (LPE, {"n_fit": 9}, "n_fit from 6 to 9"),
    "search": (LPE, {"n_search": 5}, "n_search from 4 to 5"),
    "alphas": (LPE, {"alphas": "0.9,0.7,0.5,0.1"}, "1 more alphas"),
    "check": (LPE, {"naive_check": 10}, "naive_check from 0 to 10"),
    "budget": ({"method": "path", "budget": 60, "naive_check": 0}, {"budget": 80}, "budget from 60 to 80"),
    "prompts": ({"method": "naive", "n_naive": 20}, {"prompts": "more.txt"}, "1 more prompts"),
    "limit": ({"method": "naive", "n_naive": 20, "limit": 1}, {"limit": 2}, "1 more prompts"),
}


@pytest.mark.parametrize("case", GROWTH)
def test_a_run_grows(place, here, case):
    """To what a new one would have been, from what it has; and it does not shrink again."""
    first, change, words = GROWTH[case]
    if "prompts" in change:
        # A longer prompt compiles another program: what is stored is not drawn again for that.
        change = {"prompts": place / change["prompts"]}
    begun, grown = given(place, **first), given(place, **first | change)
    out, fresh = place / f"grows-{case}", place / f"grown-{case}"
    assert here(*begun, f"--out={out}")[0] == 0
    before, kept = rollouts(out), {p: p.read_bytes() for p in (out / "rollouts").glob("*.parquet")}
    code, said, err = here(*grown, f"--out={out}")
    assert code == 0, err
    assert "the run grows: " in said and words in said and "going on from" in said
    assert here(*grown, f"--out={fresh}")[0] == 0
    assert (
        before.items() <= rollouts(out).items()
        and kept.items() <= {p: p.read_bytes() for p in (out / "rollouts").glob("*.parquet")}.items()
    )
    if "prompts" not in change:
        assert table(out) == table(fresh) and rollouts(fresh).items() <= rollouts(out).items()
    assert here(*grown, f"--out={out}")[1].endswith("Another --seed or --out draws anew.\n")
    code, _, err = here(*begun, f"--out={out}")
    assert code == 2 and "can grow, and not lose what it has: " in err


def test_what_is_less_and_what_is_more():
    before = {"n": 5, "alphas": [0.9, 0.5], "prompts": {"a": "x", "b": "y"}}
    assert less(before, before) == "" == more(before, before)
    now = {"n": 6, "alphas": [0.9, 0.7, 0.5], "prompts": {"b": "y", "a": "x", "c": "z"}}
    assert less(before, now) == "" and more(before, now) == "1 more alphas, n from 5 to 6, 1 more prompts"
    assert less(now, before) == 'alphas (without 0.7), n (there 6, now 5), prompts (without "c")'
    assert less(before, now | {"prompts": {"a": "x", "b": "other"}}) == 'prompts (with another "b")'
    assert less(before, {"alphas": [0.9, 0.5], "prompts": before["prompts"]}) == "n (there 5, now null)"


# A flag, another value of it for a run of LPE, and by which name that is refused; or None where it changes nothing.
FLIPS = {
    "original": ("other", "original_weights"),
    "variant": ("other", "variant_weights"),
    "prompts": ("edited.txt", "prompts"),
    "limit": (1, "prompts"),
    "seed": (1, "seed"),
    "judge": ("growing:few", "judge"),
    "thinking": (True, "thinking"),
    "max_new_tokens": (9, "sampling"),
    "temperature": (0.9, "sampling"),
    "top_k": (5, "sampling"),
    "top_p": (0.9, "sampling"),
    "batch_size": (8, "batch_size"),
    "dtype": ("bfloat16", "dtype"),
    "pair_mode": ("copies", "pair_mode"),
    "sums": (False, "sums"),
    "judge_reasoning": (True, "judge_reasoning"),
    "judge_sensitivity": ("9/10", "judge_quality"),
    "judge_specificity": ("9/10", "judge_quality"),
    "method": ("naive", "method"),
    "naive_check": (5, "naive_check"),
    "n_search": (3, "n_search"),
    "n_fit": (5, "n_fit"),
    "alphas": ("0.9,0.1", "alphas"),
    "threshold": (0.4, "procedure"),
    "fallback_rate": (1e-5, "procedure"),
    "reuse_search": (True, "procedure"),
    "drop_common": (False, "procedure"),
    "fit_to_one": (True, "procedure"),
    "no_start": ("fallback", "procedure"),
    "regression": ("weighted", "procedure"),
    "clip": (False, "procedure"),
    # Without effect on this result: the same table comes of it.
    "functional_category": ("all", None),
    "attention": ("einsum", None),
    "judge_key_env": ("NOBODY", None),
    "judge_again": (True, None),
    "judge_budget": ("5calls", None),
    "judge_prices": ("1,2", None),
    "judge_connections": (3, None),
    "judge_timeout": (5.0, None),
    "judge_batch_size": (3, None),
    "figures": (True, None),
    "figure_formats": ("pdf", None),
    "report_rollouts": (0, None),
    "verify": (3, None),
    "grace": (3.0, None),
    "weights_cache": ("kept", None),
}
# Of other methods, of several processes, of what is not here, and where the run is.
ELSEWHERE = {
    *("budget", "width", "n_naive", "alpha", "amplification", "out", "model_parallel"),
    *("coordinator", "num_processes", "process_id", "distributed"),
    # Refused with a judge that has no use for them; part of the identity of one that has.
    *("judge_template", "judge_mapping"),
    # Nothing is run, and no folder is opened.
    *("dry_run", "tokens_per_second", "plan"),
}


def test_every_flag_is_thought_of():
    """Whoever adds a flag says here whether it belongs to a run's identity."""
    modules = (methods, vocabulary, judges, quality, outputs)
    own = {flag.name for m in modules for flag in absl_flags.FLAGS.flags_by_module_dict()[m.__name__]}
    assert own == FLIPS.keys() | ELSEWHERE


BEGUN = LPE | {"naive_check": 10}


@pytest.fixture(scope="module")
def begun(place):
    """The run whose flags are flipped, with files for some of the flips."""
    model = hf_model(1, vocab_size=272, num_hidden_layers=1)
    end = save_tokenizer(place / "other")
    model.generation_config.eos_token_id = [end, end - 2]
    model.save_pretrained(place / "other")
    (place / "edited.txt").write_text(PROMPTS.replace("gate", "lake"))
    (place / "rubric.txt").write_text("{prompt} {response}")
    assert run_in(place, estimate.main, *given(place, **BEGUN), "--out=begun") == 0
    return place / "begun"


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flag", [flag for flag, (_, name) in FLIPS.items() if name])
def test_any_other_flag_is_refused_by_name(place, here, begun, flag):
    value, name = FLIPS[flag]
    changes = {flag: place / value if flag in ("original", "variant", "prompts") else value}
    if flag.startswith("judge_s"):  # each takes the other
        changes = {"judge_sensitivity": "9/10", "judge_specificity": "9/10"}
    before = everything(begun)
    code, _, err = here(*given(place, **changes if flag == "method" else BEGUN | changes), f"--out={begun}")
    assert code == 2 and "Traceback" not in err
    assert re.search(rf" {name}(\.\w+)? \(", err) and ("there" in err or "without" in err or "another" in err)
    assert everything(begun) == before


def test_flags_without_effect_have_none(place, here, begun):
    """All of them at once, and all that is made of the rollouts is made again."""
    copy = begun.with_name("same")
    shutil.copytree(begun, copy)
    (copy / "estimates.csv").unlink()
    changes = {flag: value for flag, (value, name) in FLIPS.items() if name is None}
    code, _, err = here(*given(place, **BEGUN | changes), f"--out={copy}")
    assert code == 0, err
    assert table(copy) == table(begun) and rollouts(copy) == rollouts(begun)


def test_a_run_that_grew_says_so_for_good(place):
    record = json.loads((place / "grows-naive" / "run.json").read_text())
    assert record["extent"]["n"] == 50 and record["asked"]["n_naive"] == 50 and record["status"] == "finished"
    assert "--n_naive=50" in (place / "grows-naive" / "flags.txt").read_text()
