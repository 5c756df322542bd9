"""Files of JSON lines, each with a hash that chains it to the lines before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lpe_jax.errors import RunError
from lpe_jax.records.files import read_bytes, write_after, write_whole

Line = dict[str, Any]
_HASH = "chain"


class Chain:
    """A file that lines are added to, one after the other.

    A changed, missing, added or moved line does not fit its hash, which is of the line and of all before it. A last
    line without its newline, or with a zero in it as a power loss leaves them, is the torn end of an append that never
    returned: it does not count, and the next append takes its place.

    Attributes:
      lines: those that are there.
    """

    def __init__(self, path: Path, *, first: str = "", cure: str = ""):
        """Reads what is there.

        Args:
          first: what the first line is chained to.
          cure: what to add to the sentence that says that it is damaged.

        Raises:
          RunError: it cannot be read, or is damaged.
        """
        self.path, self.lines, self._size, self._last = path, list[Line](), 0, first
        for number, text in enumerate(_whole_lines(read_bytes(path)), start=1):
            line = _line(text)
            if line is None or not _fits(line, self._last):
                raise RunError(
                    f"{path}, line {number} is damaged, or one before it is missing: its hash is not that of these "
                    f"lines{cure}"
                )
            self._take(line, text)

    def append(self, line: Line) -> None:
        """Adds a line and waits until it is on disk.

        Raises:
          RunError: the disk does not take it; the lines before stay as they are.
        """
        text = _text(self._last, line)
        write_after(self.path, self._size, text)
        self._take(line, text)

    def _take(self, line: Line, text: bytes) -> None:
        self.lines.append(line)
        self._size, self._last = self._size + len(text), _hash(self._last, line)


def write_chain(path: Path, lines: Iterable[Line], *, first: str = "") -> None:
    """Has these be all the lines of a file, or leaves it as it is.

    Raises:
      RunError: the disk does not take it.
    """
    texts, last = [], first
    for line in lines:
        texts.append(_text(last, line))
        last = _hash(last, line)
    write_whole(path, b"".join(texts))


def readable_lines(path: Path) -> list[Line]:
    """Those lines of a damaged file that are lines at all, right or wrong."""
    found = map(_line, _whole_lines(read_bytes(path)))
    return [{name: value for name, value in line.items() if name != _HASH} for line in found if line is not None]


def _whole_lines(data: bytes) -> list[bytes]:
    """Those that an append has returned from, with their newlines."""
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    return lines[:-1] if lines and b"\0" in lines[-1] else lines


def _line(text: bytes) -> Line | None:
    """The object that a line is; None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fits(line: Line, last: str) -> bool:
    """Whether a line has the hash that it should have, which is taken out of it."""
    try:
        return line.pop(_HASH, None) == _hash(last, line)
    except RecursionError:  # nested as no line of ours is, and read just so
        return False


def _text(last: str, line: Line) -> bytes:
    return _json(line | {_HASH: _hash(last, line)}) + b"\n"


def _hash(last: str, line: Line) -> str:
    """Of a line, and by the hash of the line before it of all that are before."""
    return hashlib.sha256(last.encode() + _json(line)).hexdigest()


def _json(value: Line) -> bytes:
    # Without spaces: one bit makes a zero of a space, and a zero is what a power loss leaves.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
