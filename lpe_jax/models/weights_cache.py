"""A folder of pairs as they are used, so that a start reads them there and not two checkpoints.

    FOLDER/
      checkpoints/<stamp>.json        what a checkpoint's weights were when they were read: sha256 by tensor
      pairs/<key>/                    a pair of such, in one dtype and pair mode
        manifest.json                 what is kept once, sha256 of the edits, which arrays are where, and the files
        arrays-000/ …                 orbax checkpoints of about half a gigabyte each

Values are never trusted: each array is hashed as it lies on the devices, and must have the sha256 that its tensors had
when they were read from the checkpoints. What is trusted is that a file of weights is the one it was: by the sha256
under which the hub's cache keeps it, else by folder, name, size and time of change; in either case by its header and
the beginning of each of its tensors, which are read. Whoever keeps all of these and changes values further on gets the
weights as they were before. The JSON files carry their own sha256.

Only what is complete has its name: an entry is written under another one and renamed. What is damaged is noticed and
made anew, and processes that start at once do not wait for each other: one writes, the others use what they read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lpe_jax.errors import CheckpointError, UserError
from lpe_jax.models.checkpoint import Checkpoint, fingerprint_of
from lpe_jax.models.header import sketch
from lpe_jax.models.kept_arrays import (
    Damaged,
    arrays_name,
    check_files,
    files_of,
    groups_of,
    hashes,
    on_host,
    restored,
    save,
)
from lpe_jax.models.layout import leaves_of
from lpe_jax.models.outside import one_line
from lpe_jax.models.pair import Pair, abstract_pair
from lpe_jax.models.sharing import Sharing
from lpe_jax.records.files import write_json

# Changes whenever what is kept does not mean the same as before.
LAYOUT = 1
_MANIFEST = "manifest.json"
# Digits of a sha256 that are a name.
_NAME = 32


@dataclasses.dataclass(frozen=True)
class Kept:
    """A pair from the cache, and what loading its checkpoints would have said of it.

    Attributes:
      fingerprints: of the original's and the variant's weights.
      mode, why: as of Sharing.
    """

    pair: Pair
    fingerprints: tuple[str, str]
    mode: str
    why: str


class WeightsCache:
    """Where one pair of checkpoints, in one dtype and pair mode, is kept.

    Attributes:
      notes: what there is to say of it, one sentence each.
    """

    def __init__(self, folder: Path, original: Checkpoint, variant: Checkpoint, dtype: str, pair_mode: str):
        """
        Args:
          original, variant: need not be verified.
          pair_mode: as asked for.

        Raises:
          UserError: the folder cannot be one.
          CheckpointError: a file of weights cannot be read.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--weights_cache={folder} is no folder and cannot be made one: {error.strerror}") from None
        self.folder, self.notes, self._damaged = folder, [], False
        self._asked = {"layout": LAYOUT, "made by": _makers(), "dtype": dtype, "pair_mode": pair_mode}
        self._config, self._dtype = original.config, jnp.dtype(dtype)
        self._stamps = [
            folder / "checkpoints" / f"{_digest([LAYOUT, dtype, _stamp(checkpoint)])[:_NAME]}.json"
            for checkpoint in (original, variant)
        ]

    def load(self, *, num_tokens: int, eos_ids: tuple[int, ...], mesh: Mesh | None) -> Kept | None:
        """The pair, where it is kept and every value of it is what it was; None where it has to be made.

        Raises:
          CheckpointError: the mesh does not divide the model.
        """
        try:
            if not all(stamp.exists() for stamp in self._stamps):
                return None
            digests = [_read(stamp, stamp.name)["digests"] for stamp in self._stamps]
            entry = self._entry(digests)
            if not entry.exists():
                return None
            manifest = _read(entry / _MANIFEST, entry.name)
            check_files(entry, manifest["files"])
            doubled = frozenset(manifest["doubled"])
            abstract = abstract_pair(
                self._config,
                doubled=lambda name: name in doubled,
                edit_rank=manifest["edit_rank"],
                num_tokens=num_tokens,
                eos_ids=eos_ids,
                dtype=self._dtype,
                place=_default_device() if mesh is None else mesh,
            )
            shapes = dict(zip(abstract.names, abstract.leaves, strict=True))
            expected = manifest["edits"] | self._expected(digests, doubled)
            leaves = restored(entry, manifest["groups"], shapes, expected)
        except Damaged as damage:
            self._damaged = True
            self.notes.append(
                f"what --weights_cache={self.folder} holds of this pair is damaged ({damage}) and was not used"
            )
            return None
        except OSError as error:
            self.notes.append(f"--weights_cache={self.folder} cannot be read: {error.strerror}")
            return None
        pair = dataclasses.replace(abstract, leaves=tuple(leaves[name] for name in abstract.names))
        self.notes.append(
            f"weights are from --weights_cache={self.folder}, as they were when the checkpoints' files were read, with "
            "the names, sizes, times and beginnings that these have now"
        )
        return Kept(pair, tuple(map(fingerprint_of, digests)), manifest["mode"], manifest["why"])

    def keep(self, pair: Pair, original: Checkpoint, variant: Checkpoint, sharing: Sharing) -> None:
        """Writes a pair of verified checkpoints; a disk that does not take it is a note and no error.

        Raises:
          CheckpointError: the pair's values are not those that were verified.
        """
        # orbax has arrays on one process's own devices written by the first process and no other.
        if jax.process_index() != 0:
            return
        digests = [checkpoint.digests for checkpoint in (original, variant)]
        entry = self._entry(digests)
        try:
            with _alone(entry) as alone:
                if not alone:
                    return
                if self._damaged or not (entry / _MANIFEST).exists():
                    self._write(entry, pair, digests, sharing)
                for stamp, of in zip(self._stamps, digests, strict=True):
                    _write(stamp, stamp.name, {"digests": of})
            self.notes.append(f"the pair is kept in --weights_cache={self.folder} for the next start")
        except CheckpointError:
            raise
        except Exception as error:  # orbax and the file systems below it raise what they like
            self.notes.append(f"--weights_cache={self.folder} does not take the pair: {one_line(error)}")

    def _entry(self, digests: Sequence[Mapping[str, str]]) -> Path:
        key = {**self._asked, "weights": [fingerprint_of(of) for of in digests]}
        return self.folder / "pairs" / _digest(key)[:_NAME]

    def _expected(self, digests: Sequence[Mapping[str, str]], doubled: Collection[str]) -> dict[str, list[str]]:
        """sha256 of each parameter's values, one for each model that has values of its own."""
        try:
            return {
                leaf.name: [of[leaf.hf_name] for of in (digests if leaf.name in doubled else digests[:1])]
                for leaf in leaves_of(self._config)
            }
        except KeyError as error:
            raise Damaged(f"it says nothing of {error.args[0]}") from None

    def _write(self, entry: Path, pair: Pair, digests: Sequence[Mapping[str, str]], sharing: Sharing) -> None:
        arrays = dict(zip(pair.names, pair.leaves, strict=True))
        doubled = sorted(name for name, once in sharing.once.items() if not once)
        expected, edits = self._expected(digests, doubled), {}
        groups = groups_of(arrays)
        temporary = _beside(entry)
        try:
            for i, names in enumerate(groups):
                values = {name: on_host(arrays[name]) for name in names}
                for name, value in values.items():
                    if name not in expected:
                        edits[name] = hashes(value, 1)
                    elif hashes(value, len(expected[name])) != expected[name]:
                        raise CheckpointError(f"{name} was loaded otherwise than it was verified; start again")
                save(temporary / arrays_name(i), values)
            manifest = {
                **self._asked,
                "mode": sharing.mode,
                "why": sharing.why,
                "doubled": doubled,
                "edit_rank": sharing.edit_rank,
                "edits": edits,
                "groups": groups,
                "files": files_of(temporary),
            }
            _write(temporary / _MANIFEST, entry.name, manifest)
            if entry.exists():
                os.rename(entry, _beside(entry))
            os.rename(temporary, entry)
        finally:
            # What a process that was killed has left goes too.
            for left in entry.parent.glob(_beside(entry, "*").name):
                shutil.rmtree(left, ignore_errors=True)


def _stamp(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is trusted to be another for other weights."""
    files, known = [], True
    for path, (size, changed) in sorted(checkpoint.stamps.items()):
        sha256 = checkpoint.origin.sha256(path.name)
        known &= sha256 is not None
        files.append([path.name, size, sha256 or changed, sketch(path)])
    return {"folder": None if known else str(checkpoint.folder.resolve()), "files": files}


def _makers() -> str:
    """What makes arrays of weights: with other code they may be others."""
    sources = (Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("edits", "layout", "sharing"))
    return hashlib.sha256(b"".join(sources)).hexdigest()[:_NAME]


def _default_device() -> jax.Device:
    (device,) = jnp.zeros(()).devices()
    return device


def _beside(entry: Path, word: str | None = None) -> Path:
    """Another name beside an entry, for what is not complete or no longer used."""
    return entry.with_name(f".{entry.name}-{word or secrets.token_hex(4)}")


@contextlib.contextmanager
def _alone(entry: Path) -> Iterator[bool]:
    """Whether nobody else writes this entry now."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with open(entry.with_name(f".lock-{entry.name}"), "w") as lock:
        alone = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        except OSError:
            # A file system without locks: two may write, each under a name of its own.
            pass
        yield alone


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write(path: Path, about: str, content: dict[str, Any]) -> None:
    """A JSON file with its own sha256, which is another for a file about something else."""
    write_json(path, {"content": content, "sha256": _digest([about, content])})


def _read(path: Path, about: str) -> dict[str, Any]:
    """The content of such a file.

    Raises:
      Damaged: it is not what was written.
    """
    try:
        whole = json.loads(path.read_bytes())
        if whole["sha256"] == _digest([about, whole["content"]]):
            return whole["content"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise Damaged(f"{path.name} is not what was written")
