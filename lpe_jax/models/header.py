"""The header of a safetensors file, read before anything else of it is.

A file begins with the header's length, eight bytes, and the header, a JSON object of dtype, shape and place of each
tensor. The library checks that these are consistent when it opens a file. Here is what it leaves open: a header of a
hundred megabytes, a tensor that is named twice, and a pipe in the place of a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from lpe_jax.errors import CheckpointError
from lpe_jax.models.outside import MAX_JSON_BYTES, named, one_line, parse_json, plain_file, shown

_METADATA = "__metadata__"
# Of each tensor, for `sketch`: the block that a disk reads in any case.
_BEGINNING = 4096


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor as a file has it: what it is, and its bytes' place in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name. What is not looked at here, the library does: places that overlap, for one.

    Raises:
      CheckpointError: it is no file, cut short, or its header is no such object.
    """
    return _parsed(path, _raw(path))


def sketch(path: Path) -> str:
    """sha256 of a file's header and of the beginning of each of its tensors.

    It is cheap to take, and another for other weights, unless they differ only past the beginning of every tensor.
    """
    raw = _raw(path)
    found = hashlib.sha256(raw)
    with path.open("rb") as file:
        for stored in sorted(_parsed(path, raw).values(), key=lambda stored: stored.begin):
            file.seek(stored.begin)
            found.update(file.read(min(_BEGINNING, stored.end - stored.begin)))
    return found.hexdigest()


def _raw(path: Path) -> bytes:
    """The header as it is written, with its length before it."""
    size = plain_file(path).st_size
    try:
        with path.open("rb") as file:
            begin = file.read(8)
            length = int.from_bytes(begin, "little")
            if len(begin) < 8 or 8 + length > size:
                raise _damaged(path, f"its header would have {length} bytes, and the file has {size}")
            if length > MAX_JSON_BYTES:
                raise _damaged(path, f"its header has {length} bytes, and {MAX_JSON_BYTES} is the most")
            return begin + file.read(length)
    except OSError as error:
        raise _damaged(path, one_line(error)) from None


def _parsed(path: Path, raw: bytes) -> dict[str, Stored]:
    try:
        header = parse_json(raw[8:])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {one_line(error)}") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    return {name: _stored(path, name, value, len(raw)) for name, value in header.items() if name != _METADATA}


def _stored(path: Path, name: str, value: Any, data: int) -> Stored:
    if isinstance(value, dict) and isinstance(value.get("dtype"), str):
        shape, place = value.get("shape"), value.get("data_offsets")
        whole = [type(n) is int and n >= 0 for part in (shape, place) if isinstance(part, list) for n in part]
        if isinstance(shape, list) and isinstance(place, list) and len(place) == 2 and all(whole):
            return Stored(value["dtype"], tuple(shape), data + place[0], data + place[1])
    raise _damaged(path, f"its header says of {named(name)} {shown(value)}")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or damaged: {why}; download it again")
