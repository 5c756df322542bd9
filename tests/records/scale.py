"""How a store of rollouts does as it grows: python -m tests.records.scale FOLDER ROWS writes, opens and fetches.

First in shards as they are cut by rows, then in small ones as they are cut by time. Each part runs in a process of its
own, so that its memory is its own. Rollouts of 40 tokens and 200 characters.
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

PROMPTS, ALPHAS, BATCH = 200, 20, 64
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
    """Appends as a run does. Rows a second and megabytes of the first and the last tenth."""
    rollouts._SHARD_ROWS = shard_rows
    store, found = RolloutStore(folder), {}
    tenth = max(1, total // BATCH // 10)
    spent, rows = 0.0, 0
    for number, begin in enumerate(range(0, total, BATCH), start=1):
        made = batch(begin, min(BATCH, total - begin))
        began = time.perf_counter()
        store.append(made)
        spent, rows = spent + time.perf_counter() - began, rows + len(made)
        if number % tenth == 0:
            rate, spent, rows = rows / spent, 0.0, 0
            found.setdefault("rows a second at first", rate)
            found.setdefault("MB at first", memory()[0])
            found["rows a second at last"], found["MB at last"] = rate, memory()[0]
    store.flush()
    return found | {"bytes a row": sum(path.stat().st_size for path in folder.iterdir()) / total}


def read(folder, total, _):
    """Opens, finds, and fetches: 10,000 at random, and 10,000 in the order they were drawn in, 64 at a time."""
    small = RolloutStore(folder / "small")
    small.append(batch(0, 2))
    small.flush()
    small.index().fetch([0])  # what is imported and compiled late is not of this
    before, began, processor = memory()[0], time.perf_counter(), time.process_time()
    store = RolloutStore(folder)
    index = store.index()
    opened, opened_cpu, after = time.perf_counter() - began, time.process_time() - processor, memory()
    assert len(index) == len(store) == total
    some = np.random.default_rng(0).integers(0, total, min(total, 10_000)).tolist()
    began = time.perf_counter()
    got = index.fetch(index.find([request(i) for i in some]))
    at_random = time.perf_counter() - began
    assert all((r.prompt_id, r.alpha, r.index) == (*vars(request(i)).values(),) for r, i in zip(got, some, strict=True))
    began = time.perf_counter()
    for begin in range(0, len(some), 64):
        index.fetch(index.find([request(i) for i in range(begin, min(begin + 64, total))]))
    in_order = time.perf_counter() - began
    return {
        "shards": sum(len(m.lines) for m in store.manifests.values()),
        "seconds to open": opened,
        "of a processor": opened_cpu,
        "seconds for 10,000 at random": at_random,
        "seconds for 10,000 in order": in_order,
        "MB before": before,
        "MB more when open": after[0] - before,
        "MB more at most": memory()[1] - before,
    }


def alone(part, folder, total, shard_rows=4096):
    """One part in a process of its own."""
    command = [sys.executable, "-m", "tests.records.scale", str(folder), str(total), part, str(shard_rows)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(place, total):
    """Prints what both come to."""
    for rows, count in ((4096, total), (64, min(total, 640_000))):
        where = Path(place) / str(rows)
        print(f"{count:,} rollouts, {rows:,} to a shard")
        for part in ("write", "read"):
            for name, value in alone(part, where, count, rows).items():
                print(f"  {name}: {value}", flush=True)


if __name__ == "__main__":
    place, count, *rest = sys.argv[1:]
    if rest:
        print(json.dumps({"write": write, "read": read}[rest[0]](Path(place), int(count), int(rest[1]))))
    else:
        main(place, int(count))
