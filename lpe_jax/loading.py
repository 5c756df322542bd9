"""From two checkpoint names to everything a sampler needs, and the facts that identify what was loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AxisType, Mesh

from lpe_jax.errors import PairError, UserError
from lpe_jax.machine import cores
from lpe_jax.models.checkpoint import open_checkpoint, verified
from lpe_jax.models.config import read_eos_ids
from lpe_jax.models.pair import Pair, check_same_shape, load_pair
from lpe_jax.models.sharing import find_sharing
from lpe_jax.models.weights import DTYPES, dtype_of
from lpe_jax.prompts import chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Fewer are not worth a core.
_ROWS_PER_CORE = 16


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A pair, the tokenizer both read with (the original's), and what was found while loading.

    Attributes:
      identity: hashes of weights and tokenizer, the dtype and the pair mode: what a run's settings must hold.
      notes: remarks for the user, one sentence each.
    """

    pair: Pair
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    notes: tuple[str, ...]

    def text(self, tokens: Sequence[int]) -> str:
        """What a judge reads of a response."""
        return chat.decode_text(self.tokenizer, tokens, self.pair.eos_ids)


def load(
    original: str, variant: str, *, dtype: str = "auto", mesh: Mesh | None = None, pair_mode: str = "auto"
) -> Loaded:
    """Loads original and variant, local folders or hub ids, and refuses two that do not belong together.

    Args:
      dtype: "float32", "bfloat16" or "float16"; "auto" is float32 on CPU and bfloat16 elsewhere.
      pair_mode: what is kept once, see lpe_jax.models.sharing.find_sharing.

    Raises:
      CheckpointError: one of them cannot be loaded.
      PairError: their tokenizers or shapes differ, or they cannot be kept as pair_mode says.
    """
    dtype = dtype_of(dtype)
    opened = [open_checkpoint(source) for source in (original, variant)]
    check_same_shape(*opened)
    tokenizers = [chat.load_tokenizer(checkpoint.folder) for checkpoint in opened]
    if difference := chat.tokenizer_difference(*tokenizers):
        raise PairError(f"{original} and {variant} cannot be mixed, because {difference}")
    tokenizer, config = tokenizers[0], opened[0].config
    if len(tokenizer) > config.vocab_size:
        raise PairError(
            f"the tokenizer of {original} has {len(tokenizer)} entries, more than the {config.vocab_size} rows of its "
            "embedding; it belongs to another checkpoint"
        )
    eos = [read_eos_ids(checkpoint.folder) for checkpoint in opened]
    checkpoints = [verified(checkpoint, DTYPES[dtype]) for checkpoint in opened]
    notes = []
    if difference := chat.template_difference(*tokenizers):
        notes.append(difference)
    if eos[0] != eos[1]:
        notes.append(f"end-of-sequence ids differ ({eos[0]} and {eos[1]}); the original's are used for both")
    sharing = find_sharing(*checkpoints, pair_mode, DTYPES[dtype])
    pair = load_pair(
        *checkpoints, num_tokens=len(tokenizer), eos_ids=eos[0], dtype=DTYPES[dtype], mesh=mesh, sharing=sharing
    )
    notes.append(sharing.why)
    if checkpoints[0].fingerprint == checkpoints[1].fingerprint:
        notes.append("original and variant have identical weights: every alpha is the same model")
    identity = {
        "original_weights": checkpoints[0].fingerprint,
        "variant_weights": checkpoints[1].fingerprint,
        "tokenizer": chat.fingerprint(tokenizer),
        "eos_ids": list(pair.eos_ids),
        "dtype": dtype,
        "pair_mode": sharing.mode,
    }
    return Loaded(pair, tokenizer, identity, tuple(notes))


def checkpoint_stamp(source: str) -> list[list[Any]] | None:
    """Name, size and time of a local checkpoint's files: cheap to take, and another after any change.

    None for a hub id, whose files are found only by asking the hub.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja", ".txt"))
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def split_cpu(rows: int) -> None:
    """Lets JAX see several cores of a CPU as a device each, as many as can share rows evenly; too late once JAX runs.
    Another number that was asked for stays, and processes that share a run take one device each: they share the cores.

    XLA takes one core for the small operations of a tiny model, whatever there are. Devices that split the rows draw
    the same rollouts side by side. For larger models it would be a loss: each device keeps weights of its own, and XLA
    splits the products among cores by itself.
    """
    asked = jax.config.jax_num_cpu_devices >= 0 or jax.distributed.is_initialized()
    if asked or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    most = min(cores(), rows // _ROWS_PER_CORE)
    # JAX refuses once it runs; then there are the devices that there are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", next((n for n in range(most, 0, -1) if rows % n == 0), 1))


def make_mesh(model_parallel: int, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """Devices as ("data", "model"), by default all of this process; None when there is only one.

    Raises:
      UserError: the devices do not divide.
    """
    devices = jax.local_devices() if devices is None else devices
    count = len(devices)
    if model_parallel < 1 or count % model_parallel:
        raise UserError(f"--model_parallel={model_parallel} does not divide the {count} devices there are")
    if count == 1:
        return None
    # Written out because Explicit axes, the default, refuse a lookup in a sharded embedding.
    shape = count // model_parallel, model_parallel
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
