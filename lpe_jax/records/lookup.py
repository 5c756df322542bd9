"""What the ledgers of a run hold, looked up: nothing is written, and no ledger is made."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from lpe_jax.errors import RunError
from lpe_jax.records.files import CURE, part_files
from lpe_jax.records.ledger import NAME, Key, to_read, verdict_of, verified
from lpe_jax.records.noted import check_none_is_gone
from lpe_jax.types import Verdict

_SELECT = "select outcome, fields, row_sha256 from verdicts where judge = ? and prompt = ? and response = ?"


class Lookup(contextlib.ExitStack):
    """The verdicts of all processes of a run, those of the first coming first. Use it within `with`.

    Attributes:
      judges: what they know judges by whose verdicts are here.
    """

    def __init__(self, folder: Path):
        """Opens every ledger of a run folder and goes over all of it, so that what is not found was never written.

        Raises:
          RunError: one is damaged, or gone.
        """
        super().__init__()
        check_none_is_gone(folder)
        self._ledgers: list[tuple[Path, sqlite3.Connection]] = []
        names: dict[str, None] = {}
        with contextlib.ExitStack() as failed:
            for path in part_files(folder / NAME).values():
                try:
                    db = failed.enter_context(contextlib.closing(to_read(path)))
                    names |= {row[0]: None for table, row in verified(db, path) if table == "verdicts"}
                except sqlite3.Error as error:
                    raise RunError(f"{path} cannot be read as a verdict ledger: {error}; {CURE}") from None
                self._ledgers.append((path, db))
            self.push(failed.pop_all())
        self.judges = sorted(names)

    def get(self, keys: Iterable[Key]) -> dict[Key, Verdict]:
        """The verdicts that are there.

        Raises:
          RunError: a row is not what was written.
        """
        found = {}
        for key in keys:
            for path, db in self._ledgers:
                if key not in found and (row := db.execute(_SELECT, key).fetchone()) is not None:
                    found[key] = verdict_of(path, key, row)
        return found
