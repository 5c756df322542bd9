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
from lpe_jax.models.checkpoint import Checkpoint, check_tensors, check_unchanged, open_checkpoint, verified
from lpe_jax.models.config import read_eos_ids
from lpe_jax.models.origin import NOWHERE, check_origin
from lpe_jax.models.pair import Pair, check_same_shape, load_pair
from lpe_jax.models.sharing import find_sharing
from lpe_jax.models.weights import DTYPES, dtype_of
from lpe_jax.models.weights_cache import Kept, WeightsCache
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
      sources: of original and variant, where their files came from, as far as the hub's own marks on them say.
      sharing: how the pair is kept and what was measured to find that, for the record.
    """

    pair: Pair
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    notes: tuple[str, ...]
    sources: tuple[dict[str, Any], ...] = ()
    sharing: str = ""

    def as_event(self, seconds: float) -> dict[str, Any]:
        """The line of a run's metrics.jsonl that says what was loaded, which took so long."""
        models = list(self.sources)
        return {"event": "loaded", "seconds": round(seconds, 1), "models": models, "sharing": self.sharing}

    def text(self, tokens: Sequence[int]) -> str:
        """What a judge reads of a response."""
        return chat.decode_text(self.tokenizer, tokens, self.pair.eos_ids)


def load(
    original: str,
    variant: str,
    *,
    dtype: str = "auto",
    mesh: Mesh | None = None,
    pair_mode: str = "auto",
    weights_cache: str | None = None,
) -> Loaded:
    """Loads original and variant, local folders or hub ids, and refuses two that do not belong together.

    Args:
      dtype: "float32", "bfloat16" or "float16"; "auto" is float32 on CPU and bfloat16 elsewhere.
      pair_mode: what is kept once, see lpe_jax.models.sharing.find_sharing.
      weights_cache: a folder where pairs are kept as they are used, see lpe_jax.models.weights_cache.

    Raises:
      CheckpointError: one of them cannot be loaded.
      PairError: their tokenizers or shapes differ, or they cannot be kept as pair_mode says.
      UserError: weights_cache cannot be a folder.
    """
    dtype = dtype_of(dtype)
    opened = [open_checkpoint(source) for source in (original, variant)]
    for checkpoint in opened:
        small = [name for name in checkpoint.origin.hashes if checkpoint.folder / name not in checkpoint.stamps]
        check_origin(checkpoint.folder, checkpoint.origin, small)
    check_same_shape(*opened)
    for checkpoint in opened:
        check_tensors(checkpoint)
    tokenizers = [chat.load_tokenizer(checkpoint.folder) for checkpoint in opened]
    if difference := chat.tokenizer_difference(*tokenizers):
        raise PairError(f"{original} and {variant} cannot be mixed, because {difference}")
    tokenizer, config = tokenizers[0], opened[0].config
    num_tokens = chat.number_of_tokens(tokenizer)
    if num_tokens > config.vocab_size:
        raise PairError(
            f"the tokenizer of {original} has {num_tokens} entries, more than the {config.vocab_size} rows of its "
            "embedding; it belongs to another checkpoint"
        )
    eos = [read_eos_ids(checkpoint.folder, config.vocab_size) for checkpoint in opened]
    notes = [_origin_note(name, checkpoint) for name, checkpoint in zip(("original", "variant"), opened, strict=True)]
    if difference := chat.template_difference(*tokenizers):
        notes.append(difference)
    if eos[0] != eos[1]:
        notes.append(f"end-of-sequence ids differ ({eos[0]} and {eos[1]}); the original's are used for both")
    kept = _weights(opened, dtype, pair_mode, weights_cache, notes, num_tokens=num_tokens, eos_ids=eos[0], mesh=mesh)
    if pair_mode == "auto" and kept.mode == "shared" and not all(kept.pair.shared):
        # Twice the memory may be news to whoever has a variant that is called ablated.
        notes.append(kept.why)
    if kept.fingerprints[0] == kept.fingerprints[1]:
        notes.append(
            "warning: original and variant have identical weights, so that every alpha is the same model and there is "
            "nothing to extrapolate; --method=naive counts"
        )
    identity = {
        "original_weights": kept.fingerprints[0],
        "variant_weights": kept.fingerprints[1],
        "constants": config.constants,
        "tokenizer": chat.fingerprint(tokenizer),
        "eos_ids": list(kept.pair.eos_ids),
        "dtype": dtype,
        "pair_mode": kept.mode,
    }
    return Loaded(kept.pair, tokenizer, identity, tuple(filter(None, notes)), tuple(map(_source, opened)), kept.why)


def _weights(
    opened: Sequence[Checkpoint], dtype: str, pair_mode: str, weights_cache: str | None, notes: list[str], **rest: Any
) -> Kept:
    """The pair of two opened checkpoints; what is to be said of it is added to notes."""
    cache = None
    if weights_cache is not None:
        cache = WeightsCache(Path(weights_cache).expanduser(), *opened, dtype, pair_mode)
        if kept := cache.load(**rest):
            notes += cache.notes
            return kept
    for checkpoint in opened:
        check_origin(checkpoint.folder, checkpoint.origin, [path.name for path in checkpoint.stamps])
    checkpoints = [verified(checkpoint, DTYPES[dtype]) for checkpoint in opened]
    sharing = find_sharing(*checkpoints, pair_mode, DTYPES[dtype])
    pair = load_pair(*checkpoints, dtype=DTYPES[dtype], sharing=sharing, **rest)
    for checkpoint in checkpoints:
        check_unchanged(checkpoint)
    if cache is not None:
        cache.keep(pair, *checkpoints, sharing)
        notes += cache.notes
    return Kept(pair, tuple(checkpoint.fingerprint for checkpoint in checkpoints), sharing.mode, sharing.why)


def _origin_note(name: str, checkpoint: Checkpoint) -> str | None:
    """What is known of where a checkpoint came from; None if that is nothing."""
    origin, files = checkpoint.origin, len(checkpoint.stamps)
    if origin == NOWHERE:
        return None
    known = sum(origin.sha256(path.name) is not None for path in checkpoint.stamps)
    return f"{name}: {origin.words()}, whose sha256 is known of {known} of its {files} files of weights"


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as its files' own marks have it, for the record."""
    files = {path.name: checkpoint.origin.sha256(path.name) for path in sorted(checkpoint.stamps)}
    origin = checkpoint.origin
    return {"source": checkpoint.source, "repo": origin.repo, "commit": origin.commit, "sha256": files}


def checkpoint_stamp(source: str) -> list[list[Any]] | None:
    """Name, size and time of a local checkpoint's files: cheap to take, and another after any change.

    None for a hub id, whose files are found only by asking the hub.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    # A link that leads nowhere is left to whoever loads it.
    kinds = ".json", ".safetensors", ".jinja", ".txt"
    files = sorted(p for p in folder.iterdir() if p.suffix in kinds and p.exists())
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
