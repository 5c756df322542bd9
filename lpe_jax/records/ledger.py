"""The verdict ledger: what each judge said of each response, asked once, and what its answers came to."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lpe_jax.errors import RunError
from lpe_jax.records.files import CURE, part_files, write_whole
from lpe_jax.records.noted import check_none_is_gone, note
from lpe_jax.types import Outcome, Prompt, Verdict

NAME = "verdicts.sqlite"
_VERDICTS = """
  judge text,
  prompt text,               -- sha256 of its turns
  response text,             -- sha256
  outcome text not null,
  fields text not null,      -- JSON
  row_sha256 text not null,  -- of the five above
  primary key (judge, prompt, response)
"""
_TABLES = f"""
create table verdicts ({_VERDICTS}) without rowid;
create table spent (
  judge text primary key,
  calls integer not null,
  input_tokens integer not null,
  output_tokens integer not null,
  row_sha256 text not null   -- of the four above
) without rowid;
create table seal (rows integer not null, digest text not null);  -- how many there are above, their hashes' XOR
"""
_KEYS = {"verdicts": ("judge", "prompt", "response"), "spent": ("judge",)}
_INSERT = {
    "verdicts": "insert or ignore into verdicts values (?, ?, ?, ?, ?, ?)",
    "spent": "insert into spent values (?, ?, ?, ?, ?)",
}
_TIMEOUT_SECONDS = 60.0
# What no column holds in it: hashes are of columns that it joins.
_BETWEEN = "\x1f"


class Key(NamedTuple):
    """What a verdict depends on: the judge's identity, and sha256 of the prompt's turns and of the response."""

    judge: str
    prompt: str
    response: str

    @classmethod
    def of(cls, judge: str, prompt: Prompt, response: str, *, whole: bool = False) -> Key:
        """Equal responses to equal turns have one key; with `whole` the prompt's id and category count too."""
        turns = json.dumps([[m.role, m.content] for m in prompt.messages] + [prompt.id, prompt.category] * whole)
        # A response may hold halves of surrogate pairs, which UTF-8 has no place for.
        return cls(judge, *(hashlib.sha256(t.encode("utf-8", "surrogatepass")).hexdigest() for t in (turns, response)))


class Ledger:
    """Verdicts by key, in SQLite with a write-ahead log and full syncs: what put has returned from survives.

    SQLite does not see what a disk does to its pages. Every row has a hash, and a seal says how many rows there are and
    what their hashes come to; opening goes over all of it. So a row that is not found was never written. Any thread may
    use a ledger, one at a time. A ledger of a run is missed when it is gone (lpe_jax.records.noted).
    """

    def __init__(self, path: Path, *, shared: bool = False):
        """Opens a ledger, or makes it.

        Args:
          shared: other machines may read the file meanwhile. A write-ahead log is for one machine only.

        Raises:
          RunError: it is damaged, or is none; or one of the same folder is gone.
        """
        self.path = path
        self._lock = threading.Lock()
        # SQLite would take what is in one for a part of the new file.
        if not path.exists() and (logs := logs_of(path)):
            raise RunError(f"{path} is missing, and {logs[0].name}, which belongs to it, is there; {CURE}")
        check_none_is_gone(path.parent)
        if not path.exists():
            write_whole(path, _empty())
        note(path)
        with self._told("opened"), contextlib.ExitStack() as failed:
            self._db = sqlite3.connect(path, timeout=_TIMEOUT_SECONDS, check_same_thread=False)
            failed.callback(self._db.close)
            # On disk, and gone when it is closed: others' verdicts.
            self._db.execute(f"create temp table others ({_VERDICTS}) without rowid")
            self._db.execute(f"pragma journal_mode={'delete' if shared else 'wal'}")
            self._db.execute("pragma synchronous=full")
            for _ in verified(self._db, path):
                pass
            failed.pop_all()

    def get(self, keys: Iterable[Key]) -> dict[Key, Verdict]:
        """The verdicts that are there.

        Raises:
          RunError: a row is not what was written.
        """
        found = {}
        select = "select outcome, fields, row_sha256 from {} where judge = ? and prompt = ? and response = ?"
        with self._lock, self._told("read"):
            for key in keys:
                rows = (self._db.execute(select.format(table), key).fetchone() for table in ("verdicts", "others"))
                found[key] = next((row for row in rows if row is not None), None)
        return {key: verdict_of(self.path, key, row) for key, row in found.items() if row is not None}

    def learn(self, paths: Iterable[Path]) -> None:
        """Takes the verdicts of other ledgers, which stay as they are; those of its own come first.

        Raises:
          RunError: one of them is damaged, or cannot be read.
        """
        for path in paths:
            with self._lock, self._told("read", path):
                with contextlib.closing(sqlite3.connect(path, timeout=_TIMEOUT_SECONDS)) as db, self._db:
                    rows = (row for table, row in verified(db, path) if table == "verdicts")
                    self._db.executemany("insert or replace into others values (?, ?, ?, ?, ?, ?)", rows)

    def put(self, verdicts: Mapping[Key, Verdict], spent: Mapping[str, tuple[int, int, int]] | None = None) -> None:
        """Commits new verdicts in one transaction. A key that is there already keeps its verdict, if it has one.

        Args:
          spent: what the answers of a judge have come to so far, by its identity: calls, input and output tokens.

        Raises:
          RunError: the disk does not take it; none of it is there then.
        """
        rows = (("verdicts", _verdict_row(item)) for item in verdicts.items())
        self._insert(itertools.chain(rows, (("spent", _spent_row(item)) for item in (spent or {}).items())))

    def _insert(self, rows: Iterable[tuple[str, tuple]]) -> None:
        """(table, row) of each, in one transaction. A verdict that is there stays, unless it was unscored; what was
        spent is replaced.
        """
        with self._lock, self._told("written"), self._db:
            self._db.execute("begin immediate")
            seal = _Seal(*self._db.execute("select rows, digest from seal").fetchone())
            for table, row in rows:
                # Rows that give way: of a verdict only one that was none.
                columns = _KEYS[table]
                where = " and ".join(f"{column} = ?" for column in columns)
                where += f" and outcome = '{Outcome.UNSCORED}'" if table == "verdicts" else ""
                key = row[: len(columns)]
                for (old,) in self._db.execute(f"select row_sha256 from {table} where {where}", key).fetchall():
                    seal.remove(old)
                self._db.execute(f"delete from {table} where {where}", key)
                if self._db.execute(_INSERT[table], row).rowcount:
                    seal.add(row[-1])
            self._db.execute("update seal set rows = ?, digest = ?", seal.values())

    def spent(self, judge: str) -> tuple[int, int, int]:
        """What `put` was last told of a judge, here and not in other ledgers: calls, input and output tokens."""
        select = "select calls, input_tokens, output_tokens from spent where judge = ?"
        with self._lock, self._told("read"):
            return self._db.execute(select, (judge,)).fetchone() or (0, 0, 0)

    @property
    def judges(self) -> list[str]:
        """What it knows judges by whose verdicts are here, those of other ledgers included."""
        select = "select judge from verdicts union select judge from others order by 1"
        with self._lock, self._told("read"):
            return [judge for (judge,) in self._db.execute(select)]

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _told(self, what: str, path: Path | None = None) -> Iterator[None]:
        """What SQLite says, in one sentence with the file's name."""
        try:
            yield
        except sqlite3.Error as error:
            # A disk that is full is no damage.
            cure = "" if what == "written" else f"; {CURE}"
            raise RunError(f"{path or self.path} cannot be {what} as a verdict ledger: {error}{cure}") from None


def verdict_of(path: Path, key: Key, row: tuple[str, str, str]) -> Verdict:
    """A verdict from (outcome, fields, row_sha256) of the ledger at `path`.

    Raises:
      RunError: the row is not what was written.
    """
    outcome, fields, digest = row
    written = (*key, outcome, fields)
    if not all(isinstance(value, str) for value in written) or digest != _sha256(written):
        raise RunError(f"{path} is damaged: the verdict on response {key.response[:16]}; {CURE}")
    return Verdict(Outcome(outcome), json.loads(fields))


def verified(db: sqlite3.Connection, path: Path) -> Iterator[tuple[str, tuple]]:
    """(table, row) of all that a ledger holds, of one moment.

    Raises:
      RunError: a row is not what was written, or the last one is given and some are missing or too many.
      sqlite3.Error: the file is none of SQLite's, or its structure is damaged.
    """
    seal = _Seal()
    db.execute("begin")
    try:
        for table, columns in _KEYS.items():
            last = ()
            for row in db.execute(f"select * from {table}"):
                # Rows out of order could not be found by their key.
                if row[-1] != _sha256(row[:-1]) or last >= row[: len(columns)]:
                    raise RunError(f"{path} is damaged: a row of {table} is not what was written; {CURE}")
                last = row[: len(columns)]
                seal.add(row[-1])
                yield table, row
        if db.execute("select rows, digest from seal").fetchall() != [seal.values()]:
            raise RunError(f"{path} is damaged: rows are missing, or there are too many; {CURE}")
    finally:
        db.rollback()


def spent_in(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What all judges have cost a run, by their identity, whichever process asked: calls, input and output tokens.

    Raises:
      RunError: a ledger is damaged, or gone.
    """
    check_none_is_gone(folder)
    total: dict[str, tuple[int, int, int]] = {}
    for path in part_files(folder / NAME).values():
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=_TIMEOUT_SECONDS)) as db:
                for judge, *numbers, digest in db.execute("select * from spent"):
                    if digest != _sha256((judge, *numbers)):
                        raise RunError(f"{path} is damaged: what judge {judge} has cost; {CURE}")
                    before = total.get(judge, (0, 0, 0))
                    total[judge] = tuple(a + b for a, b in zip(before, numbers, strict=True))
        except sqlite3.Error as error:
            raise RunError(f"{path} cannot be read as a verdict ledger: {error}; {CURE}") from None
    return total


def logs_of(path: Path) -> list[Path]:
    """The files of a ledger with what was not yet put into it when a process was killed."""
    return [log for ending in ("-wal", "-journal") if (log := path.with_name(path.name + ending)).exists()]


def check_ledger(path: Path) -> int:
    """Goes over a ledger that nobody writes to, and leaves it as it is; returns how many verdicts are in it.

    Raises:
      RunError: it is damaged.
    """
    try:
        with contextlib.closing(to_read(path)) as db:
            return sum(table == "verdicts" for table, _ in verified(db, path))
    except sqlite3.Error as error:
        raise RunError(f"{path} is damaged: {error}") from None


def salvage(damaged: Path, target: Path) -> int:
    """Makes a ledger of those rows of another that can be read and are what was written; returns how many verdicts.

    Raises:
      RunError: the disk does not take it.
    """
    with contextlib.closing(Ledger(target)) as ledger:
        ledger._insert(_readable(damaged))
    return check_ledger(target)


def _readable(path: Path) -> Iterator[tuple[str, tuple]]:
    """(table, row) of what is as it was written; some may come twice."""
    with contextlib.closing(to_read(path)) as db:
        for table, columns in _KEYS.items():
            # Where it cannot be read on, from its other end.
            for way in ("asc", "desc"):
                order = ", ".join(f"{column} {way}" for column in columns)
                try:
                    for row in db.execute(f"select * from {table} order by {order}"):
                        if row[-1] == _sha256(row[:-1]):
                            yield table, row
                    break
                except sqlite3.Error:
                    pass


def to_read(path: Path) -> sqlite3.Connection:
    """A ledger as it is, without locks and files beside it, unless a log has to be put in first."""
    return sqlite3.connect(f"{path.absolute().as_uri()}{'' if logs_of(path) else '?immutable=1'}", uri=True)


def _verdict_row(item: tuple[Key, Verdict]) -> tuple[str, ...]:
    """A row of `verdicts`."""
    key, verdict = item
    row = (*key, str(verdict.outcome), json.dumps(dict(verdict.fields), sort_keys=True, default=str))
    return (*row, _sha256(row))


def _spent_row(item: tuple[str, tuple[int, int, int]]) -> tuple:
    """A row of `spent`."""
    row = (item[0], *item[1])
    return (*row, _sha256(row))


def _empty() -> bytes:
    """The file of a ledger without verdicts."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(_TABLES)
        db.execute("insert into seal values (?, ?)", _Seal().values())
        db.commit()
        return db.serialize()


class _Seal:
    """A number of rows and the XOR of their hashes, whatever order they come in."""

    def __init__(self, rows: int = 0, digest: str = "0"):
        self.rows, self.digest = rows, int(digest, 16)

    def add(self, row_sha256: str) -> None:
        self.rows, self.digest = self.rows + 1, self.digest ^ int(row_sha256, 16)

    def remove(self, row_sha256: str) -> None:
        self.rows, self.digest = self.rows - 1, self.digest ^ int(row_sha256, 16)

    def values(self) -> tuple[int, str]:
        return self.rows, f"{self.digest:064x}"


def _sha256(row: Iterable) -> str:
    return hashlib.sha256(_BETWEEN.join(map(str, row)).encode()).hexdigest()
