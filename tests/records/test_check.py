"""What is wrong with a run folder is said, and mended so that the run makes it again."""

import contextlib
import dataclasses
import fcntl
import hashlib
import shutil
import sqlite3

import numpy as np
import pytest

from lpe_jax.errors import RunError
from lpe_jax.records.check import Check, held
from lpe_jax.records.ledger import Ledger
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import read_run, write_record
from lpe_jax.records.shard import open_manifest
from tests.records import damage, scenario
from tests.records.damage import ROWS, restore


@pytest.fixture
def run(kept):
    """A finished run that may be damaged."""
    folder, files, _ = kept
    yield folder
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    restore(folder, files)


def go_on(folder):
    """The command that began the run, again."""
    scenario.draw(folder, rows=ROWS)
    damage.judge(folder)


def mended(folder):
    """Checks, mends, checks that nothing is wrong any more, goes on, and returns the findings by file."""
    with held(folder, to_write=True):
        found = Check(folder)
        found.mend()
        assert Check(folder).well
    go_on(folder)
    with held(folder, to_write=False):
        assert Check(folder).findings == []
    return {finding.path: finding for finding in found.findings}


def test_nothing_is_wrong(run):
    with held(run, to_write=False):
        found = Check(run)
    assert found.findings == [] and found.well
    assert found.there == [
        "3 prompts",
        "28 rollouts in 7 shards",
        "a bank of 3 prompts",
        "verdicts on 39 distinct responses",
    ]


def test_what_is_missing_or_damaged_is_named(run, kept):
    (run / "rollouts" / "000001.parquet").unlink()
    (run / "rollouts" / "000002-1.parquet").write_bytes(b"PAR1")
    (run / "prompts.jsonl").write_text("{}\n")
    (run / "estimates.csv").write_text("prompt_id,rollouts\np0,2\n")
    (run / "bank" / "000002.parquet").unlink()
    (run / "run.json").unlink()
    lines = (run / "bank" / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (run / "bank" / "manifest.jsonl").write_bytes(lines[0] + lines[2])
    found = mended(run)
    said = {path: finding.wrong for path, finding in found.items()}
    assert said["rollouts/000001.parquet"] == "is named in manifest.jsonl but does not exist"
    assert said["rollouts/000002-1.parquet"] == "is damaged: its sha256 is not the one in manifest-1.jsonl"
    assert said["bank/000002.parquet"] == "is named in manifest.jsonl but does not exist"
    assert said["bank/000001.parquet"] == "is named in no manifest"
    assert said["bank/manifest.jsonl"].startswith("line 2 is damaged, or one before it is missing")
    assert said["prompts.jsonl"] == "is damaged" and said["run.json"] == "is missing"
    assert said["estimates.csv"] == "is not what was written: run.json has another sha256 of it"
    assert len(found) == 8 and not any(finding.harmless for finding in found.values())
    assert scenario.everything(run, ROWS) == kept[2]
    aside = {path.relative_to(run / "damaged").as_posix() for path in (run / "damaged").rglob("*") if path.is_file()}
    assert aside == set(said) - {"rollouts/000001.parquet", "bank/000002.parquet", "run.json"}
    assert (run / "damaged" / "rollouts" / "000002-1.parquet").read_bytes() == b"PAR1"


def test_a_repaired_run_does_not_write_over_what_is_left(run):
    """The number of the next shard is not how many there are."""
    (run / "rollouts" / "000000.parquet").unlink()
    mended(run)
    names = [entry["shard"] for entry in open_manifest(run / "rollouts" / "manifest.jsonl").lines]
    assert names == ["000001.parquet", "000002.parquet", "000003.parquet", "000004.parquet"]


def test_lines_are_mended_from_their_shards(run):
    """A changed number costs no rollout, as the shard itself tells it."""
    path = run / "rollouts" / "manifest.jsonl"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"rows":4', b'"rows":5', 1))
    with held(run, to_write=True):
        found = Check(run)
        assert [finding.path for finding in found.findings] == ["rollouts/manifest.jsonl"]
        found.mend()
    assert path.read_bytes() == before


def test_verdicts_that_can_be_read_stay(run, kept):
    path = run / "verdicts-1.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("update verdicts set outcome = 'refused' where outcome = 'complied' and response like '%a%'")
        changed = db.execute("select changes()").fetchone()[0]
        kept_here = db.execute("select count(*) from verdicts").fetchone()[0] - changed
    assert changed
    with held(run, to_write=True):
        found = Check(run)
        assert [finding.path for finding in found.findings] == ["verdicts-1.sqlite"]
        found.mend()
        assert Check(run).well
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("select count(*) from verdicts").fetchone()[0] == kept_here
        assert db.execute("select count(*) from spent").fetchone()[0] == 1
    go_on(run)
    assert scenario.everything(run, ROWS) == kept[2]


def test_a_ledger_that_is_broken_in_the_middle_is_read_from_both_ends(tmp_path):
    scenario.draw(tmp_path / "run", rows=4)
    path = tmp_path / "run" / "verdicts.sqlite"
    with contextlib.closing(Ledger(path)) as ledger:
        key, verdict = scenario.judged(scenario.rollout(0))
        many = {key._replace(response=f"{i:04d}"): verdict for i in range(2000)}
        ledger.put(many)
    data = bytearray(path.read_bytes())
    middle = len(data) // 4096 // 2 * 4096
    data[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    with held(tmp_path / "run", to_write=True):
        Check(tmp_path / "run").mend()
    with contextlib.closing(Ledger(path)) as ledger:
        found = ledger.get(many)
        assert 1900 < len(found) < 2000 and found.items() <= many.items()
        assert {"0000", "1999"} <= {key.response for key in found}


def test_what_a_crash_leaves_is_no_damage(run):
    left = {
        "rollouts/000004.parquet": "is named in no manifest: a crash came before it was",
        "rollouts/.000004.parquet.tmp-12": "is what a crash left of a file that never was",
        ".shared-0123": "is what a crash left of a file that never was",
    }
    for name in left:
        (run / name).write_bytes(b"half")
    (run / ".run.json").unlink()
    with held(run, to_write=True):
        found = Check(run)
        assert found.well and all(finding.harmless for finding in found.findings)
        said = {finding.path: finding.wrong for finding in found.findings}
        assert said == left | {".run.json": "is missing"}
        found.mend()
        assert Check(run).findings == []
    assert read_run(run)["status"] == "finished", "nothing has to be made again"


def test_rollouts_that_are_there_twice(tmp_path):
    """Two processes that did not see each other's: alike they are harmless, and otherwise of two runs."""
    for part in range(2):
        scenario.draw(tmp_path / f"{part}", rows=8, part=part, finish=False)
    for path in (tmp_path / "1" / "rollouts").iterdir():
        shutil.copy(path, tmp_path / "0" / "rollouts" / path.name)
    with held(tmp_path / "0", to_write=False):
        assert Check(tmp_path / "0").findings == []
    other = RolloutStore(tmp_path / "0" / "rollouts", 2)
    other.append([dataclasses.replace(scenario.rollout(3), text="another")])
    other.flush()
    with held(tmp_path / "0", to_write=False):
        (finding,) = Check(tmp_path / "0").findings
    assert finding.wrong == "has rollouts twice and not alike, 1 of them: it is of two runs" and finding.cure is None


def test_fewer_rollouts_than_the_table_tells_of(run):
    """A finished run whose manifest lost its last line, which by itself looks like a crash."""
    path = run / "rollouts" / "manifest.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (run / "estimates.csv").write_text("prompt_id,rollouts\np0,20\np1,8\n")
    record = read_run(run)
    record["made"]["estimates.csv"] = hashlib.sha256((run / "estimates.csv").read_bytes()).hexdigest()
    write_record(run, record)
    with held(run, to_write=False):
        found = Check(run)
    assert not found.well
    assert [f.wrong for f in found.findings][1] == "has 24 rollouts, and estimates.csv tells of 28"


def test_all_rollouts_are_gone(run, kept):
    shutil.rmtree(run / "rollouts")
    found = mended(run)
    assert {path: finding.wrong for path, finding in found.items()} == {
        "rollouts": "has 0 rollouts, and estimates.csv tells of 1"
    }
    assert scenario.everything(run, ROWS) == kept[2]


def test_a_folder_that_cannot_be_checked(tmp_path, run):
    with pytest.raises(RunError, match="is no run folder"), held(tmp_path, to_write=False):
        pass
    assert list(tmp_path.iterdir()) == []
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by another process"), held(run, to_write=False):
            pass
    for name in ("run.json", ".run.json"):
        (run / name).write_text("{")
    with held(run, to_write=False), pytest.raises(RunError, match="nothing tells what it is a run of"):
        Check(run)


def damaged_mended_and_continued(kept, trials, seed):
    """What a reader sees a check sees, and a run that is repaired and continued is as if nothing had been."""
    folder, files, whole = kept
    rng, seen = np.random.default_rng(seed), 0
    for trial in range(trials):
        kind = damage.KINDS[trial % len(damage.KINDS)]
        try:
            kind(folder, files, rng)
            try:
                bad = scenario.everything(folder, ROWS) != whole
            except RunError:
                bad = True
            with held(folder, to_write=True):
                found = Check(folder)
                if bad and kind not in damage.LOSING:
                    assert not found.well, (trial, kind)
                seen += not found.well
                found.mend()
                again = Check(folder)
                assert again.well, (trial, kind, again.findings)
            go_on(folder)
            assert scenario.everything(folder, ROWS) == whole, (trial, kind)
        finally:
            shutil.rmtree(folder / "damaged", ignore_errors=True)
            restore(folder, files)
    return seen


def test_damage_is_mended(kept):
    assert damaged_mended_and_continued(kept, 40, seed=0) > 30


@pytest.mark.fault
def test_much_damage_is_mended(kept):
    assert damaged_mended_and_continued(kept, 400, seed=1) > 300
