"""Manifests: the lines that say which shards count, each with a hash that chains it to the lines before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lpe_jax.errors import RunError
from lpe_jax.records.files import CURE, read_bytes, write_after, write_whole

NAME = "manifest.jsonl"
_CHAIN = "chain"


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
        self._size, self._last = 0, _first(path)
        for number, line in enumerate(whole_lines(read_bytes(path)), start=1):
            entry = read_line(line)
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

    def rewrite(self, entries: Iterable[dict[str, Any]]) -> None:
        """Has these be all its lines, or leaves it as it is.

        Raises:
          RunError: the disk does not take it.
        """
        kept, lines, last = list(entries), [], _first(self.path)
        for entry in kept:
            lines.append(_line(last, entry))
            last = _hash(last, entry)
        write_whole(self.path, b"".join(lines))
        self.entries, self._size, self._last = kept, sum(map(len, lines)), last

    def _take(self, entry: dict[str, Any], line: bytes) -> None:
        self.entries.append(entry)
        self._size, self._last = self._size + len(line), _hash(self._last, entry)


def whole_lines(data: bytes) -> list[bytes]:
    """The lines of a manifest that an append has returned from, with their newlines."""
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    return lines[:-1] if lines and b"\0\0" in lines[-1] else lines


def read_line(line: bytes) -> dict[str, Any] | None:
    """The object that a line is; None if it is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _line(last: str, entry: dict[str, Any]) -> bytes:
    return _json(entry | {_CHAIN: _hash(last, entry)}) + b"\n"


def _first(path: Path) -> str:
    return path.name


def _hash(last: str, entry: dict[str, Any]) -> str:
    """Of a line, and by the hash of the line before it of all that are before."""
    return hashlib.sha256(last.encode() + _json(entry)).hexdigest()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
