"""Weights from disk straight into their place, dtype and sharding; and modules to plain leaves and back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpe_jax.errors import CheckpointError
from lpe_jax.models.checkpoint import Checkpoint, read_chunks, save_checkpoint
from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.layout import SHARDED_LETTERS, Leaf, leaves_of, letter_sizes
from lpe_jax.models.qwen3 import Qwen3

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def dtype_of(dtype: str) -> str:
    """What "auto" stands for here: float32 on CPU and bfloat16 elsewhere."""
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return dtype


def load_leaf(leaf: Leaf, checkpoints: Sequence[Checkpoint], dtype: jnp.dtype, mesh: Mesh | None = None) -> jax.Array:
    """Reads one parameter of one or more checkpoints of the same config.

    The array is made empty in its place and filled piece by piece with donated updates, so that the host never
    holds more than a piece beside it. On a mesh every process reads only the parts its own devices keep.

    Args:
      checkpoints: verified; with more than one, their copies are stacked.
      mesh: axes ("data", "model"); None for the default device.

    Returns:
      [copies?, …] with the letters of leaf.axes at the end.
    """
    config = checkpoints[0].config
    shape = leaf.shape(config)
    lead = (len(checkpoints),) if len(checkpoints) > 1 else ()
    place = _sharding(mesh, PartitionSpec(*(None,) * len(lead), *leaf.spec()))
    array = jnp.zeros(lead + shape, dtype, device=place)
    for copy, checkpoint in enumerate(checkpoints):
        at = (copy,) if lead else ()
        for row, piece in _pieces(leaf, checkpoint, dtype, mesh):
            array = _write(array, piece, (*at, row) + (0,) * (len(shape) - 1)).block_until_ready()
    return array


def _pieces(leaf: Leaf, checkpoint: Checkpoint, dtype: jnp.dtype, mesh: Mesh | None):
    """Yields (first index along the parameter's first axis, piece); on a mesh the whole, in its places."""
    name, shape = leaf.hf_name, leaf.shape(checkpoint.config)
    path = checkpoint.files[name]
    if mesh is None:
        row = 0
        for chunk in read_chunks(path, name, np.dtype(dtype)):
            # The chunk must be on the device before the next is read, or several would be held at once.
            yield row, jnp.asarray(chunk).block_until_ready()
            row += chunk.shape[0]
        return

    def part(index: tuple[slice, ...]) -> np.ndarray:
        window = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))
        return np.concatenate(list(read_chunks(path, name, np.dtype(dtype), window)))

    yield 0, jax.make_array_from_callback(shape, _sharding(mesh, leaf.spec()), part)


@functools.partial(jax.jit, donate_argnums=0)
def _write(array: jax.Array, piece: jax.Array, at: tuple[int, ...]) -> jax.Array:
    piece = piece.reshape((1,) * (array.ndim - piece.ndim) + piece.shape)
    return jax.lax.dynamic_update_slice(array, piece, at)


def _sharding(mesh: Mesh | None, spec: PartitionSpec) -> NamedSharding | None:
    return None if mesh is None else NamedSharding(mesh, spec)


def check_mesh(config: Qwen3Config, mesh: Mesh | None) -> None:
    """Raises CheckpointError when the mesh axis "model" does not divide every axis it would split."""
    ways = 1 if mesh is None else mesh.shape["model"]
    for letter, size in letter_sizes(config).items():
        if letter in SHARDED_LETTERS and size % ways:
            raise CheckpointError(
                f"a mesh with {ways} devices on 'model' does not divide axis {letter} of size {size}; use fewer"
            )


def module_from_leaves(config: Qwen3Config, leaves: dict[str, jax.Array]) -> Qwen3:
    """A module around arrays by leaf name; nothing is copied."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    paths, treedef = jax.tree_util.tree_flatten_with_path(state)
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, [leaves[leaf_name(path)] for path, _ in paths]))


def load_module(checkpoint: Checkpoint, dtype: jnp.dtype, mesh: Mesh | None = None) -> Qwen3:
    """A verified checkpoint as a module of its own."""
    leaves = {leaf.name: load_leaf(leaf, [checkpoint], dtype, mesh) for leaf in leaves_of(checkpoint.config)}
    return module_from_leaves(checkpoint.config, leaves)


def leaves_from_module(model: Qwen3) -> dict[str, jax.Array]:
    """Arrays by leaf name; nothing is copied."""
    paths, _ = jax.tree_util.tree_flatten_with_path(nnx.state(model))
    return {leaf_name(path): value for path, value in paths}


def leaf_name(path: tuple) -> str:
    """ "layers.0.q_proj" for a key path of an NNX state."""
    return ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def save_module(model: Qwen3, folder: Path) -> None:
    """Writes config.json and model.safetensors in the Hugging Face layout."""
    leaves = {name: np.asarray(value) for name, value in leaves_from_module(model).items()}
    save_checkpoint(model.config, leaves, folder)
