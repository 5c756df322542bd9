"""A run folder that somebody else made: nothing in it can have a file elsewhere read, moved or written."""

import hashlib
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpe_jax.errors import RunError
from lpe_jax.records.bank import BankStore
from lpe_jax.records.check import Check, held
from lpe_jax.records.ledger import NAME as LEDGER
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import read_run, write_record
from lpe_jax.records.shard import open_manifest, write_manifest
from tests.records import scenario

ROWS = 8
SECRET = b"PAR1 none of the run's"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("made") / "run"
    scenario.draw(folder, rows=ROWS)
    scenario.judge(folder, ROWS)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of it, beside a file that is none of its own; whatever happens, that stays."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(made, folder)
    elsewhere.mkdir()
    (elsewhere / "notes.parquet").write_bytes(SECRET)
    yield folder
    assert [(path.name, path.read_bytes()) for path in elsewhere.iterdir()] == [("notes.parquet", SECRET)]


def mended(folder):
    """The findings, after a repair that leaves nothing wrong."""
    with held(folder, to_write=True):
        found = Check(folder)
        found.mend()
        assert Check(folder).well
    return [(finding.path, finding.wrong) for finding in found.findings]


def line(folder, **other):
    """One of a rollout manifest, with other values."""
    return RolloutStore(folder / "rollouts").manifests[0].lines[0] | other


NO_SHARD = [
    {"shard": "../../elsewhere/notes.parquet"},
    {"shard": "/etc/hostname"},
    {"shard": "000000.parquet/../../../elsewhere/notes.parquet"},
    {"shard": 7},
    {"shard": None},
    {"sha256": 7},
    {"rows": "4"},
]


@pytest.mark.parametrize("other", NO_SHARD)
@pytest.mark.parametrize("of", ["rollouts", "bank"])
def test_a_line_names_a_shard_of_its_own_folder(run, of, other):
    """Whose hash is right, as whoever writes a manifest writes its hashes."""
    path = run / of / "manifest.jsonl"
    digest = {"sha256": hashlib.sha256(SECRET).hexdigest()}
    write_manifest(path, [line(run) | digest | {"number": 0, "prompt_id": "p0"} | other])
    open_store = {"rollouts": RolloutStore, "bank": lambda folder: BankStore(folder.parent)}[of]
    with pytest.raises(RunError, match=r"manifest.jsonl, line 1 is damaged: it names no shard"):
        open_store(run / of)
    assert (f"{of}/manifest.jsonl", "line 1 is damaged: it names no shard of a run") in mended(run)


@pytest.mark.parametrize("of", ["rollouts", "bank"])
@pytest.mark.parametrize("name", ["000009.parquet", "000009-1.parquet"])
@pytest.mark.parametrize("content", ["no table", "another table"])
def test_a_shard_with_the_right_hash_may_be_anything(run, of, name, content):
    path = run / of / name
    if content == "no table":
        path.write_bytes(SECRET)
    else:
        pq.write_table(pa.table({"x": [1]}), path)
    manifest = open_manifest(run / of / "manifest.jsonl")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.append({"shard": name, "sha256": digest, "rows": 1, "number": 9, "prompt_id": "p0"})
    assert f"{of}/{name}" in [found for found, _ in mended(run)]


@pytest.mark.parametrize(
    "name", ["../elsewhere/notes.parquet", "/etc/hostname", "..", ".", "", "a/b", "x\0y", ".run.json", "\x1b[2Jx"]
)
def test_what_a_run_made_lies_in_its_folder(run, name):
    write_record(run, read_run(run) | {"made": {name: hashlib.sha256(b"").hexdigest()}})
    with pytest.raises(RunError, match=r"run\.json is damaged or was written by another version"):
        read_run(run)
    with held(run, to_write=True), pytest.raises(RunError, match="nothing tells what it is a run of"):
        Check(run)


@pytest.mark.parametrize("odd", [{"made": []}, {"asked": []}])
def test_a_record_is_of_the_kinds_it_should_be(run, odd):
    write_record(run, read_run(run) | odd)
    with pytest.raises(RunError, match=r"run\.json is damaged or was written by another version"):
        read_run(run)


def test_a_table_may_say_anything(run):
    """It is as it was written, and not what we would write."""
    made = {}
    for name, text in {"estimates.csv": b"prompt_id\n\xff\n", "other.csv": b"rollouts\nmany\n", "a.html": b""}.items():
        (run / name).write_bytes(text)
        made[name] = hashlib.sha256(text).hexdigest()
    write_record(run, read_run(run) | {"made": made})
    assert mended(run) == []


@pytest.mark.parametrize("of", ["rollouts", "bank"])
def test_nothing_is_moved_through_a_link(run, tmp_path, of):
    shutil.move(run / of, tmp_path / "theirs")
    (run / of).symlink_to(tmp_path / "theirs")
    shard = next(iter(sorted((run / of).glob("*.parquet"))))
    shard.write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    with held(run, to_write=True), pytest.raises(RunError, match="lies outside of the run folder"):
        Check(run).mend()
    shard.unlink()
    del before[shard.name]
    with held(run, to_write=True), pytest.raises(RunError, match="lies outside of the run folder"):
        Check(run).mend()
    assert {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()} == before


FILES = ["run.json", "prompts.jsonl", "estimates.csv", "rollouts/manifest.jsonl", "rollouts/000000.parquet", LEDGER]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_mended_like_what_is_damaged(run, name, make):
    (run / name).unlink()
    make(run / name)
    assert name in [path for path, _ in mended(run)]
    assert (run / "damaged" / name).exists()
    scenario.draw(run, rows=ROWS)
    scenario.judge(run, ROWS)
    with held(run, to_write=False):
        assert Check(run).findings == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [".lock", "rollouts/manifest.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("odd", ["link", "link to nothing", "pipe"])
def test_nothing_is_written_through_a_link_or_into_a_pipe(run, tmp_path, name, odd):
    """By a run that goes on."""
    path, elsewhere = run / name, tmp_path / "elsewhere"
    data = path.read_bytes()
    path.unlink()
    if odd == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere / "new")
    if odd == "link":
        (elsewhere / "new").write_bytes(data)
    with pytest.raises(RunError, match=str(run)):
        scenario.draw(run, rows=2 * ROWS)
    if odd == "link":
        assert (elsewhere / "new").read_bytes() == data
        (elsewhere / "new").unlink()


def test_nothing_is_moved_into_another_folder(run, tmp_path):
    (run / "damaged").symlink_to(tmp_path / "elsewhere")
    (run / "rollouts" / "000000.parquet").write_bytes(b"damaged")
    with held(run, to_write=True), pytest.raises(RunError, match="lies outside of the run folder"):
        Check(run).mend()


@pytest.mark.parametrize("odd", [{"number": None}, {"number": "0"}, {"number": True}, {"prompt_id": 3}])
def test_a_line_of_a_bank_says_which_prompt_it_is_of(run, odd):
    manifest = run / "bank" / "manifest.jsonl"
    lines = [entry | odd for entry in open_manifest(manifest).lines]
    write_manifest(manifest, lines)
    with pytest.raises(RunError, match="does not say which prompt its shard is of"):
        BankStore(run)
