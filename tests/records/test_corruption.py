"""Whatever a disk does to what is stored: an error names the file, or what is read is right to the last bit."""

import contextlib
import re
import sqlite3

import numpy as np
import pytest

from lpe_jax.errors import RunError
from lpe_jax.records import ledger, manifest
from tests.records import scenario

ROWS = 28


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of two processes and of a bank; its files as bytes, what is read of it, and what without its last shard."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    scenario.draw(folder, rows=16)
    scenario.draw(folder, rows=ROWS, part=1, bank=False)
    scenario.judge(folder, rows=16)
    scenario.judge(folder, rows=ROWS, part=1)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return folder, files, scenario.everything(folder, ROWS)


def restore(folder, files):
    for path in folder.rglob("*"):
        if path.is_file() and path not in files:
            path.unlink()
    for path, data in files.items():
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def lost_last_shard(found, whole):
    """As if a crash had come before the last shard of one process was named."""
    last = [{scenario.plain(scenario.rollout(i)) for i in own} for own in (range(12, 16), range(24, ROWS))]
    fewer = [sorted(set(whole["rows"]) - rows) for rows in last]
    return found["rows"] in fewer and {**found, "rows": 0, "index": 0} == {**whole, "rows": 0, "index": 0}


def records(files, pattern=r"(run\.json|prompts\.jsonl|verdicts.*|manifest.*|.*\.parquet)"):
    return [path for path in files if re.fullmatch(pattern, path.name)]


def flipped(folder, files, rng):
    path = rng.choice(records(files))
    data = bytearray(files[path])
    for _ in range(rng.choice([1, 1, 1, 3])):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return [path]


def cut(folder, files, rng):
    path = rng.choice(records(files))
    path.write_bytes(files[path][: rng.integers(len(files[path]))])
    return [path]


def shards_moved(folder, files, rng):
    shards = records(files, r".*\.parquet")
    one, other = rng.choice(shards, 2, replace=False)
    match rng.integers(4):
        case 0:
            one.write_bytes(files[other])
            other.write_bytes(files[one])
        case 1:
            one.unlink()
        case 2:
            one.write_bytes(files[other])
        case 3:
            one.rename(other)
    return [one, other]


def lines_changed(folder, files, rng):
    path = rng.choice(records(files, r"(manifest.*|prompts\.jsonl)"))
    lines = files[path].splitlines(keepends=True)
    i, j = rng.choice(len(lines), 2, replace=False)
    match rng.integers(5):
        case 0:
            lines[i], lines[j] = lines[j], lines[i]
        case 1:
            lines.insert(j, lines[i])
        case 2:
            del lines[i]
        case 3:
            digits = [k for k, byte in enumerate(lines[i]) if byte in b"0123456789"] or [0]
            at = int(rng.choice(digits))
            lines[i] = lines[i][:at] + str((int(lines[i][at : at + 1] or b"0") + 1) % 10).encode() + lines[i][at + 1 :]
        case 4:
            lines[i] = lines[j]
    path.write_bytes(b"".join(lines))
    return [path]


def files_gone(folder, files, rng):
    path = rng.choice(records(files, r"(run\.json|prompts\.jsonl|manifest.*|.*\.parquet)"))
    path.unlink()
    return [path, *path.parent.glob("*.parquet")]


def rows_changed(folder, files, rng):
    """By SQLite itself, so that its structure is in order."""
    path = rng.choice(records(files, r"verdicts.*\.sqlite"))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        one, other = (
            row[0] for row in db.execute("select response from verdicts order by random() limit 2").fetchall()
        )
        match rng.integers(6):
            case 0:
                db.execute("delete from verdicts where response = ?", [one])
            case 1:
                fields = db.execute("select fields from verdicts where response = ?", [one]).fetchone()
                db.execute("update verdicts set fields = '{}', outcome = 'unscored' where response = ?", [other])
                assert fields
            case 2:
                db.execute("update verdicts set response = 'x' where response = ?", [one])
            case 3:
                db.execute("update spent set calls = calls + 1")
            case 4:
                db.execute("delete from spent")
            case 5:
                db.execute("update seal set rows = rows + 1")
    return [path]


def pages_changed(folder, files, rng):
    path = rng.choice(records(files, r"verdicts.*\.sqlite"))
    data, size = bytearray(files[path]), 4096
    one, other = rng.choice(len(data) // size, 2, replace=False)
    page = bytes(size) if rng.integers(2) else files[path][other * size : (other + 1) * size]
    data[one * size : (one + 1) * size] = page
    path.write_bytes(data)
    return [path]


KINDS = (flipped, flipped, cut, shards_moved, lines_changed, files_gone, rows_changed, pages_changed)


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
                if found != whole and not (kind in (cut, lines_changed, files_gone) and lost_last_shard(found, whole)):
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
        patch.setattr(manifest, "_hash", lambda last, entry: "0")
        changed = {path: path.read_bytes() for path in files}
        assert silent((folder, changed, whole), 20, kinds=[lines_changed])
    restore(folder, files)

    def unverified(db, path):
        return (("verdicts", row) for row in db.execute("select * from verdicts"))

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "verified", unverified)
        assert silent(kept, 20, kinds=[rows_changed])


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
