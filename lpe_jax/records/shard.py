"""Parquet shards whose bytes are known, and the manifests that say which of them count.

A shard is written with page checksums, and read only if its sha256 is the one in its manifest. What no manifest names
does not exist.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lpe_jax.errors import RunError
from lpe_jax.records.chain import Chain, Line, readable_lines, write_chain
from lpe_jax.records.files import CURE, read_bytes, write_whole

MANIFEST = "manifest.jsonl"
# What a line has to say, whoever wrote it: none can name a file elsewhere.
_LINE = {"shard": r"\d{6,}(-\d+)?\.parquet", "sha256": "[0-9a-f]{64}"}


def open_manifest(path: Path) -> Chain:
    """A manifest, whose lines hold `shard`, a file name, its `sha256` and `rows`; it is chained to its own name.

    Raises:
      RunError: it is damaged.
    """
    manifest = Chain(path, first=path.name, cure=f"; {CURE}")
    for number, line in enumerate(manifest.lines, start=1):
        if not (_names_a_shard(line) and isinstance(line.get("rows"), int)):
            raise RunError(f"{path}, line {number} is damaged: it names no shard of a run; {CURE}")
    return manifest


def write_manifest(path: Path, lines: Iterable[Line]) -> None:
    """Has these be all the lines of a manifest, or leaves it as it is.

    Raises:
      RunError: the disk does not take it.
    """
    write_chain(path, lines, first=path.name)


def named_in_damaged(path: Path) -> list[Line]:
    """The lines of a damaged manifest that name a shard and its sha256, rightly or wrongly."""
    return list(filter(_names_a_shard, readable_lines(path) if path.is_file() else []))


def _names_a_shard(line: Line) -> bool:
    return all(isinstance(line.get(name), str) and re.fullmatch(form, line[name]) for name, form in _LINE.items())


def write_shard(path: Path, table: pa.Table) -> str:
    """Writes a table, whole or not at all, and returns the file's sha256.

    Raises:
      RunError: the disk does not take it.
    """
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
    # Of what was meant to be written, before a disk has had it.
    data = stream.getvalue()
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()


def read_shard(folder: Path, entry: Mapping[str, Any], manifest: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a shard, or some columns of it; those of text that are asked for by name are dictionaries.

    Args:
      entry: what its manifest, of this name, says of it.

    Raises:
      RunError: it is missing, or is not the file that the manifest names.
    """
    path = folder / entry["shard"]
    data = read_bytes(path, None)
    if data is None:
        raise RunError(f"{path} is named in {manifest} but does not exist; {CURE}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise RunError(f"{path} is damaged: its sha256 is not the one in {manifest}; {CURE}")
    source, words = pa.BufferReader(data), [] if columns is None else columns
    try:
        file = pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=words)
        # Threads do not pay for so little, and what they allocate is not given back.
        return file.read(columns=columns, use_threads=False)
    except pa.ArrowException:
        raise RunError(f"{path} is no shard, as {manifest} has it; {CURE}") from None
