"""How a store of rollouts does as it grows: python -m tests.records.scale FOLDER ROWS writes, opens and fetches.

Each part runs in a process of its own, so that its memory is its own. Rollouts of 40 tokens and 200 characters.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lpe_jax.records import rollouts
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.types import Request, Rollout

PROMPTS, ALPHAS, BATCH = 200, 20, 256
WORDS = [f"{a}{b}{c}" for a in ("bo", "ga", "wi", "ru") for b in ("at", "en", "is", "um", "ol") for c in "abcdefgh"]


def request(i):
    """What the i-th rollout was asked for as: prompts side by side, alpha after alpha."""
    return Request(f"prompt-{i % PROMPTS}", 0.95 - 0.05 * (i // PROMPTS % ALPHAS), i // (PROMPTS * ALPHAS))


def batch(begin, n):
    """Rollouts begin, begin + 1, ...; what they hold is random and fixed by where they begin."""
    rng = np.random.default_rng(begin)
    tokens = rng.integers(0, 150_000, (n, 40), np.int32)
    words, sums = rng.integers(0, len(WORDS), (n, 50)), rng.normal(size=(n, 5)).astype(np.float32)
    made = []
    for i in range(n):
        at, text = request(begin + i), " ".join(WORDS[w] for w in words[i])[:200]
        made.append(Rollout(at.prompt_id, at.alpha, at.index, tokens[i], text, "stop", *map(float, sums[i])))
    return made


def memory():
    """Megabytes: now, and at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def write(folder, total, shard_rows):
    """Appends as a run does. Rows a second and memory of the first and the last tenth."""
    rollouts._SHARD_ROWS = shard_rows
    store, found = RolloutStore(folder), {}
    tenth = max(1, total // BATCH // 10)
    spent, rows = 0.0, 0
    for number, begin in enumerate(range(0, total, BATCH)):
        made = batch(begin, min(BATCH, total - begin))
        began = time.perf_counter()
        store.append(made)
        spent, rows = spent + time.perf_counter() - began, rows + len(made)
        if number % tenth == tenth - 1:
            found.setdefault("first", (rows / spent, memory()[0]))
            found["last"], spent, rows = (rows / spent, memory()[0]), 0.0, 0
    store.flush()
    return found | {"bytes": sum(path.stat().st_size for path in folder.iterdir())}


def read(folder, total, _):
    """Opens, finds, and fetches: 10,000 at random, 10,000 in the order they were drawn in, 64 at a time."""
    RolloutStore(folder / "nothing").index()  # what is imported late is not of this
    empty, began = memory()[0], time.perf_counter()
    store = RolloutStore(folder)
    index = store.index()
    opened, after = time.perf_counter() - began, memory()
    assert len(index) == len(store) == total
    some = np.random.default_rng(0).integers(0, total, min(total, 10_000)).tolist()
    began = time.perf_counter()
    got = index.fetch(index.find([request(i) for i in some]))
    at_random = time.perf_counter() - began
    assert all(
        (r.prompt_id, r.alpha, r.index) == tuple(vars(request(i)).values()) for r, i in zip(got, some, strict=True)
    )
    began = time.perf_counter()
    for begin in range(0, len(some), 64):
        index.fetch(index.find([request(i) for i in range(begin, min(begin + 64, total))]))
    in_order = time.perf_counter() - began
    return {
        "shards": sum(len(m.entries) for m in store.manifests.values()),
        "open": opened,
        "random": at_random,
        "order": in_order,
        "imports": empty,
        "index": after[0] - empty,
        "most": after[1] - empty,
    }


def alone(part, folder, total, shard_rows=4096):
    """One part in a process of its own."""
    command = [sys.executable, "-m", "tests.records.scale", str(folder), str(total), part, str(shard_rows)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    place, count, *rest = sys.argv[1:]
    if rest:
        print(json.dumps({"write": write, "read": read}[rest[0]](Path(place), int(count), int(rest[1]))))
    else:
        for rows in (4096, 100):
            where = Path(place) / str(rows)
            total = int(count) if rows == 4096 else min(int(count), 1_000_000)
            print(rows, alone("write", where, total, rows), alone("read", where, total), flush=True)
