"""What is on disk is whole, is ours, and comes back as it was."""

import dataclasses
import errno
import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lpe_jax.errors import RunError
from lpe_jax.records import files, rollouts
from lpe_jax.records import index as index_module
from lpe_jax.records.ledger import Key, Ledger
from lpe_jax.records.prompts import prompts_digest, read_prompts, write_prompts
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import Run, read_run, settings_hash
from lpe_jax.records.shard import named_in_damaged, open_manifest
from lpe_jax.types import Message, Outcome, Prompt, Request, Rollout, Verdict


def rollout(i, text="some text", tokens=None):
    tokens = np.arange(i % 7, dtype=np.int32) if tokens is None else tokens
    sums = np.float32([-1.5 * i, -2.25, -0.1, 3.25, 0.5])
    return Rollout(f"p{i % 3}", 0.95 - 0.05 * (i % 5), i, tokens, text, "stop", *map(float, sums))


def request(r):
    return Request(r.prompt_id, r.alpha, r.index)


def same(a, b):
    a, b = dataclasses.asdict(a), dataclasses.asdict(b)
    tokens = a.pop("tokens"), b.pop("tokens")
    return a == b and np.array_equal(*tokens) and tokens[0].dtype == tokens[1].dtype


def test_rollouts_come_back_in_order(tmp_path):
    store = RolloutStore(tmp_path)
    written = [rollout(i, text="line\nbreak \u2028 \x00 é" * (i % 2)) for i in range(50)]
    store.append(written[:20])
    store.flush()
    store.append(written[20:])
    assert len(store) == 20, "what is buffered is not on disk yet"
    store.flush()
    store.flush()
    again = RolloutStore(tmp_path)
    assert len(again) == 50 and len(list(tmp_path.glob("*.parquet"))) == 2
    assert all(same(a, b) for a, b in zip(written, again.read(), strict=True))


def test_shards_are_cut_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "_SHARD_ROWS", 10)
    store = RolloutStore(tmp_path)
    for i in range(35):
        store.append([rollout(i)])
    assert len(RolloutStore(tmp_path)) == 30


def test_a_shard_that_is_not_in_the_manifest_does_not_exist(tmp_path):
    """A crash between the rename and the manifest line: the rows are drawn again under the same shard name."""
    store = RolloutStore(tmp_path)
    store.append([rollout(0)])
    store.flush()
    (tmp_path / "000001.parquet").write_bytes(b"left behind")
    again = RolloutStore(tmp_path)
    assert len(again) == 1
    again.append([rollout(1)])
    again.flush()
    assert [r.index for r in RolloutStore(tmp_path).read()] == [0, 1]


def test_torn_manifest_line_is_cut_off(tmp_path):
    store, manifest = RolloutStore(tmp_path), tmp_path / "manifest.jsonl"
    for i in range(2):
        store.append([rollout(i)])
        store.flush()
    manifest.write_bytes(manifest.read_bytes()[:-10])
    again = RolloutStore(tmp_path)
    assert len(again) == 1
    again.append([rollout(5)])
    again.flush()
    assert [r.index for r in RolloutStore(tmp_path).read()] == [0, 5]


def test_processes_write_files_of_their_own_and_read_all(tmp_path):
    stores = [RolloutStore(tmp_path, part) for part in (0, 1, 12)]
    for i, store in enumerate(stores):
        store.append([rollout(i)])
        store.flush()
    names = {"manifest.jsonl", "manifest-1.jsonl", "manifest-12.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names | {
        "000000.parquet",
        "000000-1.parquet",
        "000000-12.parquet",
    }
    for part in (0, 1, 5):
        store = RolloutStore(tmp_path, part)
        assert [r.index for r in store.read()] == [0, 1, 2] and store.rows(part) == (part < 5)


@pytest.mark.parametrize("torn", [b'{"rows": 1, "sha', b"\0" * 40, b"x" * 1000, b'{"rows": 1' + b"\0" * 30 + b'"}\n'])
def test_what_a_crash_left_of_a_line_is_no_line(tmp_path, torn):
    """A part of it, or zeros where the disk had the length and not the data; whoever writes next takes its place."""
    store, manifest = RolloutStore(tmp_path, 1), tmp_path / "manifest-1.jsonl"
    store.append([rollout(0)])
    store.flush()
    whole = manifest.read_bytes()
    manifest.write_bytes(whole + torn)
    assert len(RolloutStore(tmp_path)) == 1 and manifest.read_bytes() == whole + torn, "it is another's to write"
    again = RolloutStore(tmp_path, 1)
    again.append([rollout(5)])
    again.flush()
    assert [r.index for r in RolloutStore(tmp_path).read()] == [0, 5]


def test_damaged_shards_are_seen(tmp_path):
    store = RolloutStore(tmp_path)
    store.append([rollout(i) for i in range(30)])
    store.flush()
    (tmp_path / "000000.parquet").unlink()
    for read in (lambda: list(RolloutStore(tmp_path).read()), RolloutStore(tmp_path).index):
        with pytest.raises(RunError, match="000000.parquet is named in manifest.jsonl but does not exist"):
            read()
    (tmp_path / "manifest.jsonl").write_text("{}}\n")
    with pytest.raises(RunError, match="manifest.jsonl, line 1 is damaged"):
        RolloutStore(tmp_path)


def test_an_index_finds_and_fetches(tmp_path, monkeypatch):
    """Rollouts of two processes in shards of ten, some written twice; one shard or two are in memory at a time."""
    monkeypatch.setattr(rollouts, "_SHARD_ROWS", 10)
    monkeypatch.setattr(index_module, "_OPEN_BYTES", 3000)
    rng, written = np.random.default_rng(0), [rollout(i, text=f"text {i}") for i in range(300)]
    for part, own in enumerate((written[:170], written[150:])):
        store = RolloutStore(tmp_path, part)
        for r in own:
            store.append([r])
        store.flush()
    index = RolloutStore(tmp_path).index()
    assert (len(index), index.total) == (300, 320)
    order = rng.permutation(300)
    places = index.find([request(written[i]) for i in order])
    assert sorted(places) == index.places().tolist() == [*range(170), *range(190, 320)], "the first of each counts"
    assert all(same(written[i], r) for i, r in zip(order, index.fetch(places), strict=True))
    assert index.fetch([]) == [] and index.find([]).tolist() == []
    others = [Request("p0", 0.95, 1), Request("p9", 0.95, 0), Request("p0", 0.5, 0), Request("p0", 0.95, 10**9)]
    assert index.find(others).tolist() == [-1] * 4
    for prompt_id in ("p0", "p1", "p2"):
        own = [r for r in written if r.prompt_id == prompt_id]
        alphas, places = index.of_prompt(prompt_id)
        assert alphas.tolist() == [r.alpha for r in own]
        assert all(same(a, b) for a, b in zip(own, index.fetch(places), strict=True))
    assert index.of_prompt("p9")[1].tolist() == []
    empty = RolloutStore(tmp_path / "new").index()
    assert len(empty) == 0 and empty.find(others).tolist() == [-1] * 4 and empty.places().tolist() == []


def test_an_index_is_of_what_was_flushed(tmp_path):
    store = RolloutStore(tmp_path)
    store.append([rollout(0)])
    assert len(store.index()) == 0
    store.flush()
    assert len(store.index()) == 1 and store.index() is store.index()


def test_another_thread_may_flush(tmp_path):
    """As when a run is told to end while its main thread is busy."""
    store, over = RolloutStore(tmp_path), threading.Event()

    def flush():
        while not over.is_set():
            store.flush()

    with ThreadPoolExecutor(2) as pool:
        flushing = [pool.submit(flush) for _ in range(2)]
        for i in range(300):
            store.append([rollout(i)])
        over.set()
        for done in flushing:
            done.result()
    store.flush()
    assert [r.index for r in RolloutStore(tmp_path).read()] == list(range(300))


def test_long_rollouts_make_shards_of_fewer_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "_SHARD_TOKENS", 100)
    store = RolloutStore(tmp_path)
    for i in range(40):
        store.append([rollout(i, tokens=np.zeros(30, np.int32))])
    assert [entry["rows"] for entry in store.manifests[0].lines] == [4] * 10


def test_a_manifest_that_lost_its_end_is_seen(tmp_path):
    """One line may never have been written; more of them were."""
    store, manifest = RolloutStore(tmp_path), tmp_path / "manifest.jsonl"
    for i in range(4):
        store.append([rollout(i)])
        store.flush()
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:3]))
    assert len(RolloutStore(tmp_path)) == 3
    manifest.write_bytes(b"".join(lines[:2]))
    with pytest.raises(RunError, match="manifest.jsonl ends before shard 2, and there is a shard 3"):
        RolloutStore(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(RunError, match="value.json cannot be written: No space left"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


PROMPT = Prompt("p", (Message("user", "hello"),))


def test_ledger(tmp_path):
    ledger = Ledger(tmp_path / "verdicts.sqlite")
    keys = [Key.of("judge", PROMPT, text) for text in ("a", "b", "c")]
    verdicts = {keys[0]: Verdict(Outcome.COMPLIED, {"score": 0.5}), keys[1]: Verdict(Outcome.UNSCORED, {})}
    ledger.put(verdicts, {"judge": (2, 300, 20)})
    ledger.put({keys[0]: Verdict(Outcome.REFUSED, {})}, {"judge": (3, 400, 30)})
    ledger.close()
    again = Ledger(tmp_path / "verdicts.sqlite")
    assert again.get(keys) == verdicts, "the first verdict stands"
    assert again.spent("judge") == (3, 400, 30) and again.spent("other") == (0, 0, 0)


def test_what_a_verdict_depends_on():
    other = Prompt("p", (Message("user", "hullo"),))
    keys = [
        Key.of("a", PROMPT, "x"),
        Key.of("b", PROMPT, "x"),
        Key.of("a", other, "x"),
        Key.of("a", PROMPT, "y"),
        Key.of("a", PROMPT, "\ud800"),
    ]
    assert len(set(keys)) == 5
    assert Key.of("a", dataclasses.replace(PROMPT, id="q"), "x") == keys[0], "the id is only a name"


def test_threads_share_a_ledger(tmp_path):
    ledger = Ledger(tmp_path / "verdicts.sqlite")
    keys = [[Key("judge", "p", f"{thread}.{i}") for i in range(50)] for thread in range(4)]

    def work(own):
        for key in own:
            ledger.put({key: Verdict(Outcome.REFUSED, {"key": key.response})})
            assert ledger.get([key])[key].fields == {"key": key.response}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, keys))
    assert len(ledger.get(key for own in keys for key in own)) == 200


def test_damaged_verdicts_are_seen(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    ledger = Ledger(path)
    key = Key.of("judge", PROMPT, "a")
    ledger.put({key: Verdict(Outcome.REFUSED, {})})
    ledger.close()
    with sqlite3.connect(path) as db:
        db.execute("update verdicts set outcome = 'complied'")
    db.close()
    with pytest.raises(RunError, match="verdicts.sqlite is damaged: a row of verdicts is not what was written"):
        Ledger(path)
    for data in (b"this is no database" * 100, b""):
        path.write_bytes(data)
        with pytest.raises(RunError, match="verdicts.sqlite cannot be opened as a verdict ledger: "):
            Ledger(path)
    path.unlink()
    path.with_name("verdicts.sqlite-wal").touch()
    with pytest.raises(RunError, match="verdicts.sqlite is missing, and verdicts.sqlite-wal"):
        Ledger(path)


def test_a_row_changed_under_an_open_ledger_is_seen(tmp_path):
    ledger = Ledger(tmp_path / "verdicts.sqlite")
    key = Key.of("judge", PROMPT, "a")
    ledger.put({key: Verdict(Outcome.REFUSED, {})})
    with sqlite3.connect(ledger.path) as db:
        db.execute("update verdicts set outcome = 'complied'")
    db.close()
    with pytest.raises(RunError, match="damaged: the verdict on response"):
        ledger.get([key])
    ledger.close()


def test_run_folder_belongs_to_its_settings(tmp_path):
    folder = tmp_path / "run"
    settings = {"seed": 0, "alphas": (0.95, 0.9), "judge": "rules"}
    run = Run(folder, settings, flags="--seed=0\n")
    assert not run.finished
    run.metric(rollouts=3)
    with pytest.raises(RunError, match="in use"):
        Run(folder, settings)
    run.finish()
    run.close()
    again = Run(folder, settings)
    again.reopen()
    again.close()
    again = Run(folder, settings)
    assert not again.finished
    again.finish()
    assert again.finished and (folder / "flags.txt").read_text() == "--seed=0\n"
    again.close()
    with pytest.raises(RunError, match=r"judge \(there \"rules\", now \"tiny\"\), seed \(there 0, now 1\)"):
        Run(folder, settings | {"seed": 1, "judge": "tiny"})


def test_of_nested_settings_what_differs_is_named(tmp_path):
    """And nothing that is alike, which may be long."""
    settings = {"sampling": {"temperature": 1.0, "words": "x" * 100}, "procedure": {"clip": True}}
    Run(tmp_path / "run", settings).close()
    other = {"sampling": settings["sampling"] | {"temperature": 0.7}, "procedure": {"batch": 20}}
    with pytest.raises(RunError) as caught:
        Run(tmp_path / "run", other)
    said = str(caught.value)
    assert "sampling.temperature (there 1.0, now 0.7)" in said and "xxx" not in said
    assert 'procedure (there {"clip": true}, now {"batch": 20})' in said


def test_a_worker_that_outlives_the_first_process_keeps_others_out(tmp_path):
    """Its command is over, and it still writes."""
    with Run(tmp_path / "run", {"seed": 1}):
        worker = Run(tmp_path / "run", {"seed": 1}, part=1, keep_record=False)
    with pytest.raises(RunError, match="in use by process 1 of an earlier command"):
        Run(tmp_path / "run", {"seed": 1})
    worker.close()
    Run(tmp_path / "run", {"seed": 1}).close()


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        Run(tmp_path, {})
    with pytest.raises(RunError, match="is a file"):
        Run(tmp_path / "thesis.txt", {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_crash_before_the_first_record_does_not_lock_the_folder(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.tmp-123").write_text("{")
    with Run(tmp_path, {"seed": 0}) as run:
        assert not run.finished


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "status": "started", "settings": {}}'])
def test_damaged_run_json(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        Run(tmp_path, {})


@pytest.mark.parametrize("depth", [200, 975, 980, 985, 990, 100_000])
def test_what_is_nested_without_end_is_damage(tmp_path, depth):
    """As deep as Python reads, as it does not, and between."""
    nested = "[" * depth + "]" * depth
    (tmp_path / "run.json").write_text(
        f'{{"format": 2, "status": "started", "settings": {{"x": {nested}}}, "extent": {{}}}}'
    )
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        read_run(tmp_path)
    (tmp_path / "manifest.jsonl").write_text(f'{{"shard": {nested}}}\n')
    with pytest.raises(RunError, match=r"manifest\.jsonl, line 1 is damaged"):
        open_manifest(tmp_path / "manifest.jsonl")
    assert named_in_damaged(tmp_path / "manifest.jsonl") == []
    (tmp_path / "prompts.jsonl").write_text(f"{nested}\n")
    with pytest.raises(RunError, match=r"prompts\.jsonl is damaged"):
        read_prompts(tmp_path, "")


def test_settings_hash():
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1}) != settings_hash({"a": 1, "b": 3})


def test_a_ledger_learns_what_others_know(tmp_path):
    own, other = (Ledger(tmp_path / f"{name}.sqlite", shared=True) for name in ("own", "other"))
    a, b, c, d = (Key("j", "p", name) for name in "abcd")
    for ledger, keys in ((own, (a, b)), (other, (b, c))):
        ledger.put({key: Verdict(Outcome.COMPLIED, {"from": ledger.path.stem}) for key in keys})
    assert own.get((a, b, c)).keys() == {a, b}
    # While the other is open, as on another machine.
    own.learn([other.path])
    assert {key: verdict.fields["from"] for key, verdict in own.get((a, b, c, d)).items()} == {
        a: "own",
        b: "own",
        c: "other",
    }
    assert other.get((a, b, c)).keys() == {b, c}
    # A write-ahead log is read by processes of one machine only.
    assert not list(tmp_path.glob("*-wal"))
    with sqlite3.connect(other.path) as db:
        db.execute("update verdicts set outcome = 'refused'")
    with pytest.raises(RunError, match="other.sqlite is damaged"):
        own.learn([other.path])
    (tmp_path / "odd.sqlite").write_text("not a database, and long enough to be looked at" * 50)
    with pytest.raises(RunError, match="odd.sqlite cannot be read"):
        own.learn([tmp_path / "odd.sqlite"])


def test_prompts_are_kept_whole(tmp_path):
    prompts = [
        Prompt("a", (Message("user", "fold\na boat\u2028"),), "crafts"),
        Prompt("ä", (Message("system", "x"), Message("user", "y"))),
    ]
    write_prompts(tmp_path, prompts)
    assert read_prompts(tmp_path, prompts_digest(prompts)) == prompts
    path = tmp_path / "prompts.jsonl"
    path.write_text(path.read_text().replace("boat", "coat"))
    with pytest.raises(RunError, match="these are not the prompts that run.json tells of"):
        read_prompts(tmp_path, prompts_digest(prompts))
    for text in ("{", '{"id": "a"}\n', "[]\n"):
        path.write_text(text)
        with pytest.raises(RunError, match="is damaged"):
            read_prompts(tmp_path, prompts_digest(prompts))
    path.unlink()
    with pytest.raises(RunError, match="is missing"):
        read_prompts(tmp_path, prompts_digest(prompts))
