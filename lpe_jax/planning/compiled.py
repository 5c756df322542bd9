"""The decode compiled ahead of time: what of a device's memory it takes, and how often devices ask each other."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lpe_jax.decoding.sampler import Sampler

_COLLECTIVE = re.compile(
    r"= .*? (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|ragged-all-to-all)(?:-start)?\("
)
# How XLA says that a program is too large, and by how much.
_TOO_LARGE = "RESOURCE_EXHAUSTED"
_USED = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# Two batches as near as this count as the same when the largest is looked for: each compile takes minutes.
_NEAR = 1 / 16
_TRIES = 6


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A decode that has been compiled.

    Attributes:
      memory: bytes of one device by part; they add up to all that it needs.
      collectives: how many there are in the program, by kind.
    """

    memory: dict[str, int]
    collectives: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.memory.values())


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler refused: the program needs so many bytes of each device, None where it did not say."""

    total: int | None


def compile_decode(sampler: Sampler, *, alone: bool = False) -> Compiled | TooLarge:
    """Compiles the decode that a sampler of shapes would run.

    Args:
      alone: whether the original alone is run in the same job: the weights that differ are then there once more.
    """
    prompts, _, rows, _ = shapes = sampler.shapes()
    parts = {
        "weights": device_bytes(sampler.pair),
        "prompts' keys and values": device_bytes((prompts.k, prompts.v)),
        "responses' keys and values": device_bytes(rows.responses),
    }
    arguments = parts["weights"] + device_bytes(shapes)
    parts["tickets, sums and results"] = arguments - sum(parts.values())
    try:
        compiled = sampler.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if _TOO_LARGE not in str(error):
            raise
        used = _USED.search(str(error))
        return TooLarge(int(float(used[1]) * _UNITS[used[2]]) if used else None)
    found = compiled.memory_analysis()
    # As the device stores them: small axes are filled up to its tiles. The seed and such are here too.
    parts["padding"] = found.argument_size_in_bytes - arguments
    # Results are not written over those before.
    parts["results written anew"] = found.output_size_in_bytes - found.alias_size_in_bytes
    parts["temporary"] = found.temp_size_in_bytes
    parts["program"] = found.generated_code_size_in_bytes
    # What `prefill` returns and what it began with; activations of one prompt are little beside it.
    own = sampler.groups // (1 if sampler.mesh is None else sampler.mesh.shape["data"])
    parts["a prompt on its way in"] = 2 * parts["prompts' keys and values"] // own
    if alone:
        doubled = (a for a, shared in zip(sampler.pair.leaves, sampler.pair.shared, strict=True) if not shared)
        parts["weights of the original alone"] = device_bytes(tuple(doubled)) // 2
    return Compiled(parts, dict(Counter(_COLLECTIVE.findall(compiled.as_text()))))


def device_bytes(tree: Any) -> int:
    """Bytes of the part of each array or shape that one device holds, together."""

    def part(x: Any) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return int(np.prod(shape)) * x.dtype.itemsize

    return sum(map(part, jax.tree.leaves(tree)))


def largest(total: Callable[[int], int | None], limit: int, *, unit: int, fixed: int, per_row: int) -> int:
    """About the most rows of a device whose program fits, a multiple of unit or less than one; 0 if none was found.

    Args:
      total: bytes that a program for so many rows needs; None where all that is known is that they are too many. It
        may compile for minutes, so that it is called for a few guesses only.
      limit: bytes of a device.
      fixed, per_row: guesses of bytes that do not, and that do, grow with rows.
    """
    fits, fails, known = 0, None, {}
    guess = max((limit - fixed) // per_row, unit)
    for _ in range(_TRIES):
        rows = guess // unit * unit if guess >= unit else guess
        if rows <= fits:
            break
        needed = total(rows)
        if needed is not None and needed <= limit:
            fits = rows
        else:
            fails = rows
        near = max(unit, int(fits * _NEAR))
        if fails is not None and fails - fits <= (near if fits else 1):
            break
        if needed is None:
            guess = (fits + rows) // 2
        else:
            if known:
                other = min(known, key=lambda n: abs(n - rows))
                per_row = max((needed - known[other]) // (rows - other), 1)
            known[rows] = needed
            guess = rows + (limit - needed) // per_row
        if fails is None and guess < fits + unit:
            break
        if fails is not None and not fits < guess < fails:
            guess = (fits + fails) // 2
    return fits
