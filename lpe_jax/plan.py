"""A pair, hardware that need not be there and a sweep become a plan: whether it fits, and how long it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import ROWS_PER_PROMPT, Sampler, rounded_slots
from lpe_jax.errors import UserError
from lpe_jax.loading import make_mesh
from lpe_jax.models.checkpoint import open_config
from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.pair import abstract_pair, check_same_config
from lpe_jax.models.weights import DTYPES
from lpe_jax.planning.chips import in_words
from lpe_jax.planning.compiled import Compiled, TooLarge, compile_decode, device_bytes, largest
from lpe_jax.planning.counts import count_step, weights_read
from lpe_jax.planning.report import Plan, Speed, Sweep
from lpe_jax.planning.targets import Target, find
from lpe_jax.records.files import read_bytes
from lpe_jax.reporting import bill
from lpe_jax.reporting.text import printable

# What an abliterated variant differs in: all that writes to the residual stream.
_WRITERS = ("embed_tokens", "o_proj", "down_proj")
# Which parameters are there twice.
PAIR_MODES: dict[str, Callable[[str], bool]] = {
    "copies": lambda name: True,
    "shared": lambda name: name.split(".")[-1] in _WRITERS,
    "ablated": lambda name: False,
}
# Where there is no limit to look for.
_ROWS_WITHOUT_LIMIT = 64
_COMPILERS = ("jax", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a plan is asked for; the flags of experiments.plan by name.

    Attributes:
      batch_size: rows over all devices; None for the most that fit.
      prompt_slots: tokens of the longest prompt.
      grid_logps: take every rollout's log p at all alphas of the sweep.
      attention: as lpe_jax.decoding.sampler.Sampler takes it.
      mean_tokens: of a rollout; None for max_new_tokens.
      memory_gib: of a device, instead of the chip's; None for that.
      efficiency: the share of the hand-counted ceiling that is expected.
    """

    original: str
    variant: str | None
    topology: str
    batch_size: int | None
    prompt_slots: int
    max_new_tokens: int
    model_parallel: int
    dtype: str
    pair_mode: str
    attention: str
    num_prompts: int
    num_alphas: int
    n: int
    n_naive: int
    mean_tokens: float | None
    grid_logps: bool
    memory_gib: float | None
    efficiency: float


def make_plan(wanted: Wanted) -> Plan:
    """Compiles the decode and works out the rest; `lpe_jax.planning.targets.prepare` must have been called.

    Raises:
      UserError: an input cannot be used, or the batch does not fit; the message then names one that does.
    """
    config = _config(wanted)
    target = find(wanted.topology, None if wanted.memory_gib is None else wanted.memory_gib * 2**30)
    dtype = wanted.dtype if wanted.dtype != "auto" else "float32" if target.chip is None else "bfloat16"
    wanted = dataclasses.replace(wanted, dtype=dtype, prompt_slots=rounded_slots(wanted.prompt_slots))
    shape = _Shape(wanted, config, target)
    began = time.monotonic()
    # As where models are loaded: accelerators multiply float32 matrices in fewer bits unless told otherwise.
    with jax.default_matmul_precision("highest") if dtype == "float32" else contextlib.nullcontext():
        rows, compiled = _compiled(wanted, shape)
    sampler = shape.sampler(rows)
    asked = dataclasses.asdict(wanted) | {
        "batch_size": sampler.batch_size,
        "attention": "einsum" if sampler.kernel is None else "pallas",
    }
    speeds = (None, None, None) if target.chip is None else _speeds(wanted, shape, sampler)
    return Plan(
        target=target,
        asked=asked,
        versions=_versions(target),
        seconds=time.monotonic() - began,
        parameters=config.num_params,
        batch_size=sampler.batch_size,
        rows=rows,
        groups=sampler.groups // shape.ways,
        memory=compiled.memory,
        limit=target.memory,
        collectives=compiled.collectives,
        efficiency=wanted.efficiency,
        pair=speeds[0],
        alone=speeds[1],
        sweep=speeds[2],
    )


def _config(wanted: Wanted) -> Qwen3Config:
    config = open_config(wanted.original)
    if wanted.variant is not None:
        check_same_config((wanted.original, config), (wanted.variant, open_config(wanted.variant)))
    if wanted.prompt_slots + wanted.max_new_tokens > config.max_position_embeddings:
        raise UserError(
            f"--prompt_slots={wanted.prompt_slots} with --max_new_tokens={wanted.max_new_tokens} is over the models' "
            f"{config.max_position_embeddings} positions; shorten one of them"
        )
    return config


class _Shape:
    """The sampler of any number of rows of a device, all of shapes."""

    def __init__(self, wanted: Wanted, config: Qwen3Config, target: Target):
        self.wanted, self.config, self.target = wanted, config, target
        self.mesh = make_mesh(wanted.model_parallel, target.devices)
        self.ways = len(target.devices) // wanted.model_parallel
        self.doubled = PAIR_MODES[wanted.pair_mode]
        self.dtype = jnp.dtype(DTYPES[wanted.dtype])
        self.pair = abstract_pair(
            config,
            doubled=self.doubled,
            edit_rank=int(wanted.pair_mode == "ablated"),
            # Neither number changes what is computed.
            num_tokens=config.vocab_size,
            eos_ids=(0,),
            dtype=self.dtype,
            place=target.devices[0] if self.mesh is None else self.mesh,
        )

    def sampler(self, rows: int) -> Sampler:
        wanted = self.wanted
        return Sampler(
            pair=self.pair,
            prompts={},
            to_text=str,
            settings=SamplingSettings(max_new_tokens=wanted.max_new_tokens),
            seed=0,
            batch_size=rows * self.ways,
            prompt_slots=wanted.prompt_slots,
            mesh=self.mesh,
            grid=tuple(np.linspace(1, 0, wanted.num_alphas).tolist()) if wanted.grid_logps else None,
            attention=wanted.attention,
        )

    def compile(self, rows: int) -> Compiled | TooLarge:
        return compile_decode(self.sampler(rows), alone=self.wanted.n_naive > 0)

    def guess(self) -> tuple[int, int]:
        """Bytes of a device that do not, and that do, grow with rows: weights, and keys, values and logits."""
        whole = device_bytes(self.sampler(2 * ROWS_PER_PROMPT).shapes())
        per_row = (whole - device_bytes(self.sampler(ROWS_PER_PROMPT).shapes())) // ROWS_PER_PROMPT
        # Of logits there are about this many at a time.
        return device_bytes(self.pair), per_row + 16 * self.config.vocab_size // self.wanted.model_parallel


def _compiled(wanted: Wanted, shape: _Shape) -> tuple[int, Compiled]:
    """Rows of a device and their decode."""
    limit, done = shape.target.memory, {}
    if limit is not None and device_bytes(shape.pair) > limit:
        raise UserError(_does_not_fit(wanted, shape, 0, done))

    def total(rows: int) -> int | None:
        done[rows] = shape.compile(rows)
        return done[rows].total

    if wanted.batch_size is None and limit is None:
        done[_ROWS_WITHOUT_LIMIT] = shape.compile(_ROWS_WITHOUT_LIMIT)
        return _ROWS_WITHOUT_LIMIT, done[_ROWS_WITHOUT_LIMIT]
    if wanted.batch_size is not None:
        rows, left = divmod(wanted.batch_size, shape.ways)
        if left:
            raise UserError(
                f"--batch_size={wanted.batch_size} is not a multiple of the {shape.ways} devices that share it"
            )
        needed = total(rows)
        if limit is None or (needed is not None and isinstance(done[rows], Compiled) and needed <= limit):
            return rows, done[rows]
    fixed, per_row = shape.guess()
    most = largest(total, limit, unit=ROWS_PER_PROMPT, fixed=fixed, per_row=per_row)
    if wanted.batch_size is None and most:
        return most, done[most]
    raise UserError(_does_not_fit(wanted, shape, most, done))


def _does_not_fit(wanted: Wanted, shape: _Shape, most: int, done: dict[int, Compiled | TooLarge]) -> str:
    limit = in_words(shape.target.memory)
    if not most:
        return (
            f"the pair does not fit {wanted.topology} at any batch: with --pair_mode={wanted.pair_mode} its weights "
            f"alone take {in_words(device_bytes(shape.pair))} of a device's {limit}; share them among devices with "
            "--model_parallel, or take another mode or larger devices"
        )
    needed = done[wanted.batch_size // shape.ways].total
    needs = f"more than a device's {limit}" if needed is None else f"{in_words(needed)} of a device's {limit}"
    return (
        f"--batch_size={wanted.batch_size} does not fit {wanted.topology}: it needs {needs}; "
        f"--batch_size={most * shape.ways} fits"
    )


def _speeds(wanted: Wanted, shape: _Shape, sampler: Sampler) -> tuple[Speed, Speed, Sweep]:
    chip, devices = shape.target.chip, len(shape.target.devices)
    itemsize = shape.dtype.itemsize
    tokens = float(wanted.mean_tokens or wanted.max_new_tokens)

    def speed(models: int, doubled: Callable[[str], bool], grid: int) -> Speed:
        step = count_step(
            shape.config,
            models=models,
            weight_bytes=weights_read(shape.config, doubled, itemsize),
            rows=sampler.batch_size // shape.ways,
            groups=sampler.groups // shape.ways,
            prompt_slots=wanted.prompt_slots,
            # As many as a row has, from its first token to its last; or all.
            response_slots=wanted.max_new_tokens if sampler.kernel is None else (tokens + 1) / 2,
            itemsize=itemsize,
            grid=grid,
            model_parallel=wanted.model_parallel,
        )
        seconds = step.seconds(chip)
        ceiling = sampler.batch_size / seconds
        return Speed(step, seconds, ceiling, wanted.efficiency * ceiling)

    pair = speed(2, shape.doubled, wanted.num_alphas if wanted.grid_logps else 0)
    alone = speed(1, PAIR_MODES["ablated"], 0)
    path, naive = wanted.num_prompts * wanted.num_alphas * wanted.n, wanted.num_prompts * wanted.n_naive
    hourly = [3600 * one.expected / tokens for one in (pair, alone)]
    hours = path / hourly[0] + naive / hourly[1]
    return pair, alone, Sweep(path, naive, tokens, hours, hours * devices, *hourly)


def _versions(target: Target) -> dict[str, str]:
    """Of JAX, and of what compiled."""
    platform = "jax" if target.chip is None else "libtpu" if target.chip.cuda is None else "cuda"
    found: dict[str, Any] = {}
    for name in _COMPILERS:
        if name == "jax" or platform in name:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
    return found


def speed_in(path: Path) -> bill.Pace:
    """The speed that a plan of experiments.plan expects of the pair, on the hardware it was made for.

    Raises:
      UserError: it is no plan, or one for a CPU, of whose speed a plan says nothing.
    """
    no_plan = UserError(f"--plan={path} is no file that experiments.plan --json=FILE wrote")
    try:
        plan = json.loads(read_bytes(path) or "null")
        asked, devices = plan["asked"], plan["devices"]
        model, topology, rows = asked["original"], asked["topology"], plan["batch_size"]
        if "step" not in plan:
            raise UserError(f"--plan={path} is for {topology}, and says nothing of its speed; measure it")
        tokens = plan["step"]["pair"]["tokens_per_second_expected"]
        said = f"{plan['efficiency']:.0%} of the ceiling that {path} has for {model} on {topology}, batch {rows}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise no_plan from None
    numbers = type(devices) is int and devices > 0 and type(tokens) in (int, float) and 0 < tokens < math.inf
    if not numbers:
        raise no_plan
    return bill.Pace(float(tokens), printable(said), devices)
