"""How the weights of two checkpoints are kept: each model's, equal ones once, or one set and the variant's edits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lpe_jax.errors import PairError
from lpe_jax.models.checkpoint import Checkpoint, read_chunks, stored_dtype
from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.edits import MAX_RANK, Measured, measure
from lpe_jax.models.layout import EDITS, Leaf, edit_of, kind_of, leaves_of, matrix_of

MODES = ("auto", "copies", "shared", "ablated")


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What is kept once.

    Attributes:
      mode: "copies": nothing; "shared": what is equal; "ablated": everything, and the variant's edits besides.
      once: by leaf name, whether both models use the same array.
      edits: by leaf name, what makes the variant's matrix of the original's; empty unless ablated.
      why: one sentence for the record, with what was measured.
    """

    mode: str
    once: Mapping[str, bool]
    edits: Mapping[str, Measured] = dataclasses.field(default_factory=dict)
    why: str = ""

    @property
    def edit_rank(self) -> int:
        """The highest rank of an edit; 0 where there are none."""
        return max((edit.rank for edit in self.edits.values()), default=0)

    def edit_arrays(self, config: Qwen3Config) -> dict[str, np.ndarray]:
        """By leaf name, what has edit_shapes, float32: the original's are zero, and so is the variant's where a matrix
        is equal or its edit of a lower rank.
        """
        arrays = {}
        for name, size in edit_shapes(config, self.edit_rank).items():
            matrix, part = name.rsplit(".", 1)
            value = np.zeros(size, np.float32)
            if edit := self.edits.get(matrix_of(matrix)):
                values = getattr(edit, part)
                value[(1, *map(slice, values.shape))] = values  # the original's stay zero
            arrays[name] = value
        return arrays


def edit_shapes(config: Qwen3Config, rank: int) -> dict[str, tuple[int, ...]]:
    """What `Edit` holds of every matrix that can have one, for both models: shapes by leaf name; none for rank 0."""
    if not rank:
        return {}
    of_one = {"u": (2, config.hidden_size, rank), "a": (2, rank, config.hidden_size)}
    matrices = [leaf.name for leaf in leaves_of(config) if kind_of(leaf.name) in EDITS]
    return {f"{edit_of(name)}.{part}": size for name in matrices for part, size in of_one.items()}


def find_sharing(original: Checkpoint, variant: Checkpoint, mode: str, dtype: jnp.dtype) -> Sharing:
    """What a mode keeps of two verified checkpoints; "auto" is ablated where that is exact up to rounding, else shared.

    Args:
      dtype: what they will be loaded in.

    Raises:
      PairError: mode is "ablated" and the variant is no low-rank edit of the original.
    """
    both = original, variant
    equal = {
        leaf.name: original.digests[leaf.hf_name] == variant.digests[leaf.hf_name]
        for leaf in leaves_of(original.config)
    }

    def measured(leaf: Leaf) -> Measured:
        name = leaf.hf_name
        # What the original was rounded to before it was edited is no excuse.
        rounded = np.dtype(dtype), stored_dtype(variant, name)
        eps = max(float(ml_dtypes.finfo(d).eps) for d in rounded)

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return zip(*(read_chunks(c.files[name], name, np.dtype(dtype)) for c in both), strict=True)

        return _measured(leaf, chunks, original.config, eps)

    try:
        return _chosen(original.config, equal, mode, measured)
    except PairError as error:
        raise PairError(f"{variant.source} is not {original.source} with low-rank edits: {error}") from None


def sharing_of_arrays(config: Qwen3Config, ours: Mapping, theirs: Mapping, mode: str) -> Sharing:
    """find_sharing of parameters in memory, by leaf name.

    Raises:
      PairError: mode is "ablated" and they are no low-rank edits.
    """
    equal = {name: bool(jnp.array_equal(ours[name], theirs[name])) for name in ours}

    def measured(leaf: Leaf) -> Measured:
        both = tuple(np.asarray(of[leaf.name]) for of in (ours, theirs))
        return _measured(leaf, lambda: iter([both]), config, float(ml_dtypes.finfo(both[0].dtype).eps))

    return _chosen(config, equal, mode, measured)


def _chosen(config: Qwen3Config, equal: dict[str, bool], mode: str, measured: Callable[[Leaf], Measured]) -> Sharing:
    asked = ", as asked for" if mode != "auto" else ""
    if mode == "copies":
        return Sharing("copies", dict.fromkeys(equal, False), why="pair mode copies" + asked)
    differing = [leaf for leaf in leaves_of(config) if not equal[leaf.name]]
    if mode == "shared" or not differing:
        return Sharing("shared", equal, why="pair mode shared" + (asked if differing else ": all weights are equal"))
    # Small ones first: a pair that is no edit is seen for what it is at once.
    edits: dict[str, Measured] = {}
    for leaf in sorted(differing, key=lambda leaf: math.prod(leaf.shape(config))):
        problem = f"{leaf.hf_name} differs and does not write into the residual stream"
        if kind_of(leaf.name) in EDITS:
            found = measured(leaf)
            if found.exact:
                edits[leaf.name] = found
                continue
            problem = f"{leaf.hf_name} is no edit of rank {MAX_RANK} or less ({found.words()})"
        if mode == "ablated":
            raise PairError(f"{problem}; use --pair_mode=shared")
        return Sharing("shared", equal, why=f"pair mode shared: {problem}")
    return Sharing("ablated", dict.fromkeys(equal, True), edits, f"pair mode ablated{asked}: {_words(edits)}")


def _measured(leaf: Leaf, chunks: Callable[[], Iterator], config: Qwen3Config, eps: float) -> Measured:
    """measure of a matrix whose chunks along its first axis on disk are read in pairs."""

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if leaf.axes[-1] == "D":
            yield from chunks()
        else:
            yield tuple(np.concatenate(part).T for part in zip(*chunks(), strict=True))

    return measure(blocks, config.hidden_size, eps)


def _words(edits: Mapping[str, Measured]) -> str:
    """The range of what was measured, kind by kind."""
    kinds: dict[str, list[Measured]] = {}
    for name, edit in edits.items():
        kinds.setdefault(kind_of(name), []).append(edit)

    def of_kind(kind: str, found: list[Measured]) -> str:
        ranks, ratios, off = ([getattr(e, field) for e in found] for field in ("rank", "next_ratio", "off"))
        many = f" x {len(found)}" if len(found) > 1 else ""
        low, high = min(ranks), max(ranks)
        return (
            f"{kind}{many} of rank {low if low == high else f'{low} to {high}'}, next singular value at most "
            f"{max(ratios):.1e} of the first, entries off by at most {max(off):.1e}"
        )

    return "the variant is the original with edits: " + "; ".join(of_kind(*item) for item in kinds.items())
