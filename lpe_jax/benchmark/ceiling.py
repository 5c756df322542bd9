"""What an accelerator could do at most, measured in the same run, and how near a decode comes to it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lpe_jax.benchmark.rounds import Turn
from lpe_jax.benchmark.workloads import Workload
from lpe_jax.models.pair import Pair

_COPY_BYTES = 4 << 30
_MATMUL_SIDE = 8192
_REPEATS = 10


def facts(pair: Pair, workload: Workload, turns: Sequence[Turn]) -> dict[str, Any]:
    """Bytes/s and FLOP/s of every contestant, beside those of a copy and of a product of matrices on this device.

    A step reads each model's weights once, those that the pair shares as often as the contestant keeps them, which is
    once for ours; a token takes two operations per parameter of each model. Keys and values and what is drawn are not
    counted, so that what is said is the least.
    """
    copy, product = copy_bytes_per_second(), matmul_flops_per_second(pair.dtype)
    found: dict[str, Any] = {"copy_bytes_per_second": copy, "matmul_flops_per_second": product}
    for name in dict.fromkeys(turn.name for turn in turns):
        own = [turn for turn in turns if turn.name == name]
        weights = pair.nbytes if name.startswith("our engine") else 2 * pair.config.num_params * pair.dtype.itemsize
        moved, done = work_per_second(own, weights, pair.config.num_params, workload.batch_size)
        found[name] = {"bytes_per_second": moved, "flops_per_second": done, "of_copy": moved / copy}
        found[name]["of_matmul"] = done / product
    return found


def work_per_second(turns: Sequence[Turn], weights: int, parameters: int, rows: int) -> tuple[float, float]:
    """(bytes/s, FLOP/s), medians over turns: weights in bytes per step, parameters of one model, rows of a batch."""
    tokens = statistics.median(turn.tokens / turn.seconds for turn in turns)
    return tokens / rows * weights, tokens * 2 * 2 * parameters


def copy_bytes_per_second() -> float:
    """Bytes read and written by a copy of some gigabytes, per second."""
    x = jnp.zeros(_COPY_BYTES // 4, jnp.float32)
    return 2 * x.nbytes / _seconds(jax.jit(lambda x: x + 1), x)


def matmul_flops_per_second(dtype: jnp.dtype) -> float:
    """Operations per second of a large product of matrices."""
    x = jnp.ones((_MATMUL_SIDE, _MATMUL_SIDE), dtype)
    return 2 * _MATMUL_SIDE**3 / _seconds(jax.jit(lambda x: x @ x), x)


def _seconds(call: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """The median time of a call that is compiled already."""
    call(x).block_until_ready()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        call(x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
