"""Ways in which a disk or a hand damages a run folder."""

import contextlib
import re
import sqlite3

from tests.records import scenario

ROWS = 28
# Rollouts of the run below by process, and how many shards they make.
OWN = range(16), range(16, ROWS)


def make(folder):
    """A run of two processes, and of a bank; its files as bytes, and what is read of it."""
    for part, own in enumerate(OWN):
        scenario.draw(folder, rows=own.stop, part=part, bank=part == 0)
    judge(folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return folder, files, scenario.everything(folder, ROWS)


def judge(folder):
    """The verdicts of both processes."""
    for part, own in enumerate(OWN):
        scenario.judge(folder, own.stop, part)


def restore(folder, files):
    """Has a folder be as it was."""
    for path in folder.rglob("*"):
        if path.is_file() and path not in files:
            path.unlink()
    for path, data in files.items():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


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
    path = rng.choice(records(files, r"(run\.json|prompts\.jsonl|manifest.*|verdicts.*|.*\.parquet)"))
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
# Those that may leave what a crash leaves: the last shard of a process not named.
LOSING = (cut, lines_changed, files_gone)
