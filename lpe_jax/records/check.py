"""A run folder gone over file by file: what is wrong with it, and how it is mended.

Rollouts, verdicts and tables can be made again, and are: mending moves what is damaged aside and has the run forget it,
so that the command that began the run draws it again, as it was. Nothing is deleted.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lpe_jax.errors import RunError
from lpe_jax.records import bank, prompts, rollouts
from lpe_jax.records.files import move, open_private, part_files, read_bytes, write_whole
from lpe_jax.records.index import Index
from lpe_jax.records.ledger import NAME as LEDGER
from lpe_jax.records.ledger import check_ledger, salvage
from lpe_jax.records.noted import gone, note_of
from lpe_jax.records.rollouts import from_table
from lpe_jax.records.run import COPY, NAME, no_run_folder, read_record, write_record
from lpe_jax.records.shard import read_shard, write_manifest
from lpe_jax.records.survey import Survey, survey
from lpe_jax.types import Request, Rollout

# The folder in a run's for what was taken out of it.
ASIDE = "damaged"
_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is wrong with a file of a run folder.

    Attributes:
      path: its name in the folder.
      wrong: what is the matter, as the end of a sentence about it.
      cure: what mending does, and the run after it; None where nothing helps.
      harmless: a crash leaves such things, and a run goes on from them.
      again: the command that began the run has something to do again.
    """

    path: str
    wrong: str
    cure: str | None
    harmless: bool = False
    again: bool = False


class Check:
    """A run folder gone over, and what was found.

    Attributes:
      there: what is there and as it was written, in words.
    """

    def __init__(self, folder: Path):
        """Goes over a folder that is held.

        Raises:
          RunError: it is none, or nothing tells what it is a run of.
        """
        self.folder = folder
        self.findings: list[Finding] = []
        self.there: list[str] = []
        self._mends: list[Callable[[], None]] = []
        self._record = self._read_record()
        self._prompts()
        drawn = self._rollouts()
        self._bank()
        self._ledgers()
        self._made(drawn)
        for left in sorted({*folder.rglob(".*.tmp-*"), *folder.glob(".shared-*")}):
            if ASIDE not in left.relative_to(folder).parts:
                self._harmless(left, "is what a crash left of a file that never was")

    @property
    def wrong(self) -> int:
        """How many findings are more than what any crash leaves."""
        return sum(not finding.harmless for finding in self.findings)

    @property
    def well(self) -> bool:
        """Whether nothing is wrong."""
        return self.wrong == 0

    def mend(self) -> None:
        """Does what the cures say. Where it is interrupted, another check goes on with it.

        Raises:
          RunError: the disk does not take it.
        """
        again = any(finding.again for finding in self.findings)
        records = {finding.path for finding in self.findings} & {NAME, COPY}
        for name in records:
            self._copy_aside(self.folder / name)
        if again or records:
            # First, as no folder is to say that it is finished while something is missing in it.
            write_record(self.folder, {**self._record, **({"status": "started"} if again else {})})
        for mend in self._mends:
            mend()

    def _wrong(self, path: Path, wrong: str, cure: str | None, **more: bool) -> None:
        self.findings.append(Finding(path.relative_to(self.folder).as_posix(), wrong, cure, **more))

    def _taken(self, path: Path, wrong: str, cure: str, **more: bool) -> None:
        """As _wrong, of a file that mending moves aside."""
        self._wrong(path, wrong, cure, **more)
        self._mends.append(lambda: self._aside(path))

    def _harmless(self, path: Path, what: str) -> None:
        self._taken(path, what, f"it is moved to {ASIDE}/", harmless=True)

    def _aside(self, path: Path) -> None:
        target = self._place(path)
        if path.exists():
            move(path, target)

    def _copy_aside(self, path: Path) -> None:
        target = self._place(path)
        if path.is_file():
            write_whole(target, read_bytes(path))
        elif path.exists():
            move(path, target)

    def _place(self, path: Path) -> Path:
        """Where what is damaged goes: under its name, or one like it that is not taken.

        Raises:
          RunError: it, or what is damaged, is not in the folder, as a link leads elsewhere.
        """
        target, count = self.folder / ASIDE / path.relative_to(self.folder), 0
        while target.exists():
            count += 1
            target = target.with_name(f"{path.name}.{count}")
        for end in (path, target):
            if not end.parent.resolve().is_relative_to(self.folder.resolve()):
                raise RunError(f"{end} lies outside of the run folder, as a link leads there; nothing is moved")
        return target

    def _read_record(self) -> dict[str, Any]:
        """run.json, or its copy."""
        records, said = [], []
        for path in (self.folder / NAME, self.folder / COPY):
            try:
                records.append(read_record(path))
                said.append("is missing")
            except RunError as error:
                records.append(None)
                said.append(_words(error, path))
        own, copy = records
        if own is None and copy is None:
            raise RunError(f"{self.folder / NAME} {said[0]}, and {COPY} {said[1]}: nothing tells what it is a run of")
        if own is None:
            self._wrong(self.folder / NAME, said[0], f"{COPY}, which is a copy of it, takes its place")
        elif own != copy:
            # A crash may have come between the two.
            odd = said[1] if copy is None else f"is not what {NAME} is"
            harmless = copy is not None or odd == "is missing"
            self._wrong(self.folder / COPY, odd, f"it is made of {NAME} again", harmless=harmless)
        return own or copy

    def _prompts(self) -> None:
        path, expected = self.folder / prompts.NAME, self._record.get("asked", {}).get("prompt_texts")
        if expected is None:
            return
        try:
            found = prompts.read_prompts(self.folder, expected)
        except RunError as error:
            # A run that has just begun, or grown, has not come to write them.
            young = self._record["status"] == "started" and prompts.ids_in(self.folder) <= self._asked_for()
            self._taken(path, _words(error, path), "the run writes it again", harmless=young, again=not young)
            return
        self.there.append(f"{len(found):,} prompts")

    def _asked_for(self) -> set[str]:
        return set(self._record["extent"].get("prompts", {}))

    def _rollouts(self) -> int:
        """How many rollouts there are."""
        folder = self.folder / rollouts.FOLDER
        if not folder.is_dir():
            return 0
        found = survey(folder, rollouts.about)
        named = [*found.bad, *(entry["shard"] for _, entry in found.kept)]

        def between(name: str) -> bool:
            of = rollouts.shard_of(name)
            return of is not None and of[1] == rollouts.next_shard(named, of[0])

        self._shards(folder, found, between)
        index = Index([functools.partial(read_shard, folder, entry, name) for name, entry in found.kept], from_table)
        if odd := _differing(index):
            self._wrong(folder, f"has rollouts twice and not alike, {odd:,} of them: it is of two runs", None)
        self.there.append(f"{len(index):,} rollouts in {len(found.kept):,} shard{'s' * (len(found.kept) != 1)}")
        return len(index)

    def _bank(self) -> None:
        folder = self.folder / bank.FOLDER
        if not folder.is_dir() and "procedure" in self._record["settings"]:
            return
        found = survey(folder, bank.about)
        self._shards(folder, found, lambda name: True)
        there = {entry["number"]: entry["prompt_id"] for _, entry in found.kept}
        places = self._record["extent"].get("places", {})
        if odd := [number for number, prompt_id in there.items() if places.get(prompt_id) != number]:
            self._wrong(folder, f"has shards of other prompts, the first is number {min(odd)}", None)
        missing = len(set(places.values()) - there.keys()) - len(found.bad)
        if missing > 0 and self._record["status"] == "finished" and not found.damaged:
            self._wrong(folder, f"lacks {missing:,} prompts of a finished run", "they are drawn again", again=True)
        self.there.append(f"a bank of {len(there):,} prompts")

    def _shards(self, folder: Path, found: Survey, between: Callable[[str], bool]) -> None:
        """What is wrong in a folder of shards.

        Args:
          between: whether a crash can have left a shard with this file name before it was named.
        """
        for name, (_, error) in found.bad.items():
            self._taken(folder / name, _words(error, folder / name), "what was in it is drawn again", again=True)
        for name in found.unnamed:
            if between(name) and not found.damaged:
                self._harmless(folder / name, "is named in no manifest: a crash came before it was")
            else:
                self._taken(folder / name, "is named in no manifest", "what was in it is drawn again", again=True)
        for name, error in found.damaged.items():
            self._wrong(folder / name, _words(error, folder / name), "lines that fit their shards stay", again=True)
            self._mends.append(functools.partial(self._copy_aside, folder / name))
        for name in sorted(found.to_write):
            entries = [entry for own, entry in found.kept if own == name]
            self._mends.append(functools.partial(write_manifest, folder / name, entries))

    def _ledgers(self) -> None:
        verdicts, ledgers, lost = 0, part_files(self.folder / LEDGER).values(), gone(self.folder)
        if self._record["status"] == "finished" and "procedure" in self._record["settings"]:
            # The first process of such a run always has one.
            lost += {self.folder / LEDGER}.difference(ledgers, lost)
        for path in lost:
            self._wrong(path, "is missing", "its verdicts are asked for again", again=True)
            self._mends.append(functools.partial(self._aside, note_of(path)))
        for path in ledgers:
            try:
                verdicts += check_ledger(path)
            except RunError as error:
                cure = "verdicts in it that are as they were written stay, the others are asked for again"
                self._wrong(path, _words(error, path), cure, again=True)
                self._mends.append(functools.partial(self._mend_ledger, path))
        for log in self.folder.glob("*.sqlite-*"):
            if log.with_name(log.name.rpartition("-")[0]) not in ledgers:
                self._taken(log, "is there without its ledger", "its verdicts are asked for again", again=True)
        if ledgers:
            self.there.append(f"verdicts on {verdicts:,} distinct responses")

    def _mend_ledger(self, path: Path) -> None:
        mended, readable = path.with_name(f".{path.name}.tmp-{os.getpid()}"), path.is_file()
        if readable:
            salvage(path, mended)
        # What is no file has nothing that stays; without its note it is not missed.
        for file in (path, *path.parent.glob(f"{path.name}-*"), *[note_of(path)] * (not readable)):
            self._aside(file)
        if readable:
            move(mended, path)

    def _made(self, drawn: int) -> None:
        """Tables of a finished run, and whether its rollouts suffice for them."""
        if self._record["status"] != "finished":
            return
        for name, digest in self._record.get("made", {}).items():
            path = self.folder / name
            try:
                data = read_bytes(path, None)
            except RunError as error:
                self._taken(path, _words(error, path), "the run makes it again", again=True)
                continue
            if data is None:
                self._wrong(path, "is missing", "the run makes it again", again=True)
            elif hashlib.sha256(data).hexdigest() != digest:
                odd = f"is not what was written: {NAME} has another sha256 of it"
                self._taken(path, odd, "the run makes it again", again=True)
            elif path.suffix == ".csv" and not any(finding.again for finding in self.findings):
                if (told := _told(data)) > drawn:
                    wrong = f"has {drawn:,} rollouts, and {name} tells of {told:,}"
                    self._wrong(self.folder / rollouts.FOLDER, wrong, "the others are drawn again", again=True)


@contextlib.contextmanager
def held(folder: Path, *, to_write: bool) -> Iterator[None]:
    """Keeps all processes from writing to a run folder.

    Args:
      to_write: it is going to be written to; else a disk that takes no locks need not.

    Raises:
      RunError: it is none, one of them is at it, or it cannot be written to.
    """
    if not any((folder / name).is_file() for name in (NAME, COPY)):
        raise no_run_folder(folder)
    with contextlib.ExitStack() as stack:
        for lock in {folder / ".lock", *folder.glob(".lock-*")}:
            try:
                file = stack.enter_context(open(open_private(lock), "w"))
            except OSError as error:
                if to_write:
                    raise RunError(f"{lock} cannot be written: {error.strerror}") from None
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{folder} is in use by another process; wait for it to end") from None
            except OSError as error:
                if to_write:
                    raise RunError(f"{lock} cannot be locked: {error.strerror}; repair a copy elsewhere") from None
        yield


def _words(error: RunError, path: Path) -> str:
    """What an error says of a file, without its name and without where to look for help."""
    return str(error).removeprefix(f"{path}").lstrip(", ").partition("; python -m ")[0]


def _told(table: bytes) -> int:
    """How many rollouts a table tells of; none where it is of something else."""
    try:
        return sum(int(row["rollouts"]) for row in csv.DictReader(table.decode().splitlines()))
    except (ValueError, KeyError, TypeError, csv.Error):
        return 0


def _differing(index: Index) -> int:
    """How many rollouts are there twice and not alike."""
    twice, odd = np.setdiff1d(np.arange(index.total), index.places()), 0
    for begin in range(0, len(twice), _AT_ONCE):
        again = index.fetch(twice[begin : begin + _AT_ONCE])
        first = index.fetch(index.find([Request(r.prompt_id, r.alpha, r.index) for r in again]))
        odd += sum(_content(a) != _content(b) for a, b in zip(again, first, strict=True))
    return odd


def _content(rollout: Rollout) -> str:
    """All of it, where what is not a number equals itself."""
    return str(vars(rollout) | {"tokens": rollout.tokens.tolist()})
