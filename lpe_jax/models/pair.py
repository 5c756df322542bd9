"""Original and variant loaded together, equal weights kept once, evaluated in one program."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from lpe_jax.errors import PairError
from lpe_jax.models.checkpoint import Checkpoint
from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.layout import kind_of, leaves_of
from lpe_jax.models.qwen3 import KVCache, Qwen3
from lpe_jax.models.sharing import Sharing, edit_shapes, find_sharing, sharing_of_arrays
from lpe_jax.models.weights import check_mesh, leaf_name, leaves_from_module, load_leaf

ORIGINAL, VARIANT = 0, 1
# Config fields that may differ between the two: they do not enter the arithmetic of a forward pass.
_FREE_FIELDS = {"max_position_embeddings"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    """Both models as one pytree. Everywhere, index 0 of a leading axis of 2 is the original, 1 the variant.

    Attributes:
      leaves: parameters; […] where both models use the same array, else [2, …].
      axes: for each leaf, 0 for that axis; None where there is none.
      edit_rank: of the edits that make the variant of the original's weights; 0 where it has weights of its own.
      graphdef: the NNX structure the leaves are merged into.
      num_tokens: ids at or above it are padding rows of the vocabulary and are never drawn.
      eos_ids: any of these ends a rollout.
      models: 2; 1 where only one is run, see `alone`. Where 2 is said of a leading axis, it is this.
    """

    leaves: tuple[jax.Array, ...]
    axes: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})
    graphdef: Any = dataclasses.field(metadata={"static": True})
    config: Qwen3Config = dataclasses.field(metadata={"static": True})
    num_tokens: int = dataclasses.field(metadata={"static": True})
    eos_ids: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    edit_rank: int = dataclasses.field(default=0, metadata={"static": True})
    models: int = dataclasses.field(default=2, metadata={"static": True})

    def forward(
        self, tokens: jax.Array, start: jax.Array, cache: KVCache | None = None, slot: jax.Array | int = 0
    ) -> tuple[jax.Array, KVCache | None]:
        """Qwen3.__call__ of both: hidden states [2, B, T, D] and the cache, its arrays with a leading 2."""

        return self.each(lambda model, cache: model(tokens, start, cache, slot), cache)

    def head(self, x: jax.Array) -> jax.Array:
        """Float32 logits [2, …, V] of hidden states [2, …, D]."""
        return self.each(lambda model, x: model.head(x), x)

    def logits(self, x: jax.Array) -> jax.Array:
        """Float32 logits [V, 2, B] of hidden states [2, B, D]: what `head` gives with the vocabulary first, which on a
        CPU is quicker with few rows.
        """
        if not self.one_head:
            return self.each(lambda model, x: model.unembed(model.before_head(x)), x).swapaxes(0, 1)
        return self._one_model.unembed(self.each(lambda model, x: model.before_head(x), x))

    def mixed_logits(self, x: jax.Array, alpha: jax.Array) -> jax.Array:
        """Float32 logits(alpha) [V, B] of hidden states [2, B, D] at alpha [B].

        The head is linear: where both models have the same matrix, hidden states are mixed instead of logits, and it is
        multiplied once.
        """
        if not self.one_head:
            logits = self.logits(x)
            return alpha[None] * logits[:, ORIGINAL] + (1 - alpha)[None] * logits[:, VARIANT]
        before = self.each(lambda model, x: model.before_head(x), x).astype(jnp.float32)
        mixed = alpha[:, None] * before[ORIGINAL] + (1 - alpha)[:, None] * before[VARIANT]
        return self._one_model.unembed(mixed.astype(x.dtype))

    @property
    def _one_model(self) -> Qwen3:
        """A module with the matrices that both models share."""
        return self._merge(list(self._picked(ORIGINAL)))

    @property
    def one_head(self) -> bool:
        """Whether both models multiply hidden states by the same matrix in the end."""
        name = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        return self.shared[self.names.index(name)]

    def each(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """function(model, *arrays) of both models, in one program: arrays and results have a leading `models`."""

        def one(leaves, *arrays):
            return function(self._merge(leaves), *arrays)

        in_axes = (list(self.axes), *(0 for _ in arrays))
        return jax.vmap(one, in_axes=in_axes, axis_size=self.models)(list(self.leaves), *arrays)

    def alone(self, index: int) -> Pair:
        """The original (0) or the variant (1) where a pair is expected, at half the cost: leading axes are 1 then."""
        if self.models == 1:
            raise ValueError("one model is here, and which one is not known any more")
        names, leaves = self.names, self._picked(index)
        if index == VARIANT or not self.edit_rank:
            return dataclasses.replace(self, leaves=leaves, axes=(None,) * len(leaves), models=1)
        # The original has no edits.
        by_name = dict(zip(names, leaves, strict=True))
        leaves = tuple(by_name[name] for name in _leaf_order(self.config, 0))
        graphdef = _abstract_state(self.config, 0)[0]
        return dataclasses.replace(
            self, leaves=leaves, axes=(None,) * len(leaves), graphdef=graphdef, edit_rank=0, models=1
        )

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """k and v, L x [2, B, K, S, H] each, in the parameters' dtype."""
        one = jax.eval_shape(lambda: KVCache.empty(self.config, rows, slots, self.dtype))
        return jax.tree.map(lambda a: jnp.zeros((self.models, *a.shape), a.dtype), one)

    def model(self, index: int) -> Qwen3:
        """The original (0) or the variant (1) as a module of its own."""
        alone = self.alone(index)
        return alone._merge(list(alone.leaves))

    def _picked(self, index: int) -> tuple[jax.Array, ...]:
        return tuple(
            leaf if axis is None else jax.lax.index_in_dim(leaf, index, axis, keepdims=False)
            for leaf, axis in zip(self.leaves, self.axes, strict=True)
        )

    @property
    def dtype(self) -> jnp.dtype:
        return self.leaves[self.names.index("embed_tokens")].dtype

    @property
    def shared(self) -> tuple[bool, ...]:
        """For each leaf, whether both models use the same array."""
        return tuple(axis is None for axis in self.axes)

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def shared_bytes(self) -> int:
        """Bytes saved by keeping equal leaves once."""
        return sum(leaf.nbytes for leaf, shared in zip(self.leaves, self.shared, strict=True) if shared)

    @property
    def names(self) -> tuple[str, ...]:
        """Of each leaf (lpe_jax/models/layout.py)."""
        return _leaf_order(self.config, self.edit_rank)

    def _merge(self, leaves: list[jax.Array]) -> Qwen3:
        treedef = jax.tree.structure(_abstract_state(self.config, self.edit_rank)[1])
        return nnx.merge(self.graphdef, jax.tree.unflatten(treedef, leaves))


@functools.cache  # tracing 36 layers takes seconds
def _abstract_state(config: Qwen3Config, edit_rank: int = 0) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), edit_rank=edit_rank)))


@functools.cache
def _leaf_order(config: Qwen3Config, edit_rank: int) -> tuple[str, ...]:
    paths, _ = jax.tree_util.tree_flatten_with_path(_abstract_state(config, edit_rank)[1])
    return tuple(leaf_name(path) for path, _ in paths)


def load_pair(
    original: Checkpoint,
    variant: Checkpoint,
    *,
    num_tokens: int,
    eos_ids: tuple[int, ...],
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
    sharing: Sharing | None = None,
) -> Pair:
    """Loads two verified checkpoints; parameters that are kept once are read once.

    Args:
      sharing: what is kept once, from find_sharing; None keeps once what is equal.

    Raises:
      PairError: the configs differ in a field that enters the arithmetic.
      CheckpointError: the mesh does not divide the model.
    """
    check_same_shape(original, variant)
    check_mesh(original.config, mesh)
    sharing = sharing or find_sharing(original, variant, "shared", dtype)
    arrays = {}
    for leaf in leaves_of(original.config):
        sources = [original] if sharing.once[leaf.name] else [original, variant]
        arrays[leaf.name] = load_leaf(leaf, sources, dtype, mesh)
    place = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    edits = {name: jnp.asarray(value, device=place) for name, value in sharing.edit_arrays(original.config).items()}
    return _assemble(original.config, arrays, sharing.once, edits, sharing.edit_rank, num_tokens, eos_ids)


def pair_modules(
    original: Qwen3, variant: Qwen3, *, num_tokens: int, eos_ids: tuple[int, ...], mode: str = "shared"
) -> Pair:
    """A pair of two modules in memory (training, tests, benchmarks), kept as a mode of find_sharing says.

    Raises:
      PairError: mode is "ablated" and the variant is no low-rank edit of the original.
    """
    ours, theirs = leaves_from_module(original), leaves_from_module(variant)
    sharing = sharing_of_arrays(original.config, ours, theirs, mode)
    arrays = {n: ours[n] if sharing.once[n] else jnp.stack([ours[n], theirs[n]]) for n in ours}
    edits = {name: jnp.asarray(value) for name, value in sharing.edit_arrays(original.config).items()}
    return _assemble(original.config, arrays, sharing.once, edits, sharing.edit_rank, num_tokens, eos_ids)


def abstract_pair(
    config: Qwen3Config,
    *,
    doubled: Callable[[str], bool],
    edit_rank: int = 0,
    num_tokens: int,
    eos_ids: tuple[int, ...],
    dtype: jnp.dtype,
    place: Mesh | jax.Device | None = None,
) -> Pair:
    """A pair of shapes, for a look at programs whose weights are elsewhere: it can be lowered and not run.

    Args:
      doubled: whether a parameter of this name (lpe_jax/models/layout.py) is there for each of the two.
      edit_rank: of the variant's edits; 0 where it has none.
      place: the mesh that its weights lie on, or one device; None says nothing of it.

    Raises:
      CheckpointError: the mesh does not divide the model.
    """
    mesh = place if isinstance(place, Mesh) else None
    check_mesh(config, mesh)

    def shape(size: tuple[int, ...], dtype: jnp.dtype, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        if mesh is not None:
            where = NamedSharding(mesh, spec)
        else:
            where = None if place is None else SingleDeviceSharding(place)
        return jax.ShapeDtypeStruct(size, dtype, sharding=where)

    arrays, once = {}, {}
    for leaf in leaves_of(config):
        once[leaf.name] = not doubled(leaf.name)
        lead = () if once[leaf.name] else (2,)
        spec = PartitionSpec(*(None,) * len(lead), *leaf.spec())
        arrays[leaf.name] = shape((*lead, *leaf.shape(config)), dtype, spec)
    edits = {name: shape(size, jnp.float32, PartitionSpec()) for name, size in edit_shapes(config, edit_rank).items()}
    return _assemble(config, arrays, once, edits, edit_rank, num_tokens, eos_ids)


def _assemble(config, arrays, once, edits, edit_rank, num_tokens, eos_ids) -> Pair:
    arrays, once = arrays | edits, {**once, **dict.fromkeys(edits, False)}
    order = _leaf_order(config, edit_rank)
    return Pair(
        leaves=tuple(arrays[name] for name in order),
        axes=tuple(None if once[name] else 0 for name in order),
        graphdef=_abstract_state(config, edit_rank)[0],
        config=config,
        num_tokens=num_tokens,
        eos_ids=tuple(sorted(set(eos_ids))),
        edit_rank=edit_rank,
    )


def check_same_shape(original: Checkpoint, variant: Checkpoint) -> None:
    """Raises PairError naming every config field in which two checkpoints differ."""
    check_same_config((original.source, original.config), (variant.source, variant.config))


def check_same_config(original: tuple[str, Qwen3Config], variant: tuple[str, Qwen3Config]) -> None:
    """check_same_shape of (source, config) each."""
    a, b = (dataclasses.asdict(config) for _, config in (original, variant))
    differing = [f for f in a if a[f] != b[f] and f not in _FREE_FIELDS]
    if differing:
        what = ", ".join(f"{f} ({a[f]} against {b[f]})" for f in differing)
        raise PairError(f"{original[0]} and {variant[0]} cannot be mixed: they differ in {what}")


def describe_sharing(pair: Pair) -> str:
    """One line for a person: how much memory the pair takes, and why no more; Sharing.why has what was measured."""
    names = _leaf_order(pair.config, 0)
    head = f"models: {pair.config.num_params:,} parameters each, "
    size = f"{pair.nbytes / 1e6:,.1f} MB"
    saved = f" instead of {(pair.nbytes + pair.shared_bytes) / 1e6:,.1f}"
    if pair.edit_rank:
        return (
            f"{head}{size}{saved}: one copy of the weights serves both, as the variant is the original with edits of "
            f"rank {pair.edit_rank}"
        )
    # Each kind once, with how many layers it differs in.
    kinds = Counter(kind_of(n) for n, s in zip(names, pair.shared, strict=True) if not s)
    differing = ", ".join(kind if n == 1 else f"{kind} x {n}" for kind, n in kinds.items())
    if not any(pair.shared):
        return f"{head}{size}: a copy of the weights for each"
    return (
        f"{head}{size}{saved}: {sum(pair.shared)} of {len(names)} tensors are kept once, two of {differing or 'none'}"
    )
