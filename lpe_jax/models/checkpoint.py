"""Hugging Face checkpoints on disk: where they are, what tensors they hold, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lpe_jax.errors import CheckpointError
from lpe_jax.models.config import Qwen3Config, read_config, read_json
from lpe_jax.models.layout import HEAD, Leaf, leaves_of

_LOADABLE = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Read this much at a time: it bounds what loading needs on the host beyond the loaded arrays themselves.
CHUNK_BYTES = 16 << 20
_NAMED_AT_MOST = 20


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder whose tensors have been listed but not read.

    files maps a tensor's Hugging Face name to the safetensors file that holds it. digests, filled by `verified`,
    maps it to the sha256 of its values in the dtype they will be loaded in: equal digests mean equal weights.
    """

    source: str
    folder: Path
    config: Qwen3Config
    files: dict[str, Path]
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over every tensor's name and digest."""
        return hashlib.sha256(json.dumps(sorted(self.digests.items())).encode()).hexdigest()


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


def _located(source: str, patterns: list[str]) -> Path:
    """The folder of a source, with what these patterns name."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    repo, _, revision = source.partition("@")
    if folder.exists() or source.startswith((".", "/", "~")) or repo.count("/") != 1:
        what = "is not a folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {source!r} {what}; give a local folder or a hub id org/name[@revision]")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"checkpoint {source!r} is no local folder, and the hub did not give it: {reason}"
        ) from None


def open_checkpoint(source: str) -> Checkpoint:
    """Locates a checkpoint, reads its config and lists its tensors; no tensor data is read.

    Raises:
      CheckpointError: a missing or unreadable file, or pickle weights, which are refused because loading them can
        run code.
    """
    folder = locate(source)
    return Checkpoint(source=source, folder=folder, config=read_config(folder), files=_list_tensors(folder))


def _list_tensors(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
            raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
        names = sorted(set(weight_map.values()))
        # The index comes from outside: a file name must not lead out of the folder.
        if escaping := [n for n in names if Path(n).name != n]:
            raise CheckpointError(f"{index} names {escaping[0]!r}, which is not a plain file name in that folder")
        held = {name: folder / name for name in names}
    elif (folder / "model.safetensors").exists():
        weight_map, held = None, {"model.safetensors": folder / "model.safetensors"}
    else:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        if pickles:
            raise CheckpointError(
                f"{folder} holds pickle weights ({pickles[0]}), which can run code when loaded; "
                "convert the checkpoint to safetensors"
            )
        raise CheckpointError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")

    found: dict[str, Path] = {}
    for path in held.values():
        with _opened(path) as file:
            for name in file.keys():
                if name in found:
                    raise CheckpointError(f"tensor {name} is in both {found[name].name} and {path.name} of {folder}")
                found[name] = path
    if weight_map is not None:
        wrong = [n for n, f in weight_map.items() if n not in found or found[n].name != f]
        wrong += [n for n in found if n not in weight_map]
        if wrong:
            raise CheckpointError(f"{index} and the files disagree about where to find {_named(wrong)}")
    return found


class _opened:
    """safe_open with every way a file can be damaged turned into a CheckpointError that names it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        try:
            self.file = safe_open(self.path, framework="numpy").__enter__()
        except FileNotFoundError:
            raise CheckpointError(f"{self.path} does not exist") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} is truncated or damaged: {error}; download it again") from None
        return self.file

    def __exit__(self, *exc):
        self.file.__exit__(*exc)


def stored_dtype(path: Path, name: str) -> np.dtype:
    """What a verified tensor's values are stored in."""
    with _opened(path) as file:
        return _LOADABLE[file.get_slice(name).get_dtype()]


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


def verified(checkpoint: Checkpoint, dtype: jnp.dtype) -> Checkpoint:
    """Checks every tensor against the config, in both directions, and fills in the digests.

    Args:
      dtype: what the weights will be loaded in; digests are of the values in it.

    Raises:
      CheckpointError: one sentence naming all that is unknown, missing, of the wrong shape or dtype, or not finite.
        A tied checkpoint may also carry lm_head.weight if it equals the embedding.
    """
    config, problems, digests = checkpoint.config, [], {}
    expected = {leaf.hf_name: leaf for leaf in leaves_of(config)}
    tied_head = "lm_head.weight" if config.tie_word_embeddings else None
    problems += [f"{n} is unknown" for n in checkpoint.files if n not in expected and n != tied_head]
    problems += [f"{n} is missing" for n in expected if n not in checkpoint.files]
    for name, path in checkpoint.files.items():
        leaf = expected.get(name) or (HEAD if name == tied_head else None)
        if leaf is None:
            continue
        with _opened(path) as file:
            view = file.get_slice(name)
            shape, stored = tuple(view.get_shape()), view.get_dtype()
        wanted = leaf.shape(config)
        if shape != wanted:
            problems.append(f"{name} has shape {list(shape)} instead of {list(wanted)}")
        elif stored not in _LOADABLE:
            problems.append(f"{name} has dtype {stored} instead of one of {', '.join(_LOADABLE)}")
        else:
            digest, finite = hashlib.sha256(), True
            for chunk in read_chunks(path, name, np.dtype(dtype)):
                finite &= bool(np.isfinite(chunk.astype(np.float32, copy=False)).all())
                digest.update(np.ascontiguousarray(chunk).view(np.uint8).data)
            digests[name] = digest.hexdigest()
            if not finite:
                problems.append(f"{name} has values that are NaN or infinite")
    if tied_head in digests and digests[tied_head] != digests.get("model.embed_tokens.weight"):
        problems.append("lm_head.weight differs from model.embed_tokens.weight although config.json ties them")
    digests.pop(tied_head, None)
    if problems:
        raise CheckpointError(f"{checkpoint.folder} cannot be loaded: {_named(problems, '; ')}")
    return dataclasses.replace(checkpoint, digests=digests)


def _named(names: list[str], separator: str = ", ") -> str:
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
    "locate",
    "open_checkpoint",
    "open_config",
    "read_chunks",
    "save_checkpoint",
    "stored_dtype",
    "verified",
]
