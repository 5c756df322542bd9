"""A Qwen3 architecture as its checkpoint's own config.json describes it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lpe_jax.errors import CheckpointError

# Fields that must be absent or have this value: anything else is arithmetic this module does not do.
_UNSUPPORTED_UNLESS = {
    "attention_bias": (None, False),
    "hidden_act": (None, "silu"),
    "use_sliding_window": (None, False),
    "quantization_config": (None,),
}


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Shapes and constants of a dense Qwen3; the letters are the legend of lpe_jax/models/qwen3.py."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int

    @property
    def num_params(self) -> int:
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size + 2 * self.head_dim
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * (layer + norms) + embeddings + self.hidden_size


def read_config(folder: Path) -> Qwen3Config:
    """Reads config.json of a checkpoint folder.

    Both spellings of the rotary base are accepted: `rope_theta` (transformers 4) and `rope_parameters`
    (transformers 5). Nothing is guessed: a missing field is an error, because a wrong constant gives a model
    that runs and is wrong.

    Raises:
      CheckpointError: no config.json, not JSON, not Qwen3ForCausalLM, or an option this code does not compute.
    """
    path = folder / "config.json"
    raw = read_json(path)
    architectures = raw.get("architectures")
    if architectures != ["Qwen3ForCausalLM"]:
        raise CheckpointError(f'{path}: architectures is {architectures}, only ["Qwen3ForCausalLM"] can be loaded')
    for field, allowed in _UNSUPPORTED_UNLESS.items():
        if raw.get(field) not in allowed:
            raise CheckpointError(f"{path}: {field} = {raw[field]!r} is not supported, only {allowed[-1]!r}")
    try:
        config = Qwen3Config(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            rope_theta=_rope_theta(raw, path),
            rms_norm_eps=raw["rms_norm_eps"],
            tie_word_embeddings=raw["tie_word_embeddings"],
            max_position_embeddings=raw["max_position_embeddings"],
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]!r} is missing") from None
    _check_types(config, path)
    return config


def _check_types(config: Qwen3Config, path: Path) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "bool":
            valid = isinstance(value, bool)
        else:
            kinds = (int,) if field.type == "int" else (int, float)
            valid = isinstance(value, kinds) and not isinstance(value, bool) and value > 0
        if not valid:
            raise CheckpointError(f"{path}: {field.name} = {value!r} is not a valid {field.type}")
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            f"{path}: {config.num_heads} query heads cannot share {config.num_kv_heads} key-value heads evenly"
        )
    if config.head_dim % 2:
        raise CheckpointError(f"{path}: head_dim = {config.head_dim} is odd; rotary embeddings need pairs")


def _rope_theta(raw: dict[str, Any], path: Path) -> float:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{path}: the rotary settings {rope!r} are not an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"{path}: rope type {kind!r} is not supported, only 'default'")
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise CheckpointError(f"{path}: neither rope_theta nor rope_parameters.rope_theta is there")
    return theta


def read_eos_ids(folder: Path) -> tuple[int, ...]:
    """The tokens that end a response: generation_config.json's, else config.json's.

    Raises:
      CheckpointError: neither names any.
    """
    for name in ("generation_config.json", "config.json"):
        if not (folder / name).exists():
            continue
        ids = read_json(folder / name).get("eos_token_id")
        ids = ids if isinstance(ids, list) else [ids]
        if ids and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            return tuple(sorted(set(ids)))
    raise CheckpointError(f"{folder}: neither generation_config.json nor config.json names an eos_token_id")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a missing, unreadable or non-object file is a CheckpointError that names it."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds {type(raw).__name__}, not a JSON object")
    return raw
