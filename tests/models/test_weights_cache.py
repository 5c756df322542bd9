"""Pairs kept as they are used: the same to the last bit, or made anew; never something else."""

import gc
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging

from lpe_jax.errors import CheckpointError, UserError
from lpe_jax.loading import load
from lpe_jax.models import kept_arrays, weights_cache
from lpe_jax.models.weights import save_module
from lpe_jax.variants.ablation import ablate
from tests.helpers import save_tokenizer, tiny_module

MODES = ("copies", "shared", "ablated")
SHAPE = {"vocab_size": 272, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """original/, and variant/, which is its abliteration: a pair of every mode."""
    folder = tmp_path_factory.mktemp("models")
    original = tiny_module(**SHAPE)
    direction = np.random.default_rng(1).standard_normal(16)
    for name, model in (("original", original), ("variant", ablate(original, direction))):
        save_module(model, folder / name)
        end = save_tokenizer(folder / name)
        (folder / name / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    return folder


def loaded(models, mode="shared", cache=None, **options):
    sources = (str(models / name) for name in ("original", "variant"))
    return load(*sources, pair_mode=mode, weights_cache=None if cache is None else str(cache), **options)


def assert_same(one, other):
    assert one.identity == other.identity
    assert jax.tree.structure(one.pair) == jax.tree.structure(other.pair)
    for name, a, b in zip(one.pair.names, one.pair.leaves, other.pair.leaves, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes(), name
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), name


def how(result):
    """What became of the cache: made, used, or found damaged and made."""
    notes = [note for note in result.notes if "--weights_cache" in note]
    words = {"is kept in": "made", "weights are from": "used", "is damaged": "damaged", "does not take": "refused"}
    return [word for note in notes for part, word in words.items() if part in note]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept_is_what_is_loaded(models, tmp_path, monkeypatch, mode, dtype):
    monkeypatch.setattr(kept_arrays, "_GROUP_BYTES", 20_000)  # several groups
    plain, made, used = (loaded(models, mode, cache, dtype=dtype) for cache in (None, tmp_path, tmp_path))
    assert (how(plain), how(made), how(used)) == ([], ["made"], ["used"])
    assert plain.pair.edit_rank == (1 if mode == "ablated" else 0)
    for other in (made, used):
        assert_same(plain, other)
    assert set(plain.notes) < set(used.notes) and plain.sharing == used.sharing != ""
    entry = only(tmp_path / "pairs")
    assert len(list(entry.glob("arrays-*"))) > 1 and (entry / "manifest.json").exists()


def test_orbax_is_quiet(models, tmp_path, caplog):
    """Programs run with absl's own level, at which it reports each of its steps."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        logging.info("heard")
        for _ in range(2):
            loaded(models, cache=tmp_path)
        assert [record.message for record in caplog.records] == ["heard"]
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)


def only(folder):
    (path,) = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return path


def test_values_are_not_read_where_they_are_kept(models, tmp_path, monkeypatch):
    plain = loaded(models, "auto", tmp_path)
    assert plain.identity["pair_mode"] == "ablated"

    def never(*args, **kwargs):
        raise AssertionError("read")

    for module in ("checkpoint", "weights", "sharing"):
        monkeypatch.setattr(f"lpe_jax.models.{module}.read_chunks", never)
    assert_same(plain, loaded(models, "auto", tmp_path))
    with pytest.raises(AssertionError, match="read"):  # another dtype or mode is another pair
        loaded(models, "auto", tmp_path, dtype="bfloat16")
    with pytest.raises(AssertionError, match="read"):
        loaded(models, "copies", tmp_path)


MESH = """
import json, sys, os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, numpy as np
from jax.sharding import AxisType
from lpe_jax.loading import load
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.types import Request
models, cache = sys.argv[1:]
def loaded(mode, mesh, cache):
    return load(f"{models}/original", f"{models}/variant", pair_mode=mode, mesh=mesh, weights_cache=cache)
def said(result): return [n for n in result.notes if "--weights_cache" in n][0].split()[0]
make = lambda *shape: jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
mesh = make(4, 2)
# Kept from one device and used by eight, and the other way about.
places = {"copies": [(None, mesh)], "shared": [(mesh, None), (make(8, 1), mesh)], "ablated": [(None, mesh)]}
for mode, ways in places.items():
    plain = loaded(mode, None, None)
    for first, then in ways:
        here = f"{cache}/{mode}-{len(os.listdir(cache))}" if mode != "ablated" else f"{cache}/ablated"
        made, used, expected = loaded(mode, first, here), loaded(mode, then, here), loaded(mode, then, None)
        assert (said(made), said(used)) == ("the", "weights"), (made.notes, used.notes)
        assert made.identity == used.identity == plain.identity
        assert jax.tree.structure(used.pair) == jax.tree.structure(expected.pair)
        for a, b in zip(used.pair.leaves, expected.pair.leaves, strict=True):
            assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
            parts = {s.data.size for s in a.addressable_shards}
            assert parts == {s.data.size for s in b.addressable_shards}
requests = [Request("p", alpha, i) for alpha in (0.0, 0.5, 1.0) for i in range(8)]
def tokens(result, mesh):
    sampler = Sampler(result.pair, {"p": [10, 11, 12]}, str, SamplingSettings(max_new_tokens=16), 0, 8, 16, mesh)
    return [r.tokens.tolist() for r in sampler.draw(requests)]
assert tokens(plain, None) == tokens(used, mesh)
print("ok")
"""


def test_on_a_mesh(models, tmp_path):
    """On 8 virtual devices: each array in the shards that the mesh asks for, kept on other devices or not."""
    out = subprocess.run([sys.executable, "-c", MESH, models, tmp_path], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "ok", out.stderr[-3000:]


# What the entry depends on.


def edited(path, edit, keep_time=True):
    times = path.stat()
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def copy(models, tmp_path):
    return Path(shutil.copytree(models, tmp_path / "models"))


def last_bit(data):
    data[-3] ^= 4


def test_other_files_are_other_weights(copy, tmp_path):
    cache, before = tmp_path / "cache", loaded(copy)
    assert how(loaded(copy, cache=cache)) == ["made"]
    path = copy / "variant" / "model.safetensors"
    os.utime(path)  # touched: read again, and found to be the same
    again = loaded(copy, cache=cache)
    assert how(again) == ["made"] and len(list((cache / "pairs").glob("[!.]*"))) == 1
    assert how(loaded(copy, cache=cache)) == ["used"]
    edited(path, last_bit, keep_time=False)
    changed = loaded(copy, cache=cache)
    assert how(changed) == ["made"] and changed.identity != before.identity
    assert_same(changed, loaded(copy))
    assert_same(changed, loaded(copy, cache=cache))


def test_a_change_without_a_trace_is_seen_at_the_beginning_of_any_tensor(copy, tmp_path):
    """As where all files have one date: names, sizes and times are the same, and the weights are not."""
    cache = tmp_path / "cache"
    loaded(copy, cache=cache)
    path = copy / "variant" / "model.safetensors"
    whole, times = path.read_bytes(), path.stat()
    begins = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:begins])
    for name, value in header.items():
        if name == "__metadata__":
            continue

        def turn(data, at=begins + value["data_offsets"][0]):
            data[at + 1] ^= 1

        edited(path, turn)
        changed = loaded(copy, cache=cache)
        assert how(changed) == ["made"], name
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert how(loaded(copy, cache=cache)) == ["used"]


def test_what_is_trusted_gives_the_weights_as_they_were(copy, tmp_path):
    """Past the beginning of a tensor, with size and time as before, a change is not seen: and is not used."""
    cache, before = tmp_path / "cache", loaded(copy)
    loaded(copy, cache=cache)
    path = copy / "variant" / "model.safetensors"
    begins = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8:begins])
    end = begins + header["model.embed_tokens.weight"]["data_offsets"][1]

    def turn(data):
        data[end - 2] ^= 1

    edited(path, turn)
    used = loaded(copy, cache=cache)
    assert how(used) == ["used"]
    assert_same(used, before)
    assert "with the names, sizes, times and beginnings that these have now" in " ".join(used.notes)
    # Without the flag everything is read.
    assert loaded(copy).identity["variant_weights"] != before.identity["variant_weights"]


def test_another_folder_is_not_trusted_for_its_looks(copy, tmp_path):
    cache = tmp_path / "cache"
    loaded(copy, cache=cache)
    moved = shutil.copytree(copy, tmp_path / "moved", copy_function=shutil.copy2)
    assert how(loaded(moved, cache=cache)) == ["made"]
    assert len(list((cache / "pairs").glob("[!.]*"))) == 1  # the arrays are those that are there


def test_what_the_hub_calls_the_same_is_the_same_anywhere(copy, tmp_path):
    """By sha256, whatever folder and time a download has."""
    from tests.models.test_origin import COMMIT, hub_name

    def snapshot(place, changed):
        for name in ("original", "variant"):
            store = place / f"models--org--{name}"
            (store / "blobs").mkdir(parents=True)
            (store / "snapshots" / COMMIT).mkdir(parents=True)
            for path in (copy / name).iterdir():
                blob = store / "blobs" / hub_name(path.name, path.read_bytes())
                shutil.copy(path, blob)
                os.utime(blob, (changed, changed))
                (store / "snapshots" / COMMIT / path.name).symlink_to(blob)
        return [str(place / f"models--org--{name}" / "snapshots" / COMMIT) for name in ("original", "variant")]

    here, there = snapshot(tmp_path / "here", 1e9), snapshot(tmp_path / "there", 1.1e9)
    cache = str(tmp_path / "cache")
    made = load(*here, weights_cache=cache)
    used = load(*there, weights_cache=cache)
    assert (how(made), how(used)) == (["made"], ["used"])
    assert_same(made, used)


def test_config_and_tokenizer_are_always_those_of_the_folder(copy, tmp_path):
    cache = tmp_path / "cache"
    loaded(copy, cache=cache)
    for name in ("original", "variant"):
        path = copy / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 5e5}))
    used = loaded(copy, cache=cache)
    assert how(used) == ["used"] and used.pair.config.rope_theta == 5e5
    assert_same(used, loaded(copy))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    shutil.copy(path, copy / "original")
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\..* is missing"):
        loaded(copy, cache=cache)


# Damage.


def entry_files(cache):
    files = [p for p in cache.rglob("*") if p.is_file() and not p.name.startswith(".lock")]
    return sorted(files, key=lambda p: (-p.stat().st_size, str(p.relative_to(cache)).split(".")[0]))


def damaged(rng, cache):
    """One change of one file, by how much of the whole it is or any file alike; what was done."""
    files = entry_files(cache)
    sizes = [p.stat().st_size for p in files]
    path = rng.choices(files, sizes)[0] if rng.random() < 0.5 else rng.choice(files)
    kind = rng.choice(["flip", "flip", "flip", "truncate", "delete", "zeros", "swap", "longer"])
    data = bytearray(path.read_bytes())
    if kind == "delete" or not data:
        path.unlink()
    elif kind == "swap":
        other = rng.choice(files)
        path.write_bytes(other.read_bytes())
    elif kind == "longer":
        path.write_bytes(data + data)
    else:
        at = rng.randrange(len(data))
        if kind == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "zeros":
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        else:
            del data[at:]
        path.write_bytes(data)
    return kind, path.relative_to(cache)


def survive(models, whole, place, plain, seeds):
    counts = {"used": 0, "damaged": 0, "made": 0}
    for seed in seeds:
        cache = shutil.copytree(whole, place / "cache")
        done = damaged(random.Random(seed), cache)
        result = loaded(models, "ablated" if seed % 2 else "shared", cache)
        assert_same(plain[seed % 2], result)
        became = how(result)
        assert became in (["used"], ["damaged", "made"], ["made"]), (seed, done, result.notes)
        counts[became[0]] += 1
        if became[0] == "damaged":  # what was made anew is whole
            again = loaded(models, "ablated" if seed % 2 else "shared", cache)
            assert how(again) == ["used"], (seed, done)
        shutil.rmtree(cache)
    return counts


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A cache of two pairs, and the pairs as they are without."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    for mode in ("shared", "ablated"):
        loaded(models, mode, cache)
    return cache, (loaded(models, "shared"), loaded(models, "ablated"))


def test_no_damage_is_used(models, whole, tmp_path):
    """A change that goes unnoticed is in the other pair, or in what is not needed to read the arrays."""
    counts = survive(models, whole[0], tmp_path, whole[1], range(90))
    assert counts["damaged"] > 25


@pytest.mark.slow
@pytest.mark.parametrize("files", [True, False])
def test_no_damage_is_used_in_two_thousand(models, whole, tmp_path, monkeypatch, files):
    """And none where files are not looked at before orbax reads them, whose threads then complain for long."""
    if not files:
        monkeypatch.setattr(weights_cache, "check_files", lambda entry, files: None)
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    counts = survive(models, whole[0], tmp_path, whole[1], range(100, 1100))
    gc.collect()
    print(counts)
    assert counts["damaged"] > 200


def test_files_that_are_whole_and_about_something_else(models, whole, tmp_path):
    """Of the files with a sha256 of their own, each in the place of each other."""
    signed = [path.relative_to(whole[0]) for path in whole[0].rglob("*.json")]
    assert len(signed) == 4  # two checkpoints and two pairs
    for one in signed:
        for other in signed:
            if one == other:
                continue
            cache = shutil.copytree(whole[0], tmp_path / "cache")
            shutil.copy(whole[0] / other, cache / one)
            for at, mode in enumerate(("shared", "ablated")):
                result = loaded(models, mode, cache)
                assert_same(result, whole[1][at])
                assert how(result) in (["used"], ["damaged", "made"])
                assert how(loaded(models, mode, cache)) == ["used"]
            shutil.rmtree(cache)


@pytest.mark.parametrize("what", ["manifest.json", "arrays-000", "checkpoints"])
def test_half_an_entry(models, whole, tmp_path, what):
    cache = shutil.copytree(whole[0], tmp_path / "cache")
    for path in cache.rglob(what):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = loaded(models, cache=cache)
    assert how(result) == (["made"] if what == "checkpoints" else ["damaged", "made"])
    assert_same(result, whole[1][0])
    assert how(loaded(models, cache=cache)) == ["used"]


class Anything:
    """Equal to whatever it is compared with."""

    def __ne__(self, other):
        return False


def test_hashes_of_values_are_needed(models, tmp_path, monkeypatch):
    """orbax reads arrays of other values without a word. Its files are large here, as they are of a real model: their
    own hashes are not taken.
    """
    monkeypatch.setattr(kept_arrays, "_SMALL", 1000)
    cache, plain = tmp_path / "cache", loaded(models, "copies")
    loaded(models, "copies", cache)
    value = np.asarray(plain.pair.leaves[plain.pair.names.index("embed_tokens")]).tobytes()
    (data,) = [path for path in cache.rglob("d/*") if value in path.read_bytes()]
    whole, rng, unnoticed = data.read_bytes(), random.Random(0), 0
    for _ in range(20):
        at, bit = whole.index(value) + rng.randrange(len(value)), 1 << rng.randrange(8)
        data.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        noticed = loaded(models, "copies", shutil.copytree(cache, tmp_path / "copy"))
        assert how(noticed) == ["damaged", "made"] and "has other values" in " ".join(noticed.notes)
        assert_same(noticed, plain)
        shutil.rmtree(tmp_path / "copy")
        with monkeypatch.context() as patch:
            patch.setattr(kept_arrays, "hashes", lambda value, parts: Anything())
            result = loaded(models, "copies", cache)
        assert how(result) == ["used"]
        unnoticed += any(
            np.asarray(a).tobytes() != np.asarray(b).tobytes()
            for a, b in zip(result.pair.leaves, plain.pair.leaves, strict=True)
        )
    assert unnoticed == 20


# Writing.


def test_a_writer_that_dies_leaves_nothing_that_counts(models, tmp_path, monkeypatch):
    cache, plain = tmp_path / "cache", loaded(models)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(weights_cache.os, "rename", dies)
        loaded(models, cache=cache)
    left = cache / "pairs" / f".{'0' * 32}-left"
    left.mkdir()  # of another pair
    assert how(loaded(models, cache=cache)) == ["made"]
    used = loaded(models, cache=cache)
    assert how(used) == ["used"] and left.exists()
    assert_same(used, plain)
    assert len([p for p in (cache / "pairs").iterdir() if p.is_dir()]) == 2


def test_a_disk_that_does_not_take_it_is_no_error(models, tmp_path, monkeypatch):
    plain = loaded(models)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_cache, "save", full)
    result = loaded(models, cache=tmp_path / "cache")
    assert how(result) == ["refused"] and "No space left on device" in " ".join(result.notes)
    assert_same(result, plain)
    assert not [p for p in (tmp_path / "cache" / "pairs").iterdir() if p.is_dir()]


@pytest.mark.parametrize("what", ["checkpoints", "pairs"])
def test_a_cache_of_somebody_else(models, tmp_path, monkeypatch, what):
    """Who lets nobody look into it: as if nothing were there, and said."""
    plain, cache = loaded(models), tmp_path / "cache"
    loaded(models, cache=cache)
    exists = Path.exists

    def denied(path, **more):
        if path.parent == cache / what:
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", denied)
        result = loaded(models, cache=cache)
    assert f"--weights_cache={cache} cannot be read: Permission denied" in result.notes
    assert_same(result, plain)


def test_weights_that_changed_on_their_way_are_not_kept(models, tmp_path, monkeypatch):
    """What is written has the hash of what was verified, or nothing is, and nothing is drawn from it."""
    from lpe_jax import loading

    load_pair = loading.load_pair

    def other(*args, **kwargs):
        pair = load_pair(*args, **kwargs)
        leaves = list(pair.leaves)
        at = pair.names.index("layers.0.up_proj")
        leaves[at] = leaves[at].at[3, 3].add(1)
        return type(pair)(**{**vars(pair), "leaves": tuple(leaves)})

    monkeypatch.setattr(loading, "load_pair", other)
    with pytest.raises(CheckpointError, match=r"layers\.0\.up_proj was loaded otherwise than it was verified"):
        loaded(models, cache=tmp_path)
    assert not [p for p in (tmp_path / "pairs").iterdir() if p.is_dir()]


def test_a_folder_that_is_none(models, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "in", Path("/proc/1/x")):
        with pytest.raises(UserError, match=r"--weights_cache=.* is no folder and cannot be made one"):
            loaded(models, cache=path)


TOGETHER = """
import hashlib, sys, numpy as np
from lpe_jax.processes import join
models, cache, port, index = sys.argv[1:]
processes = join(f"localhost:{port}", 2, int(index))
from lpe_jax.loading import load, make_mesh
def use():
    sources = f"{models}/original", f"{models}/variant"
    result = load(*sources, pair_mode="ablated", weights_cache=cache, mesh=make_mesh(2))
    print(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in result.pair.leaves)).hexdigest())
    print([note.split()[0] for note in result.notes if "--weights_cache" in note])
for turn in range(4):
    if turn % 2 == processes.index:
        use()
    processes.meet(f"turn {turn}")
"""


def test_processes_of_one_run(models, tmp_path):
    """Of two, each on devices of its own, one loads while the other does not: by default orbax waits for all."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, models, tmp_path / "cache", str(port), str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        )
        for index in range(2)
    ]
    done = [process.communicate(timeout=120) for process in started]
    lines = [out.splitlines() for out, _ in done]
    assert all(len(said) == 4 for said in lines), done
    assert len({said[i] for said in lines for i in (0, 2)}) == 1
    assert [said[i] for i in (1, 3) for said in lines] == ["['the']", *["['weights']"] * 3]
    assert how(loaded(models, "ablated", tmp_path / "cache")) == ["used"]


ONCE = """
import sys, numpy as np
from lpe_jax.loading import load
models, cache, until = sys.argv[1:]
import time
time.sleep(max(0, float(until) - time.time()))
result = load(f"{models}/original", f"{models}/variant", pair_mode="shared", weights_cache=cache)
import hashlib
print(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in result.pair.leaves)).hexdigest())
print(*result.notes, sep=" ")
"""


def test_several_that_start_at_once(models, tmp_path):
    """Threads stand for processes at first, as they meet more often; locks are between open files in either case."""
    plain, found = loaded(models), []

    def run():
        found.append(loaded(models, cache=tmp_path / "cache"))

    for _ in range(3):
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Next time they meet a damaged one.
        data = max((tmp_path / "cache").rglob("d/*"), key=lambda p: p.stat().st_size)
        edited(data, last_bit)
    assert len(found) == 12
    for result in found:
        assert_same(plain, result)
    assert "made" in how(found[0]) + how(found[1]) + how(found[2]) + how(found[3])


@pytest.mark.slow
def test_a_writer_that_is_killed(models, tmp_path):
    """At any moment of its writing: what it left is used if it is whole, and else made anew."""
    cache, plain, rng, became = tmp_path / "cache", loaded(models), random.Random(0), []
    for turn in range(12):
        shutil.rmtree(cache, ignore_errors=True)
        writer = subprocess.Popen([sys.executable, "-c", ONCE, models, cache, "0"], stdout=subprocess.DEVNULL)
        while not (cache / "pairs").exists() and writer.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3) if turn else 0)
        writer.kill()
        writer.wait()
        result = loaded(models, cache=cache)
        became += how(result)
        assert_same(result, plain)
        assert how(loaded(models, cache=cache)) == ["used"]
        assert len([path for path in (cache / "pairs").iterdir() if path.is_dir()]) == 1
    assert "made" in became and "damaged" not in became


@pytest.mark.slow
def test_several_processes_that_start_at_once(models, tmp_path):
    until = str(time.time() + 8)
    arguments = [sys.executable, "-c", ONCE, models, tmp_path / "cache", until]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate()[0].splitlines() for process in started]
    assert len({lines[0] for lines in said}) == 1
    assert sum("is kept in" in lines[1] for lines in said) >= 1
    assert how(loaded(models, cache=tmp_path / "cache")) == ["used"]
