"""The run folder: which settings it belongs to, whether it is finished, and what was measured on the way."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import platform
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lpe_jax.errors import RunError
from lpe_jax.records.files import (
    CURE,
    append_line,
    make_folder,
    open_private,
    part_name,
    read_bytes,
    write_json,
    write_whole,
)
from lpe_jax.version import __version__

FORMAT = 2
NAME = "run.json"
# Rollouts can be drawn again, and what they were drawn for cannot be told without it: it is there twice.
COPY = ".run.json"
METRICS = "metrics.jsonl"
_DIGEST = "sha256"
_PACKAGES = ("jax", "jaxlib", "flax", "transformers", "tokenizers", "numpy", "scipy", "pyarrow", "safetensors")


class Run:
    """A run folder, held by one process at a time, or by several of one command that have agreed.

    settings and extent are everything that can change a result. The folder belongs to the settings it was made with;
    opening it with others is refused by name, so that rollouts of two different experiments are never mixed. The extent
    is how much of it was asked for, and may grow: numbers upwards, lists and mappings by what is added to them.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        extent: Mapping[str, Any] | None = None,
        asked: Mapping[str, Any] | None = None,
        flags: str = "",
        part: int = 0,
        keep_record: bool = True,
    ):
        """Opens a folder or makes it.

        Args:
          asked: what the user typed, for the record; unlike settings it names sources instead of their content.
          flags: a flagfile that repeats the run.
          part: number of this process among those that share the run; each has a lock and metrics of its own.
          keep_record: look at run.json and write it. Of several processes that see one folder the first does.

        Raises:
          RunError: the folder belongs to other settings, has more than is asked for, holds something else, is in use,
            or cannot be written.
        """
        self.folder, self._part = folder, part
        settings, extent, asked = (json.loads(json.dumps(dict(x or {}))) for x in (settings, extent, asked))
        if keep_record:
            check_folder(folder)
        try:
            make_folder(folder)
            self._lock = open(open_private(folder / (f".lock-{part}" if part else ".lock")), "w")
        except OSError as error:
            raise RunError(f"--out={folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            if isinstance(error, BlockingIOError):
                raise RunError(f"--out={folder} is in use by another process; wait for it or choose another") from None
            raise RunError(
                f"--out={folder} cannot be locked: {error.strerror}; choose one on a file system with locks"
            ) from None
        try:
            if part == 0:
                _nobody_else(folder)
            record = read_run(folder) if keep_record else None
            if record is not None:
                _same_settings(folder, record["settings"], settings)
                if lost := less(record["extent"], extent):
                    raise RunError(f"--out={folder} can grow, and not lose what it has: {lost}; choose another --out")
            new = {"format": FORMAT, "settings": settings, "versions": versions(), "started": _now()}
            self.record = (record or new) | {"extent": extent, "asked": asked}
            # What it had before, where more is asked for now.
            self.grown_from = record["extent"] if record is not None and record["extent"] != extent else None
            if record is None or self.grown_from is not None:
                self.record["status"] = "started"
            if keep_record and self.record != record:
                write_record(folder, self.record)
                if flags:
                    write_whole(folder / "flags.txt", flags)
        except RunError:
            self._lock.close()
            raise

    @property
    def finished(self) -> bool:
        return self.record["status"] == "finished"

    def finish(self, *made: str) -> None:
        """Marks the run as complete.

        Args:
          made: files of the folder that it came to, whose sha256 are kept.
        """
        self.record |= {"status": "finished", "finished": _now()}
        self.record["made"] = {name: hashlib.sha256(read_bytes(self.folder / name)).hexdigest() for name in made}
        write_record(self.folder, self.record)

    def reopen(self) -> None:
        """Marks a run as not complete."""
        if self.finished:
            self.record["status"] = "started"
            write_record(self.folder, self.record)

    def metric(self, **values: Any) -> None:
        """One line of metrics.jsonl, or of this process's own: timings and counters."""
        append_line(self.folder / part_name(METRICS, self._part), {"time": _now(), **values})

    def close(self) -> None:
        """Lets other processes have the folder."""
        self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _nobody_else(folder: Path) -> None:
    """Whether other processes of an earlier command still write here; those of this one come after the first.

    Raises:
      RunError: one does.
    """
    for path in sorted(folder.glob(".lock-*")):
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                number = path.name.rpartition("-")[2]
                raise RunError(
                    f"--out={folder} is in use by process {number} of an earlier command, which has lost the first; it "
                    "ends by itself within two minutes, or end it"
                ) from None


def check_folder(folder: Path) -> dict[str, Any] | None:
    """The record of a run folder, None for one that is new; what is neither is refused.

    Raises:
      RunError: as read_run, or the folder holds something else.
    """
    record = read_run(folder)
    if record is None and (folder / COPY).exists():
        raise RunError(f"{folder / NAME} is missing, and {COPY}, which is a copy of it, is there; {CURE}")
    # Names with a dot are our lock, and what a crash left of a file that never was.
    if record is None and folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise RunError(f"--out={folder} is not empty and is not a run folder; choose another")
    return record


def no_run_folder(folder: Path) -> RunError:
    """What to say of a folder that holds no run."""
    why = f"there is no {NAME} in it" if folder.is_dir() else "it is a file" if folder.exists() else "it is not there"
    return RunError(f"{folder} is no run folder: {why}")


def read_run(folder: Path) -> dict[str, Any] | None:
    """run.json of a folder, or None when there is none.

    Raises:
      RunError: it is there and cannot be understood.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out={folder} is a file, not a folder; choose another")
    return read_record(folder / NAME)


def read_record(path: Path) -> dict[str, Any] | None:
    """A run.json, or the copy of it; None when there is none.

    Raises:
      RunError: it is there and cannot be understood, or is not what was written.
    """
    data = read_bytes(path, None)
    if data is None:
        return None
    try:
        record = json.loads(data)
        known = record["format"] == FORMAT and record["status"] in ("started", "finished")
        kinds = record["settings"], record["extent"], record.get("asked", {})
        known = known and all(isinstance(kind, dict) for kind in kinds) and _name_files(record.get("made", {}))
        whole = record.pop(_DIGEST, None) == _digest(record)
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise RunError(f"{path} is damaged or was written by another version; {CURE}")
    if not whole:
        raise RunError(f"{path} is damaged: its sha256 of itself is not the one in it; {CURE}")
    return record


def _name_files(made: Any) -> bool:
    """Whether these are names in the folder itself, with sha256: whoever wrote them names no file elsewhere."""
    return isinstance(made, dict) and all(re.fullmatch(r"\w[\w-]*(\.[\w-]+)*", name) for name in made)


def read_made(folder: Path, record: Mapping[str, Any], name: str) -> bytes | None:
    """What a finished run came to, of this name; None where it is not there as it was written.

    Raises:
      RunError: it cannot be read.
    """
    data = read_bytes(folder / name, None)
    if data is None or hashlib.sha256(data).hexdigest() != record.get("made", {}).get(name):
        return None
    return data


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes run.json, which says its own sha256, and a copy of it.

    Raises:
      RunError: the disk does not take it.
    """
    for name in (NAME, COPY):
        write_json(folder / name, {**record, _DIGEST: _digest(record)})


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(record), sort_keys=True).encode()).hexdigest()


def metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file, without what a crash has torn: timings are no results.

    Raises:
      RunError: it cannot be read.
    """
    for line in read_bytes(path).splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(event := json.loads(line), dict):
                yield event


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Ten hex digits that stand for the settings in a folder's name."""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:10]


def versions() -> dict[str, str]:
    """What the run was made with: this package, Python, and the packages that can change a result."""
    found = {"lpe_jax": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any], where: str, elsewhere: str) -> str:
    """Settings that are not the same, with both values, in words; empty where all are. Of one that holds settings
    itself those that differ are named, as sampling.temperature, unless it holds others.
    """
    found = []
    for name in sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k)):
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            named = {f"{name}.{key}": (a[key], b[key]) for key in sorted(a) if a[key] != b[key]}
        else:
            named = {name: (a, b)}
        found += [f"{k} ({where} {_short(x)}, {elsewhere} {_short(y)})" for k, (x, y) in named.items()]
    return ", ".join(found)


def less(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of an extent is not there any more, or is less, in words; empty where all of it is."""
    lost = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            gone = [f"without {_short(key)}" for key in old if key not in new]
            other = [f"with another {_short(key)}" for key in old if key in new and old[key] != new[key]]
            lost += [f"{name} ({(gone + other)[0]})"] if gone or other else []
        elif isinstance(old, list) and isinstance(new, list):
            gone = [value for value in old if value not in new]
            lost += [f"{name} (without {_short(gone[0])})"] if gone else []
        elif old is None or new is None or isinstance(new, dict | list) or new < old:
            lost.append(f"{name} (there {_short(old)}, now {_short(new)})")
    return ", ".join(lost)


def more(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What an extent has that it did not have before, in words."""
    added = []
    for name in sorted(now):
        old, new = before[name], now[name]
        if isinstance(new, dict | list):
            count = sum(value not in old for value in new)
            added += [f"{count} more {name}"] * bool(count)
        elif new != old:
            added.append(f"{name} from {old} to {new}")
    return ", ".join(added)


def _same_settings(folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if shown := differences(stored, asked, "there", "now"):
        raise RunError(f"--out={folder} belongs to a run with other settings: {shown}; choose another --out")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
