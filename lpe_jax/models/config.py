"""A Qwen3 architecture as its checkpoint's own config.json describes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lpe_jax.errors import CheckpointError
from lpe_jax.models.outside import read_json, shown

# Fields that must be absent or have this value: anything else is arithmetic this module does not do.
_UNSUPPORTED_UNLESS = {
    "attention_bias": (None, False),
    "hidden_act": (None, "silu"),
    "use_sliding_window": (None, False),
    "quantization_config": (None,),
}
# Above any model there is: the names of a config's tensors are made in memory before a weight has been seen.
_MOST_LAYERS, _MOST = 1000, 2**31 - 1
# What float32 holds, as constants are computed with in it.
_FLOATS = (1e-37, 1e38)


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

    @property
    def constants(self) -> dict[str, float]:
        """What enters the arithmetic and does not show in the weights: models of equal weights may differ in it."""
        return {"rms_norm_eps": float(self.rms_norm_eps), "rope_theta": float(self.rope_theta)}


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
        found = shown(architectures)
        raise CheckpointError(f'{path}: architectures is {found}, only ["Qwen3ForCausalLM"] can be loaded')
    for field, allowed in _UNSUPPORTED_UNLESS.items():
        if raw.get(field) not in allowed:
            raise CheckpointError(f"{path}: {field} = {shown(raw[field])} is not supported, only {allowed[-1]!r}")
    try:
        config = Qwen3Config(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=_head_dim(raw),
            rope_theta=_rope_theta(raw, path),
            rms_norm_eps=raw["rms_norm_eps"],
            tie_word_embeddings=raw["tie_word_embeddings"],
            max_position_embeddings=raw["max_position_embeddings"],
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]!r} is missing") from None
    _check_types(config, path)
    return config


def _head_dim(raw: dict[str, Any]) -> Any:
    """Where a config does not say, transformers takes what divides the hidden size."""
    if (size := raw.get("head_dim")) is not None:
        return size
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    return hidden // heads if type(hidden) is type(heads) is int and heads > 0 else None


def _check_types(config: Qwen3Config, path: Path) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "bool":
            valid = isinstance(value, bool)
        elif field.type == "int":
            most = _MOST_LAYERS if field.name == "num_layers" else _MOST
            valid = type(value) is int and 0 < value <= most
        else:
            valid = type(value) in (int, float) and _FLOATS[0] < value < _FLOATS[1]
        if not valid:
            raise CheckpointError(f"{path}: {field.name} = {shown(value)} is not a valid {field.type}")
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            f"{path}: {config.num_heads} query heads cannot share {config.num_kv_heads} key-value heads evenly"
        )
    if config.head_dim % 2:
        raise CheckpointError(f"{path}: head_dim = {config.head_dim} is odd; rotary embeddings need pairs")


def _rope_theta(raw: dict[str, Any], path: Path) -> float:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{path}: the rotary settings {shown(rope)} are not an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"{path}: rope type {shown(kind)} is not supported, only 'default'")
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise CheckpointError(f"{path}: neither rope_theta nor rope_parameters.rope_theta is there")
    return theta


def read_eos_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The tokens that end a response: generation_config.json's, else config.json's.

    Raises:
      CheckpointError: neither names any, or one that is no row of the embedding.
    """
    for name in ("generation_config.json", "config.json"):
        if not (folder / name).exists():
            continue
        ids = read_json(folder / name).get("eos_token_id")
        ids = ids if isinstance(ids, list) else [ids]
        if ids and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            if max(ids) >= vocab_size:
                raise CheckpointError(
                    f"{folder / name}: eos_token_id {shown(max(ids))} is beyond the {vocab_size} rows of the embedding"
                )
            return tuple(sorted(set(ids)))
    raise CheckpointError(f"{folder}: neither generation_config.json nor config.json names an eos_token_id")
