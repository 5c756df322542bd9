"""Manifests: the lines that say which shards count, each with a hash that chains it to the lines before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lpe_jax.errors import RunError
from lpe_jax.records.files import CURE, read_bytes, write_after, write_whole

NAME = "manifest.jsonl"
_CHAIN = "chain"
# What shards are called: no line can name a file elsewhere.
_SHARD = r"\d{6,}(-\d+)?\.parquet"


class Manifest:
    """A file of JSON lines, one for each shard; what it does not name does not exist.

    A changed, missing, added or moved line does not fit its hash, which is of the line and of all before it; the first
    is chained to the file's name. A last line without its newline, or with zeros in it as a power loss leaves them, is
    the torn end of an append that never returned: it does not count, and the next append takes its place.
    """

    def __init__(self, path: Path):
        """Reads what is there.

        Raises:
          RunError: it cannot be read, or is damaged.
        """
        self.path, self.entries = path, list[dict[str, Any]]()
        self._size, self._last = 0, path.name
        for number, line in enumerate(_whole_lines(read_bytes(path)), start=1):
            entry = _read_line(line)
            if entry is None or entry.pop(_CHAIN, None) != _hash(self._last, entry):
                raise RunError(
                    f"{path}, line {number} is damaged, or one before it is missing: its hash is not that of these "
                    f"lines; {CURE}"
                )
            self._take(entry, line)

    def append(self, entry: dict[str, Any]) -> None:
        """Adds a line and waits until it is on disk.

        Raises:
          RunError: the disk does not take it; the lines before stay as they are.
        """
        line = _line(self._last, entry)
        write_after(self.path, self._size, line)
        self._take(entry, line)

    def _take(self, entry: dict[str, Any], line: bytes) -> None:
        self.entries.append(entry)
        self._size, self._last = self._size + len(line), _hash(self._last, entry)


def write_manifest(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Has these be all the lines of a manifest, or leaves it as it is.

    Raises:
      RunError: the disk does not take it.
    """
    lines, last = [], path.name
    for entry in entries:
        lines.append(_line(last, entry))
        last = _hash(last, entry)
    write_whole(path, b"".join(lines))


def readable_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a damaged manifest that name a shard and its sha256, rightly or wrongly."""
    found = (line for line in map(_read_line, _whole_lines(read_bytes(path))) if line is not None)
    names = (_SHARD, "shard"), (r"[0-9a-f]{64}", "sha256")
    return [line for line in found if all(re.fullmatch(like, str(line.get(name))) for like, name in names)]


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines that an append has returned from, with their newlines."""
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    return lines[:-1] if lines and b"\0" in lines[-1] else lines


def _read_line(line: bytes) -> dict[str, Any] | None:
    """The object that a line is; None if it is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _line(last: str, entry: dict[str, Any]) -> bytes:
    return _json(entry | {_CHAIN: _hash(last, entry)}) + b"\n"


def _hash(last: str, entry: dict[str, Any]) -> str:
    """Of a line, and by the hash of the line before it of all that are before."""
    return hashlib.sha256(last.encode() + _json(entry)).hexdigest()


def _json(value: dict[str, Any]) -> bytes:
    # Without spaces: one bit makes a zero of a space, and a zero is what a power loss leaves.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
