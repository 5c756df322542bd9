"""The manifests of a folder and the shards in it, held against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from lpe_jax.errors import RunError
from lpe_jax.records.files import part_files
from lpe_jax.records.shard import MANIFEST, named_in_damaged, open_manifest, read_shard


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is in a folder of shards, all by file names.

    Attributes:
      kept: (manifest, line) where the shard has the sha256 that the line says; what else the line says is as the shard
        tells it itself.
      damaged: manifests that are not what was written, and why.
      bad: shards that are not what a line says, with the manifest that it is in, and why.
      unnamed: shards that no line names.
    """

    kept: list[tuple[str, dict[str, Any]]]
    damaged: dict[str, RunError]
    bad: dict[str, tuple[str, RunError]]
    unnamed: list[str]

    @property
    def to_write(self) -> set[str]:
        """Manifests that name more than is kept, or say it wrongly."""
        return {*self.damaged, *(name for name, _ in self.bad.values())}


def survey(folder: Path, about: Callable[[str, pa.Table], dict[str, Any]]) -> Survey:
    """Reads every shard that a manifest names, one at a time.

    Args:
      about: what a line says of a shard besides its sha256, from its name and its table.
    """
    kept, damaged, bad = {}, {}, {}
    for path in part_files(folder / MANIFEST).values():
        try:
            entries = open_manifest(path).lines
        except RunError as error:
            damaged[path.name], entries = error, named_in_damaged(path)
        for entry in entries:
            name = entry["shard"]
            try:
                said = about(name, read_shard(folder, entry, path.name))
            except RunError as error:
                bad[name] = path.name, error
            except (KeyError, TypeError, ValueError):
                # Its hash is right, and it is none of ours.
                bad[name] = path.name, RunError(f"{folder / name} is no such shard, as {path.name} has it")
            else:
                kept[name] = path.name, said | {"sha256": entry["sha256"]}
    # A damaged line may name a shard that another line names rightly.
    bad = {name: found for name, found in bad.items() if name not in kept}
    unnamed = {path.name for path in folder.glob("*.parquet")} - kept.keys() - bad.keys()
    return Survey(list(kept.values()), damaged, bad, sorted(unnamed))
