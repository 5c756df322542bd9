"""What one step of the decode computes and moves, counted by hand.

A compiler's own count takes the body of a loop once, and knows nothing of what stays in the chip. Letters as in
lpe_jax/models/qwen3.py and lpe_jax/decoding/cache.py; A alphas of a grid, b bytes of a number, all of one device, whose
share of heads, feed-forward and vocabulary is 1 / model_parallel:

    matrices   2·M·B·(L·(2·D·H·(N + K) + 3·D·F) + V·D) operations; every weight once
    attention  4·M·B·N·H·(P + w)·L operations; 2·b·L·M·K·H·(G·P + B·(w + 1)) bytes
    logits     4·M·B·V·(3 + 2·A) bytes: written once, read twice for the token, and twice more for each alpha

w are the slots of a response that are read: XLA's products read all W, whatever counts of them, and the kernel those up
to a row's age, (T + 1) / 2 of T tokens on average where all rollouts are as long; the P of a prompt are taken as full.
Left out: what passes between layers and what attention keeps between its parts, elementwise work, collectives, prefill
(once a prompt), and the host. Where both have one embedding, the first layer's projections are the same for
both models and computed once; they are counted twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.layout import leaves_of
from lpe_jax.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """One part of a step on one device: operations of matrix products, and bytes from or to memory."""

    flops: float
    bytes: float

    def seconds(self, chip: Chip, itemsize: int) -> tuple[float, float]:
        """Time of its matrix products and time of its memory traffic, at the chip's peaks."""
        return self.flops / (chip.flops if itemsize == 2 else chip.flops32), self.bytes / chip.bandwidth


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the rows of one device, part by part."""

    parts: dict[str, Work]
    rows: int
    itemsize: int

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.parts.values())

    @property
    def bytes(self) -> float:
        return sum(work.bytes for work in self.parts.values())

    def seconds(self, chip: Chip) -> float:
        """The parts one after the other, each as long as the longer of its products and its memory traffic."""
        return sum(max(work.seconds(chip, self.itemsize)) for work in self.parts.values())


def count_step(
    config: Qwen3Config,
    *,
    models: int,
    weight_bytes: int,
    rows: int,
    groups: int,
    prompt_slots: int,
    response_slots: float,
    itemsize: int,
    grid: int = 0,
    model_parallel: int = 1,
) -> Step:
    """One step on one device.

    Args:
      models: 2 for the pair, 1 for the original alone.
      weight_bytes: of all parameters that are read, on all devices that share a copy; see `weights_read`.
      rows, groups: of the device.
      response_slots: that are read of a row, on average.
      grid: alphas at which log p is taken besides.
    """
    c = config
    layer = 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads) + 3 * c.hidden_size * c.intermediate_size
    matrices = 2 * models * rows * (c.num_layers * layer + c.vocab_size * c.hidden_size)
    scored = prompt_slots + response_slots
    attention = 4 * models * rows * c.num_heads * c.head_dim * scored * c.num_layers
    slots = groups * prompt_slots + rows * (response_slots + 1)
    kv = 2 * itemsize * c.num_layers * models * c.num_kv_heads * c.head_dim * slots
    logits = 4 * models * rows * c.vocab_size * (3 + 2 * grid)
    parts = {"matrices": (matrices, weight_bytes), "attention": (attention, kv), "logits": (0, logits)}
    shares = {name: Work(*(x / model_parallel for x in counted)) for name, counted in parts.items()}
    return Step(shares, rows, itemsize)


def weights_read(config: Qwen3Config, doubled: Callable[[str], bool], itemsize: int) -> int:
    """Bytes of the parameters that a step reads, on all devices that share a copy.

    Args:
      doubled: whether both models' own parameter of this name is read.

    A tied embedding is read whole, by the head; of one that is not, the rows that are looked up are left out.
    """
    read = (leaf for leaf in leaves_of(config) if config.tie_word_embeddings or leaf.name != "embed_tokens")
    return sum(math.prod(leaf.shape(config)) * (2 if doubled(leaf.name) else 1) for leaf in read) * itemsize
