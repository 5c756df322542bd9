"""Verdicts are paid for: a ledger that is gone is not taken for one that never was."""

import contextlib
import shutil

import pytest

from lpe_jax.errors import RunError
from lpe_jax.records import ledger
from lpe_jax.records.check import Check, held
from lpe_jax.records.ledger import NAME, Ledger, spent_in
from lpe_jax.records.lookup import Lookup
from tests.records import scenario


@pytest.fixture
def run(tmp_path):
    """A finished run of two processes, with their verdicts."""
    for part in range(2):
        scenario.draw(tmp_path / "run", rows=8, part=part)
        scenario.judge(tmp_path / "run", 8, part)
    return tmp_path / "run"


def findings(folder, *, mend=False):
    """What a check says; with mend, of a folder in which nothing is wrong afterwards."""
    with held(folder, to_write=mend):
        found = Check(folder)
        if mend:
            found.mend()
            assert Check(folder).well
    return [(finding.path, finding.wrong) for finding in found.findings]


@pytest.mark.parametrize("name", [NAME, "verdicts-1.sqlite"])
def test_a_lost_ledger_is_missed(run, name):
    """By whoever opens one of the folder, before anything is asked, and by a check; mended, it may be made anew."""
    (run / name).unlink()
    said = f"{name} is missing, and there was one"
    ledgers = (lambda: Ledger(run / NAME), lambda: Ledger(run / "verdicts-1.sqlite"))
    for use in (*ledgers, lambda: spent_in(run), lambda: Lookup(run)):
        with pytest.raises(RunError, match=said):
            use()
        assert not (run / name).exists()
    assert findings(run) == [(name, "is missing")]
    assert findings(run, mend=True) == [(name, "is missing")]
    assert list((run / "damaged").iterdir()) == [run / "damaged" / f".{name}"], "nothing is deleted"
    with contextlib.closing(Ledger(run / name)) as anew:
        assert anew.spent(scenario.JUDGE) == (0, 0, 0)


def test_a_lost_ledger_with_its_log(run):
    """The log alone is of no use, and is moved with it."""
    shutil.copy(run / NAME, run / f"{NAME}-wal")
    (run / NAME).unlink()
    assert set(findings(run, mend=True)) == {(NAME, "is missing"), (f"{NAME}-wal", "is there without its ledger")}


def test_the_first_process_of_a_finished_run_had_one(run):
    """Runs that kept no note of their ledgers too."""
    for path in [run / NAME, *run.glob(".verdicts*")]:
        path.unlink()
    assert findings(run, mend=True) == [(NAME, "is missing")]


def test_ledgers_without_a_note_get_one(run):
    for path in run.glob(".verdicts*"):
        path.unlink()
    Ledger(run / NAME).close()
    (run / NAME).unlink()
    with pytest.raises(RunError, match="is missing, and there was one"):
        Ledger(run / NAME)


def test_a_crash_before_the_note_loses_nothing(tmp_path, monkeypatch):
    """The ledger is there first: a note without one would have the next start refused."""

    def crashed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger, "note", crashed)
        Ledger(tmp_path / NAME)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    Ledger(tmp_path / NAME).close()


def test_a_run_that_keeps_no_verdicts_misses_none(tmp_path):
    """A sweep whose judge is exact and free."""
    scenario.draw(tmp_path, rows=4, finish=False)
    assert spent_in(tmp_path) == {} and findings(tmp_path) == []
