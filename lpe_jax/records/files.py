"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpe_jax.errors import RunError


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Calls write on a temporary name beside path, then puts it in place; a crash leaves the old file or the new.

    The data are on disk before the name changes, and the name is on disk before this returns.

    Raises:
      RunError: the disk does not take it; nothing is left behind under the temporary name.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None


def sync_folder(folder: Path) -> None:
    """Makes a folder's list of names durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all; NaN and infinities are refused as JSON has none."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def append_line(path: Path, value: Any) -> None:
    """Adds one JSON line and waits until it is on disk."""
    line = json.dumps(value, sort_keys=True) + "\n"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None


def part_name(name: str, part: int) -> str:
    """What process number `part` of a run calls its own file of this name: name.x, name-1.x, name-2.x, ..."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{part}{dot}{suffix}" if part else name


def part_files(path: Path) -> dict[int, Path]:
    """The files of this name that processes have written so far, by their number."""
    of_others = {other.stem.removeprefix(f"{path.stem}-"): other for other in path.parent.glob(f"{path.stem}-*")}
    found = {int(k): other for k, other in of_others.items() if k.isdecimal() and other.suffix == path.suffix}
    return dict(sorted((found | ({0: path} if path.exists() else {})).items()))


def read_lines(path: Path, *, mend: bool = True) -> list[Any]:
    """The values of a file of JSON lines.

    A last line without its newline is the torn end of an append that never returned: it is cut off, so that the
    next append starts a line of its own.

    Args:
      mend: whether it may be cut off; another process's last line is left alone, and out.

    Raises:
      RunError: any other line is not JSON.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data) and mend:
        with open(path, "r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
    values = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            values.append(json.loads(line))
        except ValueError:
            raise RunError(f"{path}, line {number}: not JSON; the file is damaged") from None
    return values
