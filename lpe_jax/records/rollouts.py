"""Rollouts on disk: Parquet shards, each whole or absent, and the manifest that says which of them count."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lpe_jax.errors import RunError
from lpe_jax.records.chain import Chain
from lpe_jax.records.files import CURE, part_files, part_name
from lpe_jax.records.index import Index
from lpe_jax.records.shard import MANIFEST, open_manifest, read_shard, write_shard
from lpe_jax.types import Rollout

FOLDER = "rollouts"
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("alpha", pa.float64()),
        ("index", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish", pa.string()),
        ("logp_path", pa.float32()),
        ("logp_original", pa.float32()),
        ("logp_variant", pa.float32()),
        ("path_score", pa.float32()),
        ("path_variance", pa.float32()),
    ]
)
# A shard is cut at whichever comes first, so that one in memory is never large, and little is lost by a crash.
_SHARD_ROWS = 4096
_SHARD_TOKENS = 1 << 20
_SHARD_SECONDS = 30.0


class RolloutStore:
    """The rollouts of a run: appended in batches, found by an index, read shard by shard.

    A shard is written under a temporary name, synced and renamed, and only then named in manifest.jsonl with its
    sha256. What the manifest does not name does not exist: a shard that a crash left behind is overwritten. Processes
    that share a run have a manifest and shards each, by names of their own, and read everybody's as they were at first.
    One thread appends; another may flush what it has appended.
    """

    def __init__(self, folder: Path, part: int = 0):
        """part: number of the process that writes.

        Raises:
          RunError: a manifest is damaged, or lacks what it once had.
        """
        self.folder, self.part = folder, part
        # Before the manifests: what is written in between is named in them.
        there = [path.name for path in folder.glob("*.parquet")]
        parts = {part, *part_files(folder / MANIFEST), *(of[0] for of in map(shard_of, there) if of)}
        self.manifests = {k: open_manifest(folder / part_name(MANIFEST, k)) for k in sorted(parts)}
        for k, own in self.manifests.items():
            # One shard may have been written and not yet named; before a second one is, the first has been.
            due, last = next_shard(_named(own), k), next_shard(there, k) - 1
            if last > due:
                raise RunError(
                    f"{own.path} ends before shard {due}, and there is a shard {last}: its last lines are missing; "
                    f"{CURE}"
                )
        self._own = self.manifests[part]
        self._next = next_shard(_named(self._own), part)
        self._lock = threading.RLock()
        self._buffer: list[Rollout] = []
        self._tokens = 0
        self._flushed = time.monotonic()
        self._index: Index | None = None

    def __len__(self) -> int:
        """Rows on disk."""
        return sum(self.rows(part) for part in self.manifests)

    def rows(self, part: int) -> int:
        """Rows on disk that process `part` wrote."""
        return sum(entry["rows"] for entry in self.manifests[part].lines) if part in self.manifests else 0

    def append(self, rollouts: Sequence[Rollout]) -> None:
        """Takes rollouts; they are on disk after the next flush, which comes by itself in time."""
        with self._lock:
            self._buffer += rollouts
            self._tokens += sum(len(rollout.tokens) for rollout in rollouts)
            full = len(self._buffer) >= _SHARD_ROWS or self._tokens >= _SHARD_TOKENS
            if full or time.monotonic() - self._flushed > _SHARD_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Puts what is buffered on disk as one shard.

        Raises:
          RunError: the disk does not take it; nothing is lost, and the next flush tries again.
        """
        with self._lock:
            if self._buffer:
                path, table = self.folder / part_name(f"{self._next:06d}.parquet", self.part), to_table(self._buffer)
                self._own.append(about(path.name, table) | {"sha256": write_shard(path, table)})
                self._next += 1
                self._buffer, self._tokens, self._index = [], 0, None
            self._flushed = time.monotonic()

    def index(self) -> Index:
        """Where every committed rollout lies.

        Raises:
          RunError: a shard is missing or is not the file the manifest names.
        """
        if self._index is None:
            self._index = Index([self._reader(*named) for named in self._shards()], from_table)
        return self._index

    def read(self) -> Iterator[Rollout]:
        """Every committed rollout, in the order it was appended, one process's after another's.

        Raises:
          RunError: as index.
        """
        for named in self._shards():
            yield from from_table(self._reader(*named)())

    def _shards(self):
        return [(m.path.name, entry) for m in self.manifests.values() for entry in m.lines]

    def _reader(self, name, entry):
        return lambda columns=None: read_shard(self.folder, entry, name, columns)


def about(name: str, table: pa.Table) -> dict[str, Any]:
    """What a line of the manifest says of a shard besides its sha256.

    Raises:
      ValueError: it is a table of something else.
    """
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{name} holds no rollouts")
    return {"shard": name, "rows": table.num_rows}


def shard_of(name: str) -> tuple[int, int] | None:
    """The process that a shard with this file name is of, and its number; None for other files."""
    found = re.fullmatch(r"(\d{6,})(?:-([1-9]\d*))?\.parquet", name)
    return None if found is None else (int(found[2] or 0), int(found[1]))


def next_shard(names: Iterable[str], part: int) -> int:
    """The number of a process's shard after those with these file names. Not their count: a repair leaves gaps."""
    return 1 + max((of[1] for of in map(shard_of, names) if of is not None and of[0] == part), default=-1)


def _named(own: Chain) -> list[str]:
    return [entry["shard"] for entry in own.lines]


def to_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """One row per rollout, by SCHEMA."""
    columns = {field.name: [getattr(r, field.name) for r in rollouts] for field in SCHEMA if field.name != "tokens"}
    ends = np.cumsum([0, *(len(r.tokens) for r in rollouts)], dtype=np.int32)
    values = np.concatenate([np.asarray(r.tokens, np.int32) for r in rollouts]) if rollouts else np.zeros(0, np.int32)
    return pa.table(columns | {"tokens": pa.ListArray.from_arrays(ends, values)}, schema=SCHEMA)


def from_table(table: pa.Table) -> Iterator[Rollout]:
    """The inverse of to_table."""
    columns = {name: table.column(name).to_pylist() for name in SCHEMA.names if name != "tokens"}
    tokens = table.column("tokens").combine_chunks()
    values, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
    for row in range(table.num_rows):
        fields = {name: column[row] for name, column in columns.items()}
        yield Rollout(tokens=np.array(values[offsets[row] : offsets[row + 1]], np.int32), **fields)
