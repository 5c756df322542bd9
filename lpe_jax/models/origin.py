"""What the Hugging Face hub says of files that came from it, as far as that is known without asking it.

The hub names content by its hash: a large file by its sha256, a small one by git's sha1. Its cache keeps a file under
that name, and a link to it under the file's own; a download into a folder leaves a note beside, in .cache/huggingface.
Either tells that a file is what was published, or that a disk or a hand has changed it since.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lpe_jax.errors import CheckpointError
from lpe_jax.machine import cores

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# A note is a commit, a hash and a time.
_NOTE_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a folder's files came from.

    Attributes:
      repo: "org/name", where the folder's own name says so.
      commit: the hub's commit; None where files are of several, or of none.
      hashes: by file name, the hash by which the hub names its content: sha256 (64 digits) or git's sha1 (40).
    """

    repo: str | None = None
    commit: str | None = None
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def sha256(self, name: str) -> str | None:
        """What the hub says a file's sha256 is."""
        found = self.hashes.get(name, "")
        return found if len(found) == 64 else None

    def words(self) -> str:
        """The repository and its commit."""
        return f"{self.repo or 'the hub'}@{self.commit or 'several commits'}"


NOWHERE = Origin()


def origin_of(folder: Path) -> Origin:
    """What is known of a folder: a snapshot in the hub's cache, or one that was downloaded into."""
    store = folder.absolute().parent.parent
    if folder.absolute().parent.name == "snapshots" and store.name.startswith("models--"):
        if _COMMIT.fullmatch(folder.name):
            repo = store.name.removeprefix("models--").replace("--", "/")
            return Origin(repo, folder.name, dict(_linked(folder)))
    notes = dict(_noted(folder))
    commits = {commit for commit, _ in notes.values()}
    if not notes:
        return NOWHERE
    return Origin(None, commits.pop() if len(commits) == 1 else None, {name: hash for name, (_, hash) in notes.items()})


def _linked(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            # One step only: what a link in the cache leads to may lead on to a store that other repositories share.
            target = Path(os.readlink(path))
            if target.parent.name == "blobs" and _HASH.fullmatch(target.name):
                yield path.name, target.name


def _noted(folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    for note in sorted((folder / ".cache" / "huggingface" / "download").glob("*.metadata")):
        path = folder / note.name.removesuffix(".metadata")
        try:
            with note.open(encoding="ascii") as file:
                commit, name, noted = file.read(_NOTE_BYTES).split("\n")[:3]
            # As the hub's own client has it: what changed later is somebody's own, and no business of the hub's.
            current = path.is_file() and path.stat().st_mtime - 1 <= float(noted)
        except (OSError, ValueError):
            continue
        if current and _COMMIT.fullmatch(commit) and _HASH.fullmatch(name):
            yield path.name, (commit, name)


def check_origin(folder: Path, origin: Origin, names: Collection[str]) -> None:
    """Reads those of the named files that the hub's hash is known of.

    Raises:
      CheckpointError: one of them is not what the hub has under its name.
    """
    known = [name for name in names if name in origin.hashes]

    def found_of(name: str) -> str:
        return _hash(folder / name, origin.hashes[name])

    with ThreadPoolExecutor(cores()) as pool:
        for name, found in zip(known, pool.map(found_of, known), strict=True):
            if found != origin.hashes[name]:
                kind = "sha256" if len(found) == 64 else "git sha1"
                raise CheckpointError(
                    f"{folder / name} is not what {origin.words()} has under this name ({kind} {found[:12]}… instead "
                    f"of {origin.hashes[name][:12]}…); delete it and download it again"
                )


def _hash(path: Path, like: str) -> str:
    try:
        with path.open("rb") as file:
            if len(like) == 64:
                return hashlib.file_digest(file, "sha256").hexdigest()
            head = f"blob {os.fstat(file.fileno()).st_size}\0".encode()
            found = hashlib.sha1(head, usedforsecurity=False)
            while block := file.read(1 << 20):
                found.update(block)
            return found.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
