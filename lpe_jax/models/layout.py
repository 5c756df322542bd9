"""The one table of parameters: Hugging Face name, axes by the legend's letters, and how each axis is sharded."""

from __future__ import annotations

import dataclasses
import math

from jax.sharding import PartitionSpec

from lpe_jax.models.config import Qwen3Config

# Letters (lpe_jax/models/qwen3.py) whose axes are split over the mesh axis "model": heads, feed-forward, vocabulary.
SHARDED_LETTERS = "NKFV"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter of the Flax module.

    Attributes:
      name: attribute path in the module, as "layers.0.q_proj".
      hf_name: Hugging Face tensor name.
      axes: the letters of each axis; "NH" is one axis of N · H.
    """

    name: str
    hf_name: str
    axes: tuple[str, ...]

    def shape(self, config: Qwen3Config) -> tuple[int, ...]:
        """Shape in a checkpoint and in the module."""
        size = letter_sizes(config)
        return tuple(math.prod(size[letter] for letter in letters) for letters in self.axes)

    def spec(self) -> PartitionSpec:
        """How it is laid over a mesh with axes ("data", "model"): of "NH", whole heads to each device."""
        return PartitionSpec(*("model" if letters[0] in SHARDED_LETTERS else None for letters in self.axes))


def letter_sizes(config: Qwen3Config) -> dict[str, int]:
    """The size of each letter of the legend that a parameter has."""
    return {
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "H": config.head_dim,
        "K": config.num_kv_heads,
        "N": config.num_heads,
        "V": config.vocab_size,
    }


_BESIDE_LAYERS = (
    Leaf("embed_tokens", "model.embed_tokens.weight", ("V", "D")),
    Leaf("norm", "model.norm.weight", ("D",)),
)
HEAD = Leaf("lm_head", "lm_head.weight", ("V", "D"))
# Of every layer: name in the module, name in a checkpoint, axes.
_LAYER = (
    ("input_norm", "input_layernorm", ("D",)),
    ("q_proj", "self_attn.q_proj", ("NH", "D")),
    ("k_proj", "self_attn.k_proj", ("KH", "D")),
    ("v_proj", "self_attn.v_proj", ("KH", "D")),
    ("q_norm", "self_attn.q_norm", ("H",)),
    ("k_norm", "self_attn.k_norm", ("H",)),
    ("o_proj", "self_attn.o_proj", ("D", "NH")),
    ("post_attention_norm", "post_attention_layernorm", ("D",)),
    ("gate_proj", "mlp.gate_proj", ("F", "D")),
    ("up_proj", "mlp.up_proj", ("F", "D")),
    ("down_proj", "mlp.down_proj", ("D", "F")),
)

# By the last part of its name, the attribute beside a matrix that holds its edit (`Edit` in models/qwen3.py).
EDITS = {"embed_tokens": "embed_edit", "lm_head": "head_edit", "o_proj": "o_edit", "down_proj": "down_edit"}


def kind_of(name: str) -> str:
    """The last part of a leaf's name: what it is in its layer."""
    return name.rsplit(".", 1)[-1]


def edit_of(name: str) -> str:
    """ "layers.0.o_edit" for "layers.0.o_proj"."""
    return name[: -len(kind_of(name))] + EDITS[kind_of(name)]


def matrix_of(edit: str) -> str:
    """ "layers.0.o_proj" for "layers.0.o_edit"."""
    kind = kind_of(edit)
    return edit[: -len(kind)] + next(matrix for matrix, name in EDITS.items() if name == kind)


def leaves_of(config: Qwen3Config) -> list[Leaf]:
    """The parameters a module of this config has; a tied head is the embedding."""
    layers = [
        Leaf(f"layers.{i}.{name}", f"model.layers.{i}.{hf_name}.weight", axes)
        for i in range(config.num_layers)
        for name, hf_name, axes in _LAYER
    ]
    return [*_BESIDE_LAYERS, *([] if config.tie_word_embeddings else [HEAD]), *layers]
