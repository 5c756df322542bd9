"""The verdict ledger: what each judge said of each response, asked once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from lpe_jax.errors import RunError
from lpe_jax.types import Outcome, Prompt, Verdict

_TABLE = """
create table if not exists verdicts (
  key text primary key,      -- verdict_key: judge, prompt and response
  judge text not null,
  outcome text not null,
  fields text not null,      -- JSON
  row_sha256 text not null   -- of the four above
) without rowid
"""
_COLUMNS = "judge, outcome, fields, row_sha256"
_TIMEOUT_SECONDS = 60.0


class Ledger:
    """Verdicts by key, in SQLite with a write-ahead log and full syncs: what put has returned from survives."""

    def __init__(self, path: Path, *, shared: bool = False):
        """shared: other machines may read the file meanwhile. A write-ahead log is for one machine only."""
        self.path = path
        self._others: dict[str, tuple] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=_TIMEOUT_SECONDS)
            self._db.execute(f"pragma journal_mode={'delete' if shared else 'wal'}")
            self._db.execute("pragma synchronous=full")
            with self._db:
                self._db.execute(_TABLE)
        except sqlite3.Error as error:
            raise RunError(f"{path} cannot be opened as a verdict ledger: {error}") from None

    def get(self, keys: Iterable[str]) -> dict[str, Verdict]:
        """The verdicts that are there.

        Raises:
          RunError: a row is not what was written.
        """
        found = {}
        for key in keys:
            row = self._db.execute(f"select {_COLUMNS} from verdicts where key = ?", (key,)).fetchone()
            if (row := row or self._others.get(key)) is not None:
                judge, outcome, fields, digest = row
                if digest != _row_sha256(key, judge, outcome, fields):
                    raise RunError(f"{self.path}: the verdict {key[:16]} is damaged")
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
                        rows = db.execute(f"select key, {_COLUMNS} from verdicts")
                        self._others |= {key: tuple(row) for key, *row in rows}
            except sqlite3.Error as error:
                raise RunError(f"{path} cannot be read as a verdict ledger: {error}") from None

    def put(self, judge: str, verdicts: Mapping[str, Verdict]) -> None:
        """Commits new verdicts in one transaction. A key that is there already keeps its verdict."""
        rows = []
        for key, verdict in verdicts.items():
            fields = json.dumps(dict(verdict.fields), sort_keys=True, default=str)
            outcome = str(verdict.outcome)
            rows.append((key, judge, outcome, fields, _row_sha256(key, judge, outcome, fields)))
        try:
            with self._db:
                self._db.executemany("insert or ignore into verdicts values (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise RunError(f"{self.path} cannot be written: {error}") from None

    def close(self) -> None:
        self._db.close()


def verdict_key(judge: str, prompt: Prompt, response: str) -> str:
    """What a verdict depends on, as one sha256. Equal responses to one prompt share a verdict."""
    turns = [[m.role, m.content] for m in prompt.messages]
    return hashlib.sha256(json.dumps([judge, turns, response]).encode()).hexdigest()


def _row_sha256(key: str, judge: str, outcome: str, fields: str) -> str:
    return hashlib.sha256(json.dumps([key, judge, outcome, fields]).encode()).hexdigest()
