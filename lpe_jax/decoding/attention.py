"""Attention of one query per row by a GPU kernel that reads the slots that count, and no others.

Legend as in lpe_jax/decoding/cache.py, and

    X  rows, or groups     S  slots, P or W     J  queries that share keys: N / K of a row, R · N / K of a group

XLA's products read every slot, used or not, and write the scores of all of them to memory. The kernel takes slots a
block at a time, as far as they count, and keeps a running softmax: the largest score so far, and sums of weights and of
weighted values relative to it. Prompts and responses are two calls, merged in the end. What a row gets depends on its
own slots alone, summed in the order of blocks, wherever it is in a batch and whatever is beside it.

There is a program for each row and head. Slots are not divided among several: with tens of rows, some heads and two
models there are more programs than a GPU runs at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, PartitionSpec, use_abstract_mesh

from lpe_jax.errors import UserError

try:
    from jax.experimental.pallas import triton
except ImportError:  # announced by JAX 0.11 for some later version
    triton = None

# What a user may ask for; tests may also ask for INTERPRET.
CHOICES = ("auto", "einsum", "pallas")
INTERPRET = "interpret"

# Keys of a block, and so values, take at most so many bytes of a multiprocessor's shared memory; any GPU has room for
# both with what comes next under way, and the larger ones for several programs.
_BLOCK_BYTES = 1 << 14
_MOST_SLOTS = 128
# Tensor cores multiply at least so many rows and columns; more queries than the second number would need more registers
# than a thread has.
_TILE, _MOST_QUERIES = 16, 32
_HEAD_DIMS = (16, 32, 64, 128, 256)
# In the place of minus infinity: differences of it are numbers.
_NONE = -1e30
_WARPS, _STAGES = 4, 2


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Attention by the kernel. Keys and values of responses lie as those of prompts: [B, K, W, H].

    Attributes:
      mesh: axes ("data", "model"), over which rows and heads are divided; None for one device. XLA cannot divide a
        kernel's work: each device is told to take its own.
      interpret: have XLA carry it out step by step, on any device and slowly.
    """

    mesh: Mesh | None = None
    interpret: bool = False

    def attend(self, q: jax.Array, of_prompts: tuple, of_responses: tuple) -> jax.Array:
        """As lpe_jax.decoding.cache.attend, with how many slots count in the place of which.

        Args:
          q: [B, N, H].
          of_prompts: keys and values [G, K, P, H], and how many of their slots count [G], 0 or more.
          of_responses: keys and values [B, K, W, H], and how many of their slots count [B], 1 or more.

        Returns:
          [B, N, H].
        """
        attend = functools.partial(_attend, interpret=self.interpret)
        if self.mesh is None:
            return attend(q, of_prompts, of_responses)
        rows, heads = PartitionSpec("data"), PartitionSpec("data", "model")
        parts = heads, heads, rows
        # Nothing is said of what varies over devices: the kernel does not know.
        split = jax.shard_map(attend, mesh=self.mesh, in_specs=(heads, parts, parts), out_specs=heads, check_vma=False)
        return split(q, of_prompts, of_responses)


def choose_kernel(
    asked: str, device: jax.Device, head_dim: int | None = None, mesh: Mesh | None = None
) -> Kernel | None:
    """The kernel, where it is asked for or can be had; None for XLA's products.

    Args:
      asked: one of CHOICES, or INTERPRET.
      device: one of those that are to run it.
      head_dim: of the models; None where it is not known yet.

    Raises:
      UserError: it is asked for by name and cannot be had.
    """
    if asked == "einsum":
        return None
    if asked == INTERPRET:
        return Kernel(mesh, interpret=True)
    why_not = _obstacle(device, head_dim)
    if asked == "pallas" and why_not:
        raise UserError(f"--attention=pallas {why_not}; leave it out, and XLA's products are taken")
    return None if why_not else Kernel(mesh)


def _obstacle(device: jax.Device, head_dim: int | None) -> str | None:
    """What is in the way of the kernel, said of it; None if nothing is."""
    capability = str(getattr(device, "compute_capability", ""))
    if triton is None:
        return f"takes Pallas's Triton backend, which jax {jax.__version__} does not have"
    # AMD's GPUs name theirs otherwise.
    if not re.fullmatch(r"\d+\.\d+", capability) or float(capability) < 8:
        return f"takes an NVIDIA GPU of compute capability 8.0 or more, which {device.device_kind} is not"
    if head_dim is not None and head_dim not in _HEAD_DIMS:
        return f"takes heads of {', '.join(map(str, _HEAD_DIMS))} numbers, and the models' have {head_dim}"
    return None


@contextlib.contextmanager
def lowered_for(device: jax.Device) -> Iterator[None]:
    """In which a program can be lowered for a GPU that is not there; from 0.11 on JAX else looks for one here."""
    if device.platform != "gpu" or jax.default_backend() == "gpu" or jax.__version_info__ < (0, 11):
        yield
        return
    abstract = AbstractDevice(device_kind=device.device_kind, num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=abstract)):
        yield


def _attend(q: jax.Array, of_prompts: tuple, of_responses: tuple, interpret: bool) -> jax.Array:
    """Kernel.attend on one device."""
    (k_prompt, v_prompt, seen), (k, v, said) = of_prompts, of_responses
    groups, heads = k_prompt.shape[:2]
    rows, width, head_dim = len(q) // groups, q.shape[1] // heads, q.shape[2]
    q = q.reshape(-1, heads, width, head_dim)  # [B, K, N / K, H]

    of_prompt = [by_row(x, rows) for x in partial_attention(by_group(q, groups), k_prompt, v_prompt, seen, interpret)]
    out = merged(of_prompt, partial_attention(q, k, v, said, interpret))
    return out.reshape(len(q), heads * width, head_dim).astype(v.dtype)


def by_group(x: jax.Array, groups: int) -> jax.Array:
    """[G, K, R · N / K, ...] of [B, K, N / K, ...]: the queries that share keys and values together."""
    _, heads, _, *rest = x.shape
    return x.reshape(groups, -1, *x.shape[1:]).swapaxes(1, 2).reshape(groups, heads, -1, *rest)


def by_row(x: jax.Array, rows: int) -> jax.Array:
    """[B, K, N / K, ...] of [G, K, R · N / K, ...]."""
    groups, heads, _, *rest = x.shape
    return x.reshape(groups, heads, rows, -1, *rest).swapaxes(1, 2).reshape(groups * rows, heads, -1, *rest)


def merged(*parts: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """The softmax over the slots of all parts, each as `partial_attention` returns it, as one: [X, K, J, H] float32."""
    top = functools.reduce(jnp.maximum, (top for _, top, _ in parts))
    shares = [jnp.exp(own - top) for _, own, _ in parts]
    out = sum(share[..., None] * out for share, (out, _, _) in zip(shares, parts, strict=True))
    return out / sum(share * total for share, (_, _, total) in zip(shares, parts, strict=True))[..., None]


def partial_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, count: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention of queries [X, K, J, H] over the first slots of their own keys and values [X, K, S, H].

    Args:
      count: [X] int32, how many slots count; those beyond are not read. 0 gives sums of nothing: zeros.

    Returns:
      In float32, all over the slots that count: sums of values, each weighted by e to its score less the largest
      [X, K, J, H]; the largest score [X, K, J], −1e30 of none; sums of weights [X, K, J].
    """
    x, heads, queries, head_dim = q.shape
    block = max(_TILE, min(_MOST_SLOTS, _BLOCK_BYTES // (head_dim * k.dtype.itemsize)))
    # Blocks of queries and slots may reach beyond what there is: neither is read or written there.
    tile = max(_TILE, min(_MOST_QUERIES, pl.next_power_of_2(queries)))
    slots = pl.cdiv(k.shape[2], block) * block
    of_query = pl.BlockSpec((None, None, tile), lambda i, head, part: (i, head, part))
    of_queries = pl.BlockSpec((None, None, tile, head_dim), lambda i, head, part: (i, head, part, 0))
    of_slots = pl.BlockSpec((None, None, slots, head_dim), lambda i, head, part: (i, head, 0, 0))
    return pl.pallas_call(
        functools.partial(_kernel, queries=queries, block=block),
        grid=(x, heads, pl.cdiv(queries, tile)),
        in_specs=[of_queries, of_slots, of_slots, pl.BlockSpec((None,), lambda i, head, part: (i,))],
        out_specs=(of_queries, of_query, of_query),
        out_shape=tuple(jax.ShapeDtypeStruct(q.shape[:n], jnp.float32) for n in (4, 3, 3)),
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
        name="attention",
    )(q, k, v, count)


def _kernel(q_ref, k_ref, v_ref, count_ref, out_ref, top_ref, total_ref, *, queries: int, block: int) -> None:
    """One program: some of the queries [J, H] of one head over its keys and values [S, H]."""
    tile, head_dim = q_ref.shape
    count, is_query = count_ref[()], pl.program_id(2) * tile + jnp.arange(tile) < queries
    q = triton.load(q_ref.at[:, :], mask=is_query[:, None], other=0)
    # Tensor cores would cut float32 to 11 bits.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    def product(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
        over = (((1,), (axis,)), ((), ()))
        return jax.lax.dot_general(a, b, over, precision=precision, preferred_element_type=jnp.float32)

    def add_block(i: jax.Array, sums: tuple) -> tuple:
        out, top, total = sums
        counts = i * block + jnp.arange(block) < count
        slots = pl.ds(i * block, block)
        k = triton.load(k_ref.at[slots, :], mask=counts[:, None], other=0)
        score = jnp.where(counts[None, :], product(q, k, 1) * head_dim**-0.5, _NONE)  # [J, block]
        higher = jnp.maximum(top, jnp.max(score, axis=1))
        weight, shrink = jnp.exp(score - higher[:, None]), jnp.exp(top - higher)
        v = triton.load(v_ref.at[slots, :], mask=counts[:, None], other=0)
        out = out * shrink[:, None] + product(weight.astype(v.dtype), v, 0)
        return out, higher, total * shrink + jnp.sum(weight, axis=1)

    none = jnp.zeros((tile, head_dim), jnp.float32), jnp.full(tile, _NONE, jnp.float32), jnp.zeros(tile, jnp.float32)
    out, top, total = jax.lax.fori_loop(0, pl.cdiv(count, block), add_block, none)
    triton.store(out_ref.at[:, :], out, mask=is_query[:, None])
    triton.store(top_ref.at[:], top, mask=is_query)
    triton.store(total_ref.at[:], total, mask=is_query)
