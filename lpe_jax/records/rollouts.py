"""Rollouts on disk: Parquet shards, each whole or absent, and the manifest that says which of them count."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lpe_jax.errors import RunError
from lpe_jax.records.files import append_line, part_files, part_name, read_lines, write_whole
from lpe_jax.types import Rollout

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
_SHARD_ROWS = 4096
_SHARD_SECONDS = 30.0


class RolloutStore:
    """The rollouts of a run: appended in batches, read back whole.

    A shard is written under a temporary name, synced and renamed, and only then named in manifest.jsonl with its
    sha256. What the manifest does not name does not exist: a shard that a crash left behind is overwritten. Processes
    that share a run have a manifest and shards each, by names of their own, and read everybody's as they were at first.
    """

    def __init__(self, folder: Path, part: int = 0):
        """part: number of the process that writes."""
        self.folder = folder
        self.part = part
        self.manifest = folder / part_name("manifest.jsonl", part)
        folder.mkdir(parents=True, exist_ok=True)
        manifests = part_files(folder / "manifest.jsonl")
        self._shards = {k: read_lines(path, mend=k == part) for k, path in manifests.items()}
        self._own = self._shards.setdefault(part, [])
        self._buffer: list[Rollout] = []
        self._flushed = time.monotonic()

    def __len__(self) -> int:
        """Rows on disk."""
        return sum(self.rows(part) for part in self._shards)

    def rows(self, part: int) -> int:
        """Rows on disk that process `part` wrote."""
        return sum(entry["rows"] for entry in self._shards.get(part, []))

    def append(self, rollouts: list[Rollout]) -> None:
        """Takes rollouts; they are on disk after the next flush, which comes by itself in time."""
        self._buffer += rollouts
        if len(self._buffer) >= _SHARD_ROWS or time.monotonic() - self._flushed > _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Puts what is buffered on disk as one shard."""
        if self._buffer:
            name = part_name(f"{len(self._own):06d}.parquet", self.part)
            path = self.folder / name
            table = to_table(self._buffer)
            write_whole(path, lambda p: pq.write_table(table, p, compression="zstd", write_page_checksum=True))
            entry = {"shard": name, "rows": table.num_rows, "sha256": file_sha256(path)}
            append_line(self.manifest, entry)
            self._own.append(entry)
            self._buffer = []
        self._flushed = time.monotonic()

    def read(self) -> Iterator[Rollout]:
        """Every committed rollout, in the order it was appended, one process's after another's.

        Raises:
          RunError: a shard is missing or is not the file the manifest names.
        """
        for part, entry in ((part, entry) for part, shards in self._shards.items() for entry in shards):
            path, manifest = self.folder / entry["shard"], part_name("manifest.jsonl", part)
            if not path.exists():
                raise RunError(f"{path} is named in {manifest} but does not exist")
            if file_sha256(path) != entry["sha256"]:
                raise RunError(f"{path} is damaged: its sha256 is not the one in {manifest}")
            yield from from_table(pq.read_table(path, page_checksum_verification=True))


def to_table(rollouts: list[Rollout]) -> pa.Table:
    """One row per rollout, by SCHEMA."""
    columns = {field.name: [getattr(r, field.name) for r in rollouts] for field in SCHEMA}
    return pa.table(columns, schema=SCHEMA)


def from_table(table: pa.Table) -> Iterator[Rollout]:
    """The inverse of to_table."""
    columns = {name: table.column(name).to_pylist() for name in SCHEMA.names if name != "tokens"}
    tokens = table.column("tokens").combine_chunks()
    values, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
    for row in range(table.num_rows):
        fields = {name: column[row] for name, column in columns.items()}
        yield Rollout(tokens=np.array(values[offsets[row] : offsets[row + 1]], np.int32), **fields)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
