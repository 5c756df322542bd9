"""Runs that are killed at random instants and begun again until they are done.

python -m tests.records.kills FOLDER KILLS SEED. In a process of its own, as it forks: its children append rollouts and
verdicts, and are ended by SIGKILL.
"""

import contextlib
import hashlib
import itertools
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lpe_jax.records import files, rollouts
from lpe_jax.records.ledger import Ledger
from lpe_jax.records.rollouts import RolloutStore
from tests.records import scenario

ROWS, EACH = 200, 5


def work(folder, say):
    """A run with a sampler's and a judge's part: says what is on disk at first and by and by."""
    rows = len(RolloutStore(folder / "rollouts")) if folder.exists() else 0
    with contextlib.closing(Ledger(folder.with_suffix(".sqlite"))) as ledger:
        say(f"found {rows} {ledger.spent(scenario.JUDGE)[0]}")

        def judge(begin, end):
            verdicts = dict(scenario.judged(scenario.rollout(i)) for i in range(begin, end))
            ledger.put(verdicts, {scenario.JUDGE: (end, 0, 0)})
            say(f"verdicts {end}")

        def commit(rows=None, **_):
            if rows is not None:
                say(f"rows {rows}")
                judge(rows - EACH, rows)

        judge(0, rows)
        scenario.draw(folder, rows=ROWS, each=EACH, commit=commit)


def verify(folder, say):
    """Ends well if everything is as in a run that nothing happened to."""
    store = RolloutStore(folder / "rollouts")
    found = [scenario.plain(r) for r in store.read()]
    assert found == [scenario.plain(scenario.rollout(i)) for i in range(ROWS)]
    assert len(store.index()) == ROWS
    expected = dict(scenario.judged(scenario.rollout(i)) for i in range(ROWS))
    with contextlib.closing(Ledger(folder.with_suffix(".sqlite"))) as ledger:
        assert ledger.get(expected) == expected and ledger.spent(scenario.JUDGE) == (ROWS, 0, 0)
    say("verified")


def child(part, folder, lines=None, seconds=0.0):
    """Forks a part, kills it so many seconds after so many lines, and returns what it said and how it ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            part(folder, lambda line: os.write(write, f"{line}\n".encode()))
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with open(read) as output:
        said = list(itertools.islice(output, lines))
        if lines is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        said += output
    return [line.split() for line in said], os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(root, kills, seed):
    """Until so many were killed. What was said to be on disk has to be there when the next one begins."""
    rng, killed, runs, wrong = np.random.default_rng(seed), 0, 0, []
    while killed < kills and not wrong:
        folder, promised, ended = root / f"run-{runs}", {"rows": 0, "verdicts": 0}, None
        while ended != 0 and not wrong:
            # Some before they have said anything, some after several shards.
            said, ended = child(work, folder, int(rng.integers(0, 12)), rng.exponential(0.005))
            killed += ended == -signal.SIGKILL
            if ended not in (0, -signal.SIGKILL):
                wrong.append([runs, killed, "a run could not go on"])
            if said:
                found = dict(zip(promised, map(int, said[0][1:]), strict=True))
                wrong += [[runs, killed, f"{name} are lost"] for name in promised if found[name] < promised[name]]
            promised |= {name: int(n) for name, n in said[1:]}
        if ended == 0 and child(verify, folder) != ([["verified"]], 0):
            wrong.append([runs, killed, "rows are lost, doubled or changed"])
        runs += 1
    return {"kills": killed, "runs": runs, "wrong": wrong}


def late(path, table, waiting=[]):  # noqa: B006
    """write_shard as it must not be: what is named is written when the next one is."""
    data = pa.BufferOutputStream()
    pq.write_table(table, data, compression="zstd", write_page_checksum=True)
    for earlier, held in waiting:
        files.write_whole(earlier, held)
    waiting[:] = [(path, data.getvalue())]
    return hashlib.sha256(waiting[0][1]).hexdigest()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # JAX is imported and does nothing here, so that a fork is safe
    place, count, seed, *careless = sys.argv[1:]
    if careless:
        rollouts.write_shard = late
    print(json.dumps(main(Path(place), int(count), int(seed))))
