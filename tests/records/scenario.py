"""A run without models: all that a run keeps on disk, written in many steps, the same whenever it is begun again."""

import contextlib
import dataclasses

import numpy as np

from lpe_jax.records.bank import BankStore, Rows, Shard
from lpe_jax.records.files import write_whole
from lpe_jax.records.ledger import Key, Ledger
from lpe_jax.records.prompts import prompts_digest, read_prompts, write_prompts
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import Run, check_folder
from lpe_jax.types import Message, Outcome, Prompt, Request, Rollout, Verdict

PROMPTS = [Prompt(f"p{i}", (Message("user", f"fold boat {i}"),), "crafts") for i in range(3)]
JUDGE = "lengths;thinking=False"
ASKED = {"prompt_texts": prompts_digest(PROMPTS)}
EXTENT = {"places": {prompt.id: number for number, prompt in enumerate(PROMPTS)}}
TABLE = "prompt_id,rollouts\np0,1\n"


def request(i):
    """The i-th of a run's requests."""
    return Request(f"p{i % 3}", 0.95 - 0.05 * (i // 3 % 4), i // 12)


def rollout(i):
    """What a request gives: a function of the request alone."""
    at, rng = request(i), np.random.default_rng(i)
    tokens = rng.integers(0, 99, rng.integers(0, 9), np.int32)
    sums = rng.normal(size=5).astype(np.float32).tolist()
    return Rollout(at.prompt_id, at.alpha, at.index, tokens, f"boat {i} " * (i % 4), "stop", *sums)


def judged(rollout):
    """The key of a rollout and its verdict."""
    prompt = PROMPTS[int(rollout.prompt_id[1:])]
    outcome = Outcome.COMPLIED if len(rollout.text) % 2 else Outcome.REFUSED
    return Key.of(JUDGE, prompt, rollout.text), Verdict(outcome, {"length": len(rollout.text)})


def shard(number):
    """One prompt of a bank."""
    rng, r = np.random.default_rng(number), 6
    rows = Rows(
        cell=np.arange(r) % 2,
        count=np.arange(r) + 1,
        outcome=np.array([Outcome.REFUSED, Outcome.COMPLIED] * 3, object),
        finish=np.array(["stop"] * r),
        length=np.arange(r),
        grid_logp=rng.normal(size=(r, 2)).astype(np.float32),
        text=[None] * r,
        **{
            f.name: rng.normal(size=r).astype(np.float32)
            for f in dataclasses.fields(Rows)
            if f.type == "np.ndarray" and f.name.startswith(("logp", "path"))
        },
    )
    return Shard(PROMPTS[number].id, (1.0, 0.0), rows, 10, 1)


def draw(folder, *, rows=24, each=4, part=0, bank=True, finish=True, commit=lambda **done: None):
    """Draws what is not there yet of so many rollouts, `each` to a shard, and all else that a run writes.

    Args:
      commit: told what is on disk for good.
    """
    with Run(folder, {"seed": 0, "procedure": {}}, EXTENT, ASKED, "--seed=0\n", part) as run:
        commit(record=True)
        write_prompts(folder, PROMPTS)
        store = RolloutStore(folder / "rollouts", part)
        try:
            todo = np.flatnonzero(store.index().find([request(i) for i in range(rows)]) < 0).tolist()
            for begin in range(0, len(todo), each):
                store.append([rollout(i) for i in todo[begin : begin + each]])
                store.flush()
                run.metric(rows=len(store))
                commit(rows=len(store))
        finally:
            store.flush()
        if bank:
            banked = BankStore(folder, part)
            for number in range(len(PROMPTS)):
                if number not in banked.entries:
                    banked.write(number, shard(number))
                    commit(bank=number + 1)
        if finish:
            write_whole(folder / "estimates.csv", TABLE)
            run.finish("estimates.csv")
            commit(finished=True)


def judge(folder, rows=24, part=0):
    """Verdicts on the rollouts that draw gives."""
    name = f"verdicts-{part}.sqlite" if part else "verdicts.sqlite"
    with contextlib.closing(Ledger(folder / name)) as ledger:
        for begin in range(0, rows, 5):
            verdicts = dict(judged(rollout(i)) for i in range(begin, min(begin + 5, rows)))
            ledger.put(verdicts, {JUDGE: (begin + 5, 100 * begin, begin)})


def plain(value):
    """Something to compare: arrays as lists, numbers to their last bit."""
    return str([item.tolist() if isinstance(item, np.ndarray) else item for item in vars(value).values()])


def everything(folder, rows=24):
    """All that a run that goes on, is judged anew or is evaluated would read, in no order of its own.

    Raises:
      RunError: as they would.
    """
    found = {"record": check_folder(folder)}
    for ending in ("started", "finished", "versions"):
        found["record"].pop(ending, None)
    found["prompts"] = read_prompts(folder, ASKED["prompt_texts"])
    store = RolloutStore(folder / "rollouts")
    found["rows"] = sorted(map(plain, store.read()))
    index = store.index()
    places = index.find([request(i) for i in range(rows)])
    found["index"] = sorted(map(plain, index.fetch(places[places >= 0])))
    bank = BankStore(folder)
    found["bank"] = [plain(bank.read(number).rows) for number in range(len(PROMPTS))]
    with contextlib.closing(Ledger(folder / "verdicts.sqlite")) as ledger:
        ledger.learn(folder.glob("verdicts-*.sqlite"))
        keys = [judged(rollout(i))[0] for i in range(rows)]
        found["verdicts"] = ledger.get(keys)
        found["spent"] = ledger.spent(JUDGE)
    return found
