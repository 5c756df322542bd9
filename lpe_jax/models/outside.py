"""Files that come from outside: looked at before they are read, and never longer than they have reason to be."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lpe_jax.errors import CheckpointError

# A config has a few kilobytes, an index or a header about a hundred bytes for each tensor. In Python's objects JSON
# takes up to thirty times its bytes.
MAX_JSON_BYTES = 4 << 20


def plain_file(path: Path) -> os.stat_result:
    """What the system says of a file, be it behind a link: the hub's own cache is made of links.

    Raises:
      CheckpointError: it is not there, or is a folder, a pipe or a device, which could be read for ever.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a file; download the checkpoint again")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a missing, unreadable, overlong or non-object file is a CheckpointError that names it."""
    size = plain_file(path).st_size
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} cannot be read as JSON: it has {size} bytes, and {MAX_JSON_BYTES} is the most")
    try:
        raw = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds {type(raw).__name__}, not a JSON object")
    return raw


def parse_json(data: bytes) -> Any:
    """JSON as its standard has it: of a key that is there twice nobody knows which value was meant, and NaN is none.

    Raises:
      ValueError, RecursionError: it is none.
    """
    return json.loads(data.decode("utf-8"), object_pairs_hook=_once_each, parse_constant=_refused)


def _once_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {shown(key)} appears twice in one object")
        found[key] = value
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def shown(value: Any) -> str:
    """What a sentence can hold of a value from outside: its repr, which escapes what a terminal would obey, cut."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"{type(value).__name__}, deeply nested"
    return text if len(text) <= 100 else text[:99] + "…"


def named(name: str) -> str:
    """A name from outside, as it is where that is harmless, else as `shown`."""
    return name if name.isprintable() and 0 < len(name) <= 100 else shown(name)


def one_line(error: Exception) -> str:
    """The first line of an error, or its kind; what a terminal would obey is masked."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return "".join(c if c.isprintable() else "?" for c in text) or type(error).__name__
