"""Notes beside the ledgers of a run folder, each of which says that there is one of its name.

A ledger that is gone would else be taken for one that never was, and all that is in it be asked for again, and paid.
"""

from __future__ import annotations

import re
from pathlib import Path

from lpe_jax.errors import RunError
from lpe_jax.records.files import CURE, write_whole

_LEDGER = r"verdicts(-\d+)?\.sqlite"


def note(ledger: Path) -> None:
    """Has a ledger of a run be missed when it is gone; to be called when it is there.

    Raises:
      RunError: the disk does not take it.
    """
    path = note_of(ledger)
    if re.fullmatch(_LEDGER, ledger.name) and not path.exists():
        write_whole(path, b"")


def note_of(ledger: Path) -> Path:
    """Where the note of a ledger is."""
    return ledger.with_name(f".{ledger.name}")


def gone(folder: Path) -> list[Path]:
    """The ledgers of a run folder that were there and are not."""
    # Of one moment: another process may be making one.
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    noted = {name[1:] for name in names if re.fullmatch(rf"\.{_LEDGER}", name)}
    return [folder / name for name in sorted(noted - names)]


def check_none_is_gone(folder: Path) -> None:
    """
    Raises:
      RunError: a ledger was there and is not.
    """
    for ledger in gone(folder):
        raise RunError(f"{ledger} is missing, and there was one: what is in it was paid for; {CURE}")
