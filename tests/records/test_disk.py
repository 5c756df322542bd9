"""A disk that is full, broken or read-only, or loses power: what was promised to be on it is, and nothing half.

SQLite's own writes are not seen here; it is tested for all of this by its authors, and runs with full syncs.
"""

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from lpe_jax.errors import RunError
from lpe_jax.records import files
from lpe_jax.records.bank import BankStore
from lpe_jax.records.ledger import Ledger
from lpe_jax.records.prompts import read_prompts
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import read_run
from tests.records import scenario
from tests.records.disk import Disk, Lost

KINDS = (errno.ENOSPC, errno.EIO, errno.EROFS)


@pytest.fixture
def on(monkeypatch):
    """Has the records be written to a disk, for a while."""

    @contextlib.contextmanager
    def on(disk):
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", disk)
            yield disk

    return on


def content(folder, rows):
    """All that a run keeps for good."""
    scenario.judge(folder, rows)
    return scenario.everything(folder, rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What runs that nothing happened to have, by their size."""

    def make(rows, each):
        folder = tmp_path_factory.mktemp("whole") / "run"
        scenario.draw(folder, rows=rows, each=each)
        return content(folder, rows)

    return {size: make(*size) for size in ((8, 4), (12, 4))}


def keeps(folder, said, rows):
    """Whether what was said to be on disk is, whole and right, and nothing else than what was drawn."""
    done = {name: value for words in said for name, value in words.items()}
    record = read_run(folder)
    assert not done.get("record") or record is not None
    store = RolloutStore(folder / "rollouts")
    found = [scenario.plain(r) for r in store.read()]
    assert found == [scenario.plain(scenario.rollout(i)) for i in range(len(found))]
    assert done.get("rows", 0) <= len(found) == len(store.index()) <= rows
    if found:
        assert read_prompts(folder, scenario.ASKED["prompt_texts"]) == scenario.PROMPTS
    bank = BankStore(folder)
    assert list(bank.entries) == list(range(len(bank.entries))) and len(bank.entries) >= done.get("bank", 0)
    for number in bank.entries:
        assert scenario.plain(bank.read(number).rows) == scenario.plain(scenario.shard(number).rows)
    assert not done.get("finished") or record["status"] == "finished"
    if record is not None and record["status"] == "finished":
        assert len(found) == rows and (folder / "estimates.csv").read_text() == scenario.TABLE


def broken(folder, on, kind, number, lasting, whole, rows=8, each=4):
    """A run on a disk whose number-th operation fails, or all from there on; False if it has not so many."""

    def fails(n):
        return OSError(kind, os.strerror(kind)) if n == number or (lasting and n > number) else None

    disk = Disk(fails)
    with on(disk):
        try:
            scenario.draw(folder, rows=rows, each=each, commit=disk.say)
            return False
        except RunError as error:
            assert str(folder) in str(error) and os.strerror(kind) in str(error), error
            assert str(error).count("cannot be written") == 1
    keeps(folder, [words for name, words in (e for e in disk.log if e[0] == "say")], rows)
    assert lasting or not list(folder.rglob(".*.tmp-*"))
    scenario.draw(folder, rows=rows, each=each)
    assert content(folder, rows) == whole[rows, each]
    return True


def test_a_disk_that_fails_once_or_from_then_on(tmp_path, on, whole):
    """Every operation, each in one of the ways."""
    number = 0
    while broken(tmp_path / str(number), on, KINDS[number % 3], number, number // 3 % 2, whole):
        number += 1
    assert number > 60


@pytest.mark.fault
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_in_every_way(tmp_path, on, whole, kind, lasting):
    number = 0
    while broken(tmp_path / str(number), on, kind, number, lasting, whole, 12, 4):
        number += 1
    assert number > 80


def test_a_ledger_on_a_full_disk(tmp_path):
    """SQLite says so, the transaction is not there, and with room it is taken."""
    path = tmp_path / "verdicts.sqlite"
    with contextlib.closing(Ledger(path)) as ledger:
        pages = ledger._db.execute("pragma page_count").fetchone()[0]
        ledger._db.execute(f"pragma max_page_count = {pages}")
        first, many = ([scenario.judged(scenario.rollout(i)) for i in own] for own in (range(2), range(2, 400)))
        ledger.put(dict(first))
        many = {key._replace(response=f"{i}"): verdict for i, (key, verdict) in enumerate(many)}
        with pytest.raises(RunError, match=r"verdicts\.sqlite cannot be written as a verdict ledger: database .* full"):
            ledger.put(many, {"judge": (1, 2, 3)})
        assert ledger.get([*dict(first), *many]) == dict(first) and ledger.spent("judge") == (0, 0, 0)
        ledger._db.execute("pragma query_only = on")
        with pytest.raises(RunError, match="cannot be written .*readonly"):
            ledger.put(many)
        ledger._db.execute("pragma query_only = off")
        ledger._db.execute("pragma max_page_count = 10000")
        ledger.put(many, {"judge": (1, 2, 3)})
    with contextlib.closing(Ledger(path)) as ledger:
        assert ledger.get([*dict(first), *many]) == dict(first) | many and ledger.spent("judge") == (1, 2, 3)


def test_a_ledger_that_cannot_be_opened(tmp_path, monkeypatch):
    Ledger(tmp_path / "verdicts.sqlite").close()

    def fails(*args, **kwargs):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", fails)
    with pytest.raises(RunError, match=r"verdicts\.sqlite cannot be opened as a verdict ledger: unable to open"):
        Ledger(tmp_path / "verdicts.sqlite")


def powerless(root, on, rows, each, variants, go_on, whole, unsynced=()):
    """Cuts the power at every operation of a run, in so many ways; returns how many cuts, and what was not kept.

    Args:
      variants: ways in which what was not synced may be there in part; one more loses all of it.
      go_on: every so-many-th run is continued and compared.
    """
    disk = Disk(unsynced=unsynced)
    before = root / "before"
    before.mkdir()
    with on(disk):
        scenario.draw(before / "run", rows=rows, each=each, commit=disk.say)
    lost, wrong, cuts = Lost(), [], 0
    rng = np.random.default_rng(0)
    for entry in [*disk.log, ("say", {})]:
        if entry[0] != "say":
            for variant in range(variants + 1):
                after = root / f"after-{cuts}"
                after.mkdir()
                for path, data in sorted(lost.left(rng if variant else None).items()):
                    place = after / Path(path).relative_to(before)
                    place.mkdir() if data is None else place.write_bytes(data)
                try:
                    keeps(after / "run", lost.said, rows)
                    if cuts % go_on == 0:
                        scenario.draw(after / "run", rows=rows, each=each)
                        assert content(after / "run", rows) == whole
                except (AssertionError, RunError) as error:
                    wrong.append((cuts, entry, error))
                cuts += 1
        lost.do(*entry)
    return cuts, wrong


def test_power_may_go_at_any_time(tmp_path, on, whole):
    cuts, wrong = powerless(tmp_path, on, 12, 4, variants=2, go_on=11, whole=whole[12, 4])
    assert cuts > 200 and wrong == []


@pytest.mark.fault
def test_power_may_go_at_any_of_many_times(tmp_path, on):
    rows, each = 120, 3
    scenario.draw(tmp_path / "whole" / "run", rows=rows, each=each)
    whole = content(tmp_path / "whole" / "run", rows)
    cuts, wrong = powerless(tmp_path, on, rows, each, variants=3, go_on=10, whole=whole)
    assert cuts > 1000 and wrong == []


@pytest.mark.parametrize("unsynced", ["file", "folder"])
def test_without_syncs_power_would_take_something(tmp_path, on, whole, unsynced):
    _, wrong = powerless(tmp_path, on, 8, 4, variants=0, go_on=10**9, whole=whole[8, 4], unsynced=(unsynced,))
    assert wrong
