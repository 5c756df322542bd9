"""Hugging Face checkpoints on disk: where they are, what tensors they hold, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lpe_jax.errors import CheckpointError
from lpe_jax.models.config import Qwen3Config, read_config
from lpe_jax.models.header import Stored, read_header
from lpe_jax.models.index import INDEX, weight_files, weight_map
from lpe_jax.models.layout import HEAD, Leaf, leaves_of
from lpe_jax.models.origin import NOWHERE, Origin, origin_of
from lpe_jax.models.outside import named, one_line, plain_file, shown

_LOADABLE = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
# Read this much at a time: it bounds what loading needs on the host beyond the loaded arrays themselves.
CHUNK_BYTES = 16 << 20
_NAMED_AT_MOST = 20


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder whose tensors have been listed but not read.

    Attributes:
      files: by a tensor's Hugging Face name, the safetensors file that holds it.
      stored: by name, what it is there.
      stamps: by file, its size and the time of its last change when its tensors were listed.
      origin: what the hub says of the folder's files, where they came from it.
      digests: filled by `verified`: by name, the sha256 of a tensor's values in the dtype they will be loaded in.
        Equal digests mean equal weights.
    """

    source: str
    folder: Path
    config: Qwen3Config
    files: dict[str, Path]
    stored: dict[str, Stored]
    stamps: dict[Path, tuple[int, int]]
    origin: Origin = NOWHERE
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over every tensor's name and digest."""
        return fingerprint_of(self.digests)

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold its tensors, each once, by name."""
        return sorted(self.stamps)


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """What stands for a checkpoint's weights: sha256 over every tensor's name and digest."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def locate(source: str) -> Path:
    """A local folder as it is, or a hub id `org/name[@revision]` downloaded to the hub's own cache.

    Raises:
      CheckpointError: no such folder, or the hub does not give it.
    """
    return _located(source, ["*.json", "*.safetensors", "*.txt", "*.jinja"])


def open_config(source: str) -> Qwen3Config:
    """The config of a checkpoint and nothing more: of a folder, its config.json itself, or a hub id.

    Raises:
      CheckpointError: it is not there, or cannot be used.
    """
    path = Path(source).expanduser()
    named = path.name == "config.json" and not path.is_dir()
    return read_config(path.parent if named else _located(source, ["config.json"]))


def local_folder(source: str) -> Path | None:
    """The folder of a source on this machine; None of what can only be a hub id.

    Raises:
      CheckpointError: it is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.partition("@")[0].count("/") != 1:
        what = "is not a folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {source!r} {what}; give a local folder or a hub id org/name[@revision]")
    return None


def _located(source: str, patterns: list[str]) -> Path:
    """The folder of a source, with what these patterns name."""
    if (folder := local_folder(source)) is not None:
        return folder
    from huggingface_hub import snapshot_download

    repo, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {source!r} is no local folder, and the hub did not give it: {one_line(error)}"
        ) from None


def open_checkpoint(source: str) -> Checkpoint:
    """Locates a checkpoint, reads its config and lists its tensors; no tensor data is read.

    Raises:
      CheckpointError: a missing or unreadable file, or pickle weights, which are refused because loading them can
        run code.
    """
    folder = locate(source)
    config, stored = read_config(folder), {}
    paths = weight_files(folder)
    files: dict[str, Path] = {}
    stamps = {path: _stamp(path) for path in paths}
    for path in paths:
        header = read_header(path)
        with _opened(path) as file:
            same = sorted(file.keys()) == sorted(header)
        if not same:
            raise CheckpointError(f"{path} is truncated or damaged: its header has two readings; download it again")
        if twice := [name for name in header if name in files]:
            at = files[twice[0]].name
            raise CheckpointError(f"tensor {named(twice[0])} is in both {at} and {path.name} of {folder}")
        files |= dict.fromkeys(header, path)
        stored |= header
    if (folder / INDEX).exists():
        listed = weight_map(folder)
        wrong = [n for n, f in listed.items() if n not in files or files[n].name != f]
        wrong += [n for n in files if n not in listed]
        if wrong:
            raise CheckpointError(
                f"{folder / INDEX} and the files disagree about where to find {_listed(map(named, wrong))}"
            )
    return Checkpoint(source, folder, config, files, stored, stamps, origin_of(folder))


def _stamp(path: Path) -> tuple[int, int]:
    found = plain_file(path)
    return found.st_size, found.st_mtime_ns


def check_unchanged(checkpoint: Checkpoint) -> None:
    """To be asked when all has been read: what was verified and what was loaded are read one after the other.

    Raises:
      CheckpointError: a file of its weights is not the one that was opened.
    """
    for path, stamp in checkpoint.stamps.items():
        if _stamp(path) != stamp:
            raise CheckpointError(f"{path} was changed while it was loaded; start again when it is complete")


class _opened:
    """safe_open with every way a file can be damaged turned into a CheckpointError that names it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        try:
            self.file = safe_open(self.path, framework="numpy").__enter__()
        except (SafetensorError, OSError, ValueError) as error:
            reason = one_line(error)
            raise CheckpointError(f"{self.path} is truncated or damaged: {reason}; download it again") from None
        return self.file

    def __exit__(self, *exc):
        self.file.__exit__(*exc)


def stored_dtype(checkpoint: Checkpoint, name: str) -> np.dtype:
    """What a verified tensor's values are stored in."""
    return _LOADABLE[checkpoint.stored[name].dtype]


def read_chunks(path: Path, name: str, dtype: np.dtype, window: tuple[slice, ...] = ()) -> Iterator[np.ndarray]:
    """A tensor's values in dtype, at most CHUNK_BYTES at a time along its first axis; window restricts it."""
    with _opened(path) as file:
        shape = file.get_slice(name).get_shape()
    window = window or tuple(slice(0, n) for n in shape)
    first, rest = window[0], window[1:]
    row_bytes = max(1, 4 * int(np.prod([s.stop - s.start for s in rest], dtype=np.int64)))
    rows = max(1, CHUNK_BYTES // row_bytes)
    for begin in range(first.start, first.stop, rows):
        # Opened anew for each chunk: the file is mapped while it is open, and what was read stays resident.
        with _opened(path) as file:
            chunk = file.get_slice(name)[(slice(begin, min(begin + rows, first.stop)), *rest)]
        yield chunk.astype(dtype, copy=False)


def check_tensors(checkpoint: Checkpoint) -> None:
    """`verified` without looking at values.

    Raises:
      CheckpointError: one sentence naming all that is unknown, missing, or of the wrong shape or dtype.
    """
    if problems := list(_problems(checkpoint).values()):
        raise _unloadable(checkpoint, problems)


def verified(checkpoint: Checkpoint, dtype: jnp.dtype) -> Checkpoint:
    """Checks every tensor against the config, in both directions, and fills in the digests.

    Args:
      dtype: what the weights will be loaded in; digests are of the values in it.

    Raises:
      CheckpointError: one sentence naming all that is unknown, missing, of the wrong shape or dtype, or not finite.
        A tied checkpoint may also carry lm_head.weight if it equals the embedding.
    """
    problems, digests = _problems(checkpoint), {}
    for name, path in checkpoint.files.items():
        if name in problems:
            continue
        digest, finite = hashlib.sha256(), True
        for chunk in read_chunks(path, name, np.dtype(dtype)):
            finite &= bool(np.isfinite(chunk.astype(np.float32, copy=False)).all())
            digest.update(np.ascontiguousarray(chunk).view(np.uint8).data)
        digests[name] = digest.hexdigest()
        if not finite:
            problems[name] = f"{name} has values that are NaN or infinite"
    if checkpoint.config.tie_word_embeddings:
        head = digests.pop(HEAD.hf_name, None)
        if head is not None and head != digests.get("model.embed_tokens.weight"):
            problems[HEAD.hf_name] = (
                f"{HEAD.hf_name} differs from model.embed_tokens.weight although config.json ties them"
            )
    if problems:
        raise _unloadable(checkpoint, list(problems.values()))
    return dataclasses.replace(checkpoint, digests=digests)


def _problems(checkpoint: Checkpoint) -> dict[str, str]:
    """What is wrong with a checkpoint's tensors, by name, as far as its headers tell."""
    config, problems = checkpoint.config, {}
    expected = {leaf.hf_name: leaf for leaf in leaves_of(config)}
    # A tied head may be there too.
    allowed = expected | {HEAD.hf_name: HEAD}
    for name in checkpoint.stored:
        if name not in expected and not (name == HEAD.hf_name and config.tie_word_embeddings):
            problems[name] = f"{named(name)} is unknown"
    problems |= {name: f"{name} is missing" for name in expected if name not in checkpoint.stored}
    for name, stored in checkpoint.stored.items():
        if name in problems:
            continue
        wanted = allowed[name].shape(config)
        if stored.shape != wanted:
            problems[name] = f"{name} has shape {shown(list(stored.shape))} instead of {list(wanted)}"
        elif stored.dtype not in _LOADABLE:
            problems[name] = f"{name} has dtype {named(stored.dtype)} instead of one of {', '.join(_LOADABLE)}"
    return problems


def _unloadable(checkpoint: Checkpoint, problems: list[str]) -> CheckpointError:
    return CheckpointError(f"{checkpoint.folder} cannot be loaded: {_listed(problems, '; ')}")


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    more = len(names) - _NAMED_AT_MOST
    return separator.join(names[:_NAMED_AT_MOST]) + (f"{separator}and {more} more" if more > 0 else "")


def save_checkpoint(config: Qwen3Config, leaves: dict[str, np.ndarray], folder: Path) -> None:
    """Writes config.json and model.safetensors as transformers would.

    Args:
      leaves: arrays by leaf name (lpe_jax/models/layout.py).
      folder: is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for leaf in leaves_of(config):
        tensors[leaf.hf_name] = np.ascontiguousarray(np.asarray(leaves[leaf.name]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = np.asarray(leaves["embed_tokens"]).dtype.name
    (folder / "config.json").write_text(json.dumps(config_json(config, dtype), indent=2) + "\n")


def config_json(config: Qwen3Config, dtype: str) -> dict:
    """What config.json says of a checkpoint of this config, as transformers 4 and 5 read it."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


__all__ = [
    "Checkpoint",
    "Leaf",
    "check_tensors",
    "check_unchanged",
    "fingerprint_of",
    "locate",
    "open_checkpoint",
    "open_config",
    "read_chunks",
    "save_checkpoint",
    "stored_dtype",
    "verified",
]
