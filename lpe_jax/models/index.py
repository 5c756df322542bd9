"""Which files of a folder a checkpoint's weights are in."""

from __future__ import annotations

from pathlib import Path

from lpe_jax.errors import CheckpointError
from lpe_jax.models.outside import named, read_json, shown

INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
_LONGEST_NAME = 200
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def weight_files(folder: Path) -> list[Path]:
    """The files that a folder's weights are in.

    Raises:
      CheckpointError: there are none, an index cannot be used, or there are only pickles, which are refused because
        loading them can run code.
    """
    alone, pickles = folder / _WHOLE, sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if (folder / INDEX).exists():
        names = sorted(set(weight_map(folder).values()))
        if alone.exists() and _WHOLE not in names:
            raise CheckpointError(
                f"{folder} holds {_WHOLE} and an index of other files, {INDEX}; remove what is not meant"
            )
        return [folder / name for name in names]
    if alone.exists():
        return [alone]
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickle weights ({named(pickles[0])}), which can run code when loaded; "
            "convert the checkpoint to safetensors"
        )
    raise CheckpointError(f"{folder} has neither {_WHOLE} nor {INDEX}")


def weight_map(folder: Path) -> dict[str, str]:
    """From tensor names to file names, as the index has them.

    Raises:
      CheckpointError: it has none, or one that leads out of the folder.
    """
    index = folder / INDEX
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
    # The index comes from outside: a file name must not lead out of the folder.
    for name in found.values():
        plain = Path(name).name == name and name.isprintable() and len(name) <= _LONGEST_NAME
        if not plain or Path(name).suffix != ".safetensors":
            raise CheckpointError(f"{index} names {shown(name)}, which is not a plain file name of safetensors there")
    return found
