"""One Parquet shard as bytes that are known: written with page checksums and a sha256, read only if it is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lpe_jax.errors import RunError
from lpe_jax.records.files import CURE, read_bytes, write_whole


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
    file = pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=words)
    # Threads do not pay for so little, and what they allocate is not given back.
    return file.read(columns=columns, use_threads=False)
