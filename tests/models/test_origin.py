"""Files that came from the hub: what it calls their content, and what happens when that is no longer theirs."""

import hashlib
import json
import os
import shutil
import time

import pytest

from lpe_jax.errors import CheckpointError
from lpe_jax.loading import load
from lpe_jax.models.origin import NOWHERE, check_origin, origin_of
from lpe_jax.models.weights import save_module
from tests.helpers import save_tokenizer, tiny_module

COMMIT = "1cfa9a7208912126459214e8b04321603b3df60c"
WEIGHTS = "model.safetensors"


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def hub_name(name, data):
    """What the hub calls content: large files by sha256, the others as git does."""
    return hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else git_hash(data)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A checkpoint without any marks of the hub."""
    folder = tmp_path_factory.mktemp("plain")
    save_module(tiny_module(vocab_size=272), folder)
    end = save_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    return folder


@pytest.fixture
def snapshot(plain, tmp_path):
    """As the hub's cache has it: links to files that are called by their content, one by way of a shared store."""
    store = tmp_path / "models--some-org--some-model"
    folder = store / "snapshots" / COMMIT
    for part in (folder, store / "blobs", tmp_path / "shared"):
        part.mkdir(parents=True)
    for path in plain.iterdir():
        data = path.read_bytes()
        blob = store / "blobs" / hub_name(path.name, data)
        if path.name == WEIGHTS:
            (tmp_path / "shared" / ("f" * 64)).write_bytes(data)
            blob.symlink_to(tmp_path / "shared" / ("f" * 64))
        elif not blob.exists():
            blob.write_bytes(data)
        (folder / path.name).symlink_to(os.path.join("..", "..", "blobs", blob.name))
    return folder


def note(folder, name, commit=COMMIT, later=0.0):
    """What a download into a folder leaves there."""
    path = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{commit}\n{hub_name(name, (folder / name).read_bytes())}\n{time.time() + later}\n")


@pytest.fixture
def downloaded(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "downloaded")
    for path in list(folder.iterdir()):
        note(folder, path.name)
    return folder


def flip(data):
    return data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]


def unnoticed(path, edit=None):
    """Changes a file, a bit of it by default, and not the time of its last change."""
    times = path.stat()
    path.write_bytes((edit or flip)(path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_snapshot_tells_where_it_is_from(snapshot, plain):
    origin = origin_of(snapshot)
    assert (origin.repo, origin.commit) == ("some-org/some-model", COMMIT)
    assert origin.sha256(WEIGHTS) == hashlib.sha256((plain / WEIGHTS).read_bytes()).hexdigest()
    assert origin.sha256("config.json") is None and len(origin.hashes["config.json"]) == 40
    loaded = load(str(snapshot), str(plain))
    assert loaded.notes[0] == (
        f"original: some-org/some-model@{COMMIT}, whose sha256 is known of 1 of its 1 files of weights"
    )
    assert not any(note.startswith("variant") for note in loaded.notes)
    assert loaded.sources[0] == {
        "source": str(snapshot),
        "repo": "some-org/some-model",
        "commit": COMMIT,
        "sha256": {WEIGHTS: origin.sha256(WEIGHTS)},
    }
    assert loaded.sources[1] == {"source": str(plain), "repo": None, "commit": None, "sha256": {WEIGHTS: None}}
    # The same weights and the same run, wherever they are from.
    assert loaded.identity == load(str(plain), str(plain)).identity


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"])
def test_what_the_hub_did_not_publish_is_refused(snapshot, downloaded, plain, name):
    for folder in (snapshot, downloaded):
        before, after = (b"10000.0", b"10001.0") if name == "config.json" else (b"}", b"} ")
        unnoticed(folder / name, None if name == WEIGHTS else lambda data, b=before, a=after: data.replace(b, a, 1))
        for pair in ((folder, plain), (plain, folder)):
            with pytest.raises(
                CheckpointError, match=r"is not what .* has under this name \((git sha1|sha256)"
            ) as caught:
                load(*map(str, pair))
            assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)


def test_what_was_changed_after_its_download_is_somebodys_own(downloaded, plain):
    """As an edit in place of a downloaded model: the hub's hash is of what it was."""
    known = origin_of(downloaded)
    assert known.commit == COMMIT and known.repo is None and known.sha256(WEIGHTS)
    unnoticed(downloaded / WEIGHTS)
    later = time.time() + 60
    os.utime(downloaded / WEIGHTS, (later, later))
    assert origin_of(downloaded).sha256(WEIGHTS) is None
    loaded = load(str(downloaded), str(plain))
    assert loaded.notes[0] == f"original: the hub@{COMMIT}, whose sha256 is known of 0 of its 1 files of weights"
    assert loaded.identity["original_weights"] != loaded.identity["variant_weights"]


def test_notes_that_say_nothing(downloaded):
    folder = downloaded / ".cache" / "huggingface" / "download"
    for text in (
        "",
        "a\nb\nc\n",
        f"{COMMIT}\nnot-a-hash\n{time.time()}\n",
        f"{COMMIT}\n{'a' * 64}\nnan\n",
        "\xff",
        "x" * 10**6,
    ):
        (folder / f"{WEIGHTS}.metadata").write_text(text, encoding="latin-1")
        assert origin_of(downloaded).sha256(WEIGHTS) is None
    note(downloaded, WEIGHTS, commit="2" * 40)
    assert origin_of(downloaded).commit is None
    for path in folder.iterdir():
        path.unlink()
    assert origin_of(downloaded) == NOWHERE


def test_folders_that_look_like_the_hubs(plain, tmp_path):
    assert origin_of(plain) == NOWHERE
    folder = shutil.copytree(plain, tmp_path / "models--a--b" / "snapshots" / COMMIT)
    assert origin_of(folder).hashes == {}  # copies, not links: nothing is known of them
    check_origin(folder, origin_of(folder), [WEIGHTS])
    (folder / WEIGHTS).rename(folder / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder / "elsewhere")
    assert origin_of(folder).hashes == {}


def test_a_file_that_changes_while_it_is_loaded(plain, tmp_path, monkeypatch):
    """Verified and loaded are read one after the other; in between somebody saves another model there."""
    from lpe_jax import loading

    folder, load_pair = shutil.copytree(plain, tmp_path / "model"), loading.load_pair

    def meanwhile(*args, **kwargs):
        pair = load_pair(*args, **kwargs)
        save_module(tiny_module(seed=5, vocab_size=272), folder)
        return pair

    monkeypatch.setattr(loading, "load_pair", meanwhile)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed while it was loaded"):
        load(str(folder), str(plain))
