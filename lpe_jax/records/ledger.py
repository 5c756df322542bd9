"""The verdict ledger: what each judge said of each response, asked once, and what its answers came to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from lpe_jax.errors import RunError
from lpe_jax.types import Outcome, Prompt, Verdict

_TABLES = """
create table if not exists verdicts (
  judge text,
  prompt text,               -- sha256 of its turns
  response text,             -- sha256
  outcome text not null,
  fields text not null,      -- JSON
  row_sha256 text not null,  -- of the five above
  primary key (judge, prompt, response)
) without rowid;
create table if not exists spent (
  judge text primary key,
  calls integer not null,
  input_tokens integer not null,
  output_tokens integer not null
) without rowid;
"""
_TIMEOUT_SECONDS = 60.0


class Key(NamedTuple):
    """What a verdict depends on: the judge's identity, and sha256 of the prompt's turns and of the response."""

    judge: str
    prompt: str
    response: str

    @classmethod
    def of(cls, judge: str, prompt: Prompt, response: str) -> Key:
        """Equal responses to equal prompts have one key."""
        turns = json.dumps([[m.role, m.content] for m in prompt.messages])
        # A response may hold halves of surrogate pairs, which UTF-8 has no place for.
        return cls(judge, *(hashlib.sha256(t.encode("utf-8", "surrogatepass")).hexdigest() for t in (turns, response)))


class Ledger:
    """Verdicts by key, in SQLite with a write-ahead log and full syncs: what put has returned from survives.

    Any thread may use it, one at a time.
    """

    def __init__(self, path: Path, *, shared: bool = False):
        """shared: other machines may read the file meanwhile. A write-ahead log is for one machine only."""
        self.path = path
        self._others: dict[Key, tuple] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=_TIMEOUT_SECONDS, check_same_thread=False)
            self._db.execute(f"pragma journal_mode={'delete' if shared else 'wal'}")
            self._db.execute("pragma synchronous=full")
            with self._db:
                for table in _TABLES.split(";"):
                    self._db.execute(table)
        except sqlite3.Error as error:
            raise RunError(f"{path} cannot be opened as a verdict ledger: {error}") from None

    def get(self, keys: Iterable[Key]) -> dict[Key, Verdict]:
        """The verdicts that are there.

        Raises:
          RunError: a row is not what was written.
        """
        found = {}
        select = "select outcome, fields, row_sha256 from verdicts where judge = ? and prompt = ? and response = ?"
        with self._lock:
            rows = {key: self._db.execute(select, key).fetchone() or self._others.get(key) for key in keys}
        for key, row in rows.items():
            if row is not None:
                outcome, fields, digest = row
                if digest != _row_sha256(key, outcome, fields):
                    raise RunError(f"{self.path}: the verdict on response {key.response[:16]} is damaged")
                found[key] = Verdict(Outcome(outcome), json.loads(fields))
        return found

    def learn(self, paths: Iterable[Path]) -> None:
        """Takes the verdicts of other ledgers, which stay as they are; those of its own come first.

        Raises:
          RunError: one of them cannot be read.
        """
        for path in paths:
            try:
                with contextlib.closing(sqlite3.connect(path, timeout=_TIMEOUT_SECONDS)) as db:
                    if db.execute("select 1 from sqlite_master where name = 'verdicts'").fetchone():
                        rows = db.execute("select judge, prompt, response, outcome, fields, row_sha256 from verdicts")
                        self._others |= {Key(*row[:3]): tuple(row[3:]) for row in rows}
            except sqlite3.Error as error:
                raise RunError(f"{path} cannot be read as a verdict ledger: {error}") from None

    def put(self, verdicts: Mapping[Key, Verdict], spent: Mapping[str, tuple[int, int, int]] | None = None) -> None:
        """Commits new verdicts in one transaction. A key that is there already keeps its verdict.

        Args:
          spent: what the answers of a judge have come to so far, by its identity: calls, input and output tokens.
        """
        rows = []
        for key, verdict in verdicts.items():
            fields = json.dumps(dict(verdict.fields), sort_keys=True, default=str)
            outcome = str(verdict.outcome)
            rows.append((*key, outcome, fields, _row_sha256(key, outcome, fields)))
        try:
            with self._lock, self._db:
                self._db.executemany("insert or ignore into verdicts values (?, ?, ?, ?, ?, ?)", rows)
                totals = [(judge, *numbers) for judge, numbers in (spent or {}).items()]
                self._db.executemany("insert or replace into spent values (?, ?, ?, ?)", totals)
        except sqlite3.Error as error:
            raise RunError(f"{self.path} cannot be written: {error}") from None

    def spent(self, judge: str) -> tuple[int, int, int]:
        """What `put` was last told of a judge: calls, input and output tokens."""
        with self._lock:
            row = self._db.execute(
                "select calls, input_tokens, output_tokens from spent where judge = ?", (judge,)
            ).fetchone()
        return row or (0, 0, 0)

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._db.close()


def _row_sha256(key: Key, outcome: str, fields: str) -> str:
    return hashlib.sha256(json.dumps([*key, outcome, fields]).encode()).hexdigest()
