"""Files that are there whole or not at all, and that their owner alone can read: responses may be harmful text.

All that the records of a run write goes through here, by calls of `os` alone; SQLite writes its own file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from lpe_jax.errors import RunError

T = TypeVar("T")
# Whatever the umask: it could only take more away.
_FILE, _FOLDER = 0o600, 0o700
# No file of a run has come near it; a shard has a thousandth.
_MOST = 4 << 30
CURE = "python -m experiments.check says what can be mended"


def write_whole(path: Path, data: bytes | str) -> None:
    """Puts data under a temporary name beside path, then in its place; a crash leaves the old file or the new.

    The data are on disk before the name changes, and the name is on disk before this returns. Text is UTF-8.

    Raises:
      RunError: the disk does not take it; nothing is left behind under the temporary name.
    """
    with _in_place_of(path) as temporary:
        _put(temporary, data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """For what is too large for memory, or is written by others: a private file beside path that takes its place.

    It is empty at first, and gone if writing it fails. As write_whole otherwise.

    Raises:
      RunError: the disk does not take it.
    """
    with _in_place_of(path) as temporary:
        _put(temporary, b"")
        yield temporary
        # Whoever wrote it may have made it anew.
        os.chmod(temporary, _FILE)
        handle = os.open(temporary, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A name beside path; what is there, and on disk, at the end takes path's place, or is gone if that fails."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with _named(path):
        make_folder(path.parent)
        try:
            yield temporary
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def move(source: Path, target: Path) -> None:
    """Gives a file another name, in the place of what has it, on disk.

    Raises:
      RunError: the disk does not take it.
    """
    make_folder(target.parent)
    with _named(target):
        os.replace(source, target)
        _sync_folder(target.parent)
        _sync_folder(source.parent)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all; NaN and infinities are refused as JSON has none."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_after(path: Path, size: int, data: bytes) -> None:
    """Has a file be its first `size` bytes and then data, on disk. What was behind those is a torn write's, and gone.

    Raises:
      RunError: the disk does not take it; the first bytes stay, and the same call may be tried again.
    """
    with _named(path):
        if size == 0:
            make_folder(path.parent)
        _put(path, data, size)
        if size == 0:
            _sync_folder(path.parent)


def append_line(path: Path, value: Any) -> None:
    """Adds one JSON line and waits until it is on disk; a torn line before it stays one line.

    Raises:
      RunError: the disk does not take it.
    """
    with _named(path):
        size, torn = path.stat().st_size if path.exists() else 0, b""
        if size:
            with open(path, "rb") as file:
                file.seek(size - 1)
                torn = b"" if file.read() == b"\n" else b"\n"
    write_after(path, size, torn + json.dumps(value, sort_keys=True).encode() + b"\n")


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, on disk, where they are not there.

    Raises:
      RunError: the disk does not take it.
    """
    for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        with _named(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(missing, _FOLDER)
            _sync_folder(missing.parent)


def open_private(path: Path) -> int:
    """A handle for writing to a file, which is made where it is not there.

    Raises:
      OSError: it cannot be, is a link, which may lead anywhere, or a pipe that nobody reads.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, _FILE)


def read_bytes(path: Path, missing: T = b"") -> bytes | T:
    """What is in a file, or `missing` where there is none.

    Raises:
      RunError: it cannot be read.
    """
    try:
        return read_plain(path, _MOST)
    except FileNotFoundError:
        return missing
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None


def read_plain(path: Path, most: int) -> bytes:
    """What is in a file, be it behind a link: a pipe or a device could be read, or waited for, without end.

    Raises:
      OSError: it is not there, is no file, has more than `most` bytes, or cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, and {most} is the most", str(path))
    with open(path, "rb") as file:
        return file.read(found.st_size)


def read_text(path: Path, most: int, encoding: str = "utf-8") -> str:
    """As read_plain, of text; a line ends in \\n, however it does in the file.

    Raises:
      OSError: as read_plain.
      UnicodeDecodeError: it is no such text.
    """
    return io.TextIOWrapper(io.BytesIO(read_plain(path, most)), encoding).read()


def part_name(name: str, part: int) -> str:
    """What process number `part` of a run calls its own file of this name: name.x, name-1.x, name-2.x, ..."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{part}{dot}{suffix}" if part else name


def part_files(path: Path) -> dict[int, Path]:
    """The files of this name that processes have written so far, by their number."""
    of_others = {other.stem.removeprefix(f"{path.stem}-"): other for other in path.parent.glob(f"{path.stem}-*")}
    found = {int(k): other for k, other in of_others.items() if k.isdecimal() and other.suffix == path.suffix}
    return dict(sorted((found | ({0: path} if path.exists() else {})).items()))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None


def _put(path: Path, data: bytes, size: int = 0) -> None:
    """The file's first `size` bytes, then data, synced."""
    handle = open_private(path)
    try:
        if os.fstat(handle).st_size > size:
            os.ftruncate(handle, size)
        written, view = 0, memoryview(data)
        while written < len(view):
            written += os.pwrite(handle, view[written:], size + written)
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Makes a folder's list of names durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
