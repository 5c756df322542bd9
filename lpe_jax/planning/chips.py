"""Facts of the chips that can be planned for. JAX is not imported here: it must find its environment set first."""

from __future__ import annotations

import dataclasses

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Cuda:
    """What XLA asks of a GPU beside its memory, as NVIDIA's CUDA programming guide and white papers give it.

    Attributes:
      major, minor: compute capability.
      accelerated: whether instructions of this generation alone are used ("9.0a").
      cores: multiprocessors.
      shared, shared_per_block: bytes of shared memory of a multiprocessor, and what one block may have of them.
      l2: bytes.
      clock: GHz, at most.
    """

    major: int
    minor: int
    accelerated: bool
    cores: int
    shared: int
    shared_per_block: int
    l2: int
    clock: float


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      memory: bytes that a program can have: of a TPU what its compiler allows, of a GPU what its driver shows.
      pooled: the share of it that JAX takes unless told otherwise.
      bandwidth: bytes per second between memory and chip.
      flops: dense bfloat16 operations per second; a multiplication and an addition are two.
      flops32: the same in float32, as programs here ask for it; a TPU takes six bfloat16 products for one.
      source: where bandwidth and flops are from.
      cuda: None for a TPU.
    """

    name: str
    memory: int
    pooled: float
    bandwidth: float
    flops: float
    flops32: float
    source: str
    cuda: Cuda | None = None

    @property
    def platform(self) -> str:
        """As JAX calls it."""
        return "tpu" if self.cuda is None else "cuda"


_CLOUD = "docs.cloud.google.com/tpu/docs/"
_NVIDIA = "nvidia.com, data sheet of the {} (SXM), dense"
_HOPPER = Cuda(9, 0, True, 132, 228 << 10, 227 << 10, 50 << 20, 1.98)
_AMPERE = Cuda(8, 0, False, 108, 164 << 10, 163 << 10, 40 << 20, 1.41)

# A TPU's memory is what libtpu 0.0.42.1 says is available; tests ask it again.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", int(15.75 * GIB), 1.0, 819e9, 197e12, 197e12 / 6, _CLOUD + "v5e"),
        Chip("v5p", int(95.74 * GIB), 1.0, 2765e9, 459e12, 459e12 / 6, _CLOUD + "v5p"),
        Chip("v6e", int(31.25 * GIB), 1.0, 1638e9, 918e12, 918e12 / 6, _CLOUD + "v6e"),
        Chip("a100", 79 * GIB, 0.75, 2.039e12, 312e12, 19.5e12, _NVIDIA.format("A100 80GB"), _AMPERE),
        Chip("h100", 79 * GIB, 0.75, 3.35e12, 989e12, 67e12, _NVIDIA.format("H100"), _HOPPER),
        Chip("h200", 139 * GIB, 0.75, 4.8e12, 989e12, 67e12, _NVIDIA.format("H200"), _HOPPER),
    )
}


def in_words(number: int) -> str:
    """Bytes as "1.25 GiB", or "3.1 MiB" where they are fewer."""
    return f"{number / GIB:,.2f} GiB" if number >= GIB // 10 else f"{number / 2**20:,.1f} MiB"
