"""Whatever a disk does to what is stored: an error names the file, or what is read is right to the last bit."""

import contextlib
import re

import numpy as np
import pytest

from lpe_jax.errors import RunError
from lpe_jax.records import chain, ledger
from tests.records import damage, scenario
from tests.records.damage import KINDS, OWN, ROWS, records, restore


def lost_last_shard(found, whole):
    """As if a crash had come before the last shard of one process was named."""
    last = [{scenario.plain(scenario.rollout(i)) for i in own[-4:]} for own in OWN]
    fewer = [sorted(set(whole["rows"]) - rows) for rows in last]
    return found["rows"] in fewer and {**found, "rows": 0, "index": 0} == {**whole, "rows": 0, "index": 0}


def silent(kept, trials, seed=0, kinds=KINDS):
    """Damages so many times, and returns how often nothing was said of it and what was read was wrong."""
    folder, files, whole = kept
    rng, wrong = np.random.default_rng(seed), []
    for trial in range(trials):
        kind = kinds[trial % len(kinds)]
        try:
            damaged = kind(folder, files, rng)
            try:
                found = scenario.everything(folder, ROWS)
            except RunError as error:
                if not any(path.name in str(error) for path in damaged):
                    wrong.append((trial, kind.__name__, damaged, str(error)))
            else:
                if found != whole and not (kind in damage.LOSING and lost_last_shard(found, whole)):
                    wrong.append((trial, kind.__name__, damaged))
        finally:
            restore(folder, files)
    assert scenario.everything(folder, ROWS) == whole
    return wrong


def test_damage_is_seen(kept):
    assert silent(kept, 300) == []


@pytest.mark.fault
def test_much_damage_is_seen(kept):
    assert silent(kept, 2000, seed=1) == []


def test_without_the_hashes_damage_would_be_silent(kept, monkeypatch):
    """What SQLite, Parquet and JSON see by themselves is not enough."""
    folder, files, whole = kept
    with monkeypatch.context() as patch:
        for path in records(files, "manifest.*"):
            path.write_bytes(re.sub(rb'"chain":"[0-9a-f]*"', b'"chain":"0"', path.read_bytes()))
        patch.setattr(chain, "_hash", lambda last, entry: "0")
        changed = {path: path.read_bytes() for path in files}
        assert silent((folder, changed, whole), 20, kinds=[damage.lines_changed])
    restore(folder, files)

    def unverified(db, path):
        return (("verdicts", row) for row in db.execute("select * from verdicts"))

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "verified", unverified)
        assert silent(kept, 20, kinds=[damage.rows_changed])


def test_a_damaged_log_is_as_if_less_had_been_written(tmp_path):
    """What was not yet put into the ledger when a process was killed: SQLite takes of it what is whole."""
    writing = ledger.Ledger(tmp_path / "verdicts.sqlite")
    states = [({}, (0, 0, 0))]
    for i in range(6):
        key, verdict = scenario.judged(scenario.rollout(i))
        writing.put({key._replace(response=str(i)): verdict}, {scenario.JUDGE: (i, i, i)})
        states.append((states[-1][0] | {key._replace(response=str(i)): verdict}, (i, i, i)))
    log = (tmp_path / "verdicts.sqlite-wal").read_bytes()
    rng, lengths = np.random.default_rng(0), set()
    for trial in range(30):
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "verdicts.sqlite").write_bytes((tmp_path / "verdicts.sqlite").read_bytes())
        data = bytearray(log)
        data[rng.integers(len(log))] ^= 1 << int(rng.integers(8))
        (folder / "verdicts.sqlite-wal").write_bytes(data)
        with contextlib.closing(ledger.Ledger(folder / "verdicts.sqlite")) as again:
            found = again.get(states[-1][0]), again.spent(scenario.JUDGE)
        assert found in states
        lengths.add(len(found[0]))
    assert len(lengths) > 2
    writing.close()
