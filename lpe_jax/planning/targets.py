"""Hardware that is not there, as JAX's ahead-of-time compilation takes it.

JAX starts on the CPU in any case; libtpu, or the CUDA plugin, only compiles. Both come with JAX's own extras.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import TYPE_CHECKING

from lpe_jax.errors import UserError
from lpe_jax.planning.chips import CHIPS, Chip

if TYPE_CHECKING:
    import jax

_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
# What lets both compilers start without their hardware. The names of a host that libtpu would else look up on the
# network do not matter; another process may be using real chips, which this one does not touch.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a program is to run.

    Attributes:
      topology: as asked for.
      chip: None for this machine's CPU, of which nothing is known but that it compiles.
      memory: bytes of a device that a program can have; None for no limit.
      devices: to compile for; those of another machine can do nothing else.
    """

    topology: str
    chip: Chip | None
    memory: int | None
    devices: tuple[jax.Device, ...]


def prepare() -> None:
    """Sets what JAX must find in the environment; to be called before it is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})


def split_topology(topology: str) -> tuple[Chip | None, str]:
    """The chip of "v5e:4x4" or "h200:8" and its arrangement, "4x4" or "8"; (None, "") of "cpu".

    Raises:
      UserError: there is no such chip, or the arrangement is none.
    """
    name, _, arrangement = topology.partition(":")
    if topology == "cpu":
        return None, ""
    if name not in CHIPS:
        raise UserError(f"--topology={topology}: there is no chip {name!r}; known are cpu, {', '.join(CHIPS)}")
    chip = CHIPS[name]
    if chip.cuda is None and not re.fullmatch(r"\d+x\d+(x\d+)?", arrangement):
        example = f"{name}:2x2x1" if name == "v5p" else f"{name}:2x2"
        raise UserError(f"--topology={topology}: a TPU is written with how its chips are arranged, as {example}")
    if chip.cuda is not None and not re.fullmatch(r"([1-9]\d*)?", arrangement):
        raise UserError(f"--topology={topology}: GPUs are written {name} for one, or {name}:8 for eight of a machine")
    return chip, arrangement


def find(topology: str, memory: float | None = None) -> Target:
    """The target of a topology; `prepare` must have been called.

    Args:
      memory: bytes of a device that are taken to be there, instead of the chip's.

    Raises:
      UserError: it does not exist, or what compiles for it is not installed.
    """
    chip, arrangement = split_topology(topology)
    import jax

    if chip is None:
        return Target(topology, None, None if memory is None else int(memory), tuple(jax.devices()))
    from jax.experimental import topologies

    if chip.cuda is None:
        _require(["libtpu"], topology, "lpe_jax[tpu]", "TPU")
        how = {"platform": "tpu", "topology_name": topology}
        if arrangement.replace("x1", "") == "1":  # else a host has four chips
            how["chips_per_host_bounds"] = (1, 1, 1)
    else:
        _require(["jax_cuda13_plugin", "jax_cuda12_plugin"], topology, "lpe_jax[cuda13]", "GPU")
        how = {"platform": "cuda", "topology_name": topology, "target_config": target_config(chip)}
        how["topology"] = f"1x1x{arrangement or 1}"
    try:
        devices = topologies.get_topology_desc(**how).devices
    except Exception as error:
        raise UserError(f"--topology={topology} is refused by its compiler: {str(error).splitlines()[0]}") from None
    return Target(topology, chip, int(memory or chip.memory * _share(chip)), tuple(devices))


def _share(chip: Chip) -> float:
    asked = os.environ.get(_FRACTION) if chip.cuda is not None else None
    try:
        return chip.pooled if asked is None else float(asked)
    except ValueError:
        raise UserError(f"{_FRACTION}={asked} in the environment is not a number") from None


def _require(modules: list[str], topology: str, extra: str, what: str) -> None:
    if not any(importlib.util.find_spec(module) for module in modules):
        raise UserError(
            f"--topology={topology} needs {modules[0]}, which compiles for it without a {what}: pip install '{extra}'"
        )


def target_config(chip: Chip) -> str:
    """A GPU in words of XLA's GpuTargetConfigProto, as text."""
    cuda = chip.cuda
    numbers = {
        "core_count": cuda.cores,
        "fpus_per_core": 128 if cuda.major >= 9 else 64,
        "clock_rate_ghz": cuda.clock,
        "memory_bandwidth": int(chip.bandwidth),
        "device_memory_size": chip.memory,
        "l2_cache_size": cuda.l2,
        "shared_memory_per_core": cuda.shared,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_block_optin": cuda.shared_per_block,
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "block_dim_limit_x": (1 << 31) - 1,
        "block_dim_limit_y": (1 << 16) - 1,
        "block_dim_limit_z": (1 << 16) - 1,
        "registers_per_core_limit": 1 << 16,
        "registers_per_block_limit": 1 << 16,
        "device_address_bits": 64,
    }
    # As its driver calls it, which is how JAX knows it.
    name = f"NVIDIA {chip.name.upper()}"
    words = {"device_vendor": "NVIDIA Corporation", "name": name}
    words |= {"driver_version": "13.0.0", "runtime_version": "13.0.0", "compile_time_toolkit_version": "13.0.0"}
    words |= {"dnn_version": "9.10.0"}
    feature = " feature_extension: ACCELERATED_FEATURES" if cuda.accelerated else ""
    lines = [f"  {name}: {value}" for name, value in numbers.items()]
    lines += [f'  {name}: "{value}"' for name, value in words.items()]
    lines += [f"  cuda_compute_capability {{ major: {cuda.major} minor: {cuda.minor}{feature} }}"]
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 patch: 0 }",
            f'device_description_str: "{name}"',
            "",
        ]
    )
