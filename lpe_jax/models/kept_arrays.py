"""Arrays in orbax checkpoints, with hashes of their values: orbax itself does not see a bit that has turned."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from lpe_jax.machine import cores
from lpe_jax.models.outside import one_line

# So much is on the host at a time, or one array.
_GROUP_BYTES = 1 << 29
# Devices that share an array read the chunks they have a part of.
_CHUNK_BYTES = 32 << 20
# So many arrays are hashed at a time.
_HASHED_AT_ONCE = 4
# Smaller files hold what orbax knows of arrays.
_SMALL = 1 << 20


class Damaged(Exception):
    """Why what is kept cannot be used."""


def restored(
    entry: Path,
    groups: Sequence[Sequence[str]],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    expected: Mapping[str, Sequence[str]],
) -> dict[str, jax.Array]:
    """Arrays read into their places, each hashed as it lies there.

    Args:
      groups: names of what was saved together, in order.
      shapes: with shardings, by name.
      expected: by name, what `hashes` must say of it.

    Raises:
      Damaged: anything is not as expected.
    """
    if sorted(name for group in groups for name in group) != sorted(shapes) or expected.keys() != shapes.keys():
        raise Damaged("its arrays are not those of this pair")

    def check(name: str, array: jax.Array) -> None:
        if (array.shape, array.dtype) != (shapes[name].shape, shapes[name].dtype):
            raise Damaged(f"{name} is not what it was")
        if hashes(on_host(array), len(expected[name])) != list(expected[name]):
            raise Damaged(f"{name} has other values")

    leaves, checks = {}, []
    # One group is hashed while the next is read.
    with ThreadPoolExecutor(min(_HASHED_AT_ONCE, cores())) as pool:
        for i, names in enumerate(groups):
            found = _load(entry / arrays_name(i), {name: shapes[name] for name in names})
            checks += [pool.submit(check, name, found[name]) for name in names]
            leaves |= found
        for each in checks:
            each.result()
    return leaves


def files_of(entry: Path) -> dict[str, list[Any]]:
    """What lies in a folder of saved arrays: by name, the size of each file, and the sha256 of small ones."""
    paths = (path for path in sorted(entry.glob("arrays-*/**/*")) if path.is_file())
    return {str(path.relative_to(entry)): _file(path) for path in paths}


def check_files(entry: Path, files: Mapping[str, Sequence[Any]]) -> None:
    """Before orbax is asked: what it says of damage to its own files takes pages, and comes from other threads.

    Raises:
      Damaged: a file is not there, or not as `files_of` had it.
    """
    for name, expected in files.items():
        try:
            same = _file(entry / name) == list(expected)
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None
        if not same:
            raise Damaged(f"{name} is not what was written")


def _file(path: Path) -> list[Any]:
    size = path.stat().st_size
    return [size, hashlib.sha256(path.read_bytes()).hexdigest() if size < _SMALL else None]


def groups_of(arrays: Mapping[str, jax.Array]) -> list[list[str]]:
    """Names of arrays that are saved together: about half a gigabyte, so that the host has no more of them at once."""
    groups, size = [[]], 0
    for name, array in arrays.items():
        if groups[-1] and size + array.nbytes > _GROUP_BYTES:
            groups, size = [*groups, []], 0
        groups[-1].append(name)
        size += array.nbytes
    return groups


def on_host(array: jax.Array) -> np.ndarray:
    """Its values. Of a copy, as an array keeps what was fetched of it for as long as it lives."""
    return np.asarray(jnp.copy(array))


def hashes(value: np.ndarray, parts: int) -> list[str]:
    """sha256 of the values, or of each of so many parts along the first axis."""
    flat = np.ascontiguousarray(value).reshape(parts, -1).view(np.uint8)
    return [hashlib.sha256(part.data).hexdigest() for part in flat]


def save(folder: Path, values: Mapping[str, np.ndarray]) -> None:
    """Arrays of one group into a folder that is not there yet."""
    import orbax.checkpoint as ocp

    pieces = {name: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for name in values}
    with _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(dict(values), save_args=pieces))


def _load(folder: Path, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    import orbax.checkpoint as ocp

    places = {
        name: ocp.ArrayRestoreArgs(sharding=shape.sharding, global_shape=shape.shape, dtype=shape.dtype)
        for name, shape in shapes.items()
    }
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), ocp.args.PyTreeRestore(dict(shapes), restore_args=places))
    except Exception as error:  # what a reader raises of a damaged file is its own affair
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise Damaged(f"{folder.name} cannot be read: {one_line(error)}") from None


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """orbax for this process alone: it would otherwise wait for the others, one of which may have died."""
    import orbax.checkpoint as ocp

    me, verbosity = jax.process_index(), logging.get_verbosity()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"weights-{me}"
    )
    # It reports each of its steps.
    logging.set_verbosity(logging.ERROR)
    try:
        # Weights hardly become smaller, and packing takes longer than reading.
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer
    finally:
        logging.set_verbosity(verbosity)


def arrays_name(group: int) -> str:
    """The folder of a group of arrays."""
    return f"arrays-{group:03}"
