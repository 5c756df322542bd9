"""A plan as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from lpe_jax.planning.chips import GIB, in_words
from lpe_jax.planning.counts import Step
from lpe_jax.planning.targets import Target

# A plan says no more than that: the same for every line of a table.
_NUMBERS = {1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast a step of the pair (or of the original alone) could be, and how fast it is taken to be.

    Attributes:
      step: counted by hand.
      seconds: of one step at the chip's peaks.
      ceiling: tokens per second of all devices at the peaks.
      expected: the share of it that is assumed, in tokens per second.
    """

    step: Step
    seconds: float
    ceiling: float
    expected: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep takes at the expected speed.

    Attributes:
      path, naive: rollouts along the path, by both models, and naive ones, by the original alone.
      hours: of the whole machine, both kinds together.
    """

    path: int
    naive: int
    mean_tokens: float
    hours: float
    device_hours: float
    path_per_hour: float
    naive_per_hour: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that was found.

    Attributes:
      asked: what was planned for, as given or by default.
      versions: of what compiled.
      memory: bytes of one device by part; see lpe_jax.planning.compiled.
      limit: bytes of a device that a program can have; None for no limit.
      collectives: in the decode, by kind.
      pair, alone, sweep: None for a CPU, whose speed nobody claims to know.
    """

    target: Target
    asked: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    parameters: int
    batch_size: int
    rows: int
    groups: int
    memory: dict[str, int]
    limit: int | None
    collectives: dict[str, int]
    efficiency: float
    pair: Speed | None
    alone: Speed | None
    sweep: Sweep | None

    @property
    def total(self) -> int:
        return sum(self.memory.values())

    @property
    def temporary_share(self) -> float:
        """Temporary memory as a share of that of keys and values."""
        of_cache = sum(size for part, size in self.memory.items() if part.endswith("keys and values"))
        return self.memory["temporary"] / of_cache


def as_json(plan: Plan) -> dict[str, Any]:
    """Plain values; bytes, seconds, and operations are whole or floating numbers."""
    chip = plan.target.chip
    found = {
        "asked": plan.asked,
        "versions": plan.versions,
        "compile_seconds": round(plan.seconds, 1),
        "parameters": plan.parameters,
        "devices": len(plan.target.devices),
        "chip": None if chip is None else {k: v for k, v in dataclasses.asdict(chip).items() if k != "cuda"},
        "batch_size": plan.batch_size,
        "rows_per_device": plan.rows,
        "groups_per_device": plan.groups,
        "memory_bytes": plan.memory | {"total": plan.total},
        "memory_limit_bytes": plan.limit,
        "temporary_over_cache": plan.temporary_share,
        "collectives": plan.collectives,
    }
    if chip is None:
        return found
    speeds = {}
    for name, speed in (("pair", plan.pair), ("alone", plan.alone)):
        speeds[name] = {
            "parts": {part: dataclasses.asdict(work) for part, work in speed.step.parts.items()},
            "flops": speed.step.flops,
            "bytes": speed.step.bytes,
            "seconds_per_step": speed.seconds,
            "tokens_per_second_ceiling": speed.ceiling,
            "tokens_per_second_expected": speed.expected,
        }
    return {**found, "efficiency": plan.efficiency, "step": speeds, "sweep": dataclasses.asdict(plan.sweep)}


def as_text(plan: Plan) -> str:
    """Several tables, for people."""
    blocks = [_head(plan), _memory(plan), _collectives(plan)]
    if plan.target.chip is not None:
        blocks += [_speed(plan), _sweep(plan)]
    else:
        blocks.append("speed: unknown, as it is that of this machine's CPU; run something")
    return "\n\n".join(blocks)


def _head(plan: Plan) -> str:
    asked, devices = plan.asked, len(plan.target.devices)
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    share = f", {asked['model_parallel']} of them to a copy of the models" if asked["model_parallel"] > 1 else ""
    attention = "XLA's products" if asked["attention"] == "einsum" else "the kernel"
    return "\n".join(
        [
            f"{asked['original']}: {plan.parameters:,} parameters, pair mode {asked['pair_mode']}, {asked['dtype']}",
            f"{plan.target.topology}: {devices} device{'s' * (devices > 1)}{share}; batch {plan.batch_size:,}, "
            f"{plan.rows:,} rows in {plan.groups:,} groups to a device; prompts of {asked['prompt_slots']} tokens, "
            f"responses of {asked['max_new_tokens']}; attention by {attention}",
            f"compiled in {plan.seconds:.0f} s by {versions}",
        ]
    )


def _memory(plan: Plan) -> str:
    lines = ["memory of one device"]
    lines += [f"  {part:<33}{in_words(size):>14}" for part, size in plan.memory.items() if size]
    limit, chip = plan.limit, plan.target.chip
    of = "" if limit is None else f" of {in_words(limit)}: it fits, with {in_words(limit - plan.total)} to spare"
    lines.append(f"  {'together':<33}{in_words(plan.total):>14}{of}")
    if chip is not None and chip.cuda is not None and limit < chip.memory:
        lines.append(f"  (JAX takes so much of a GPU's {chip.memory / GIB:.0f} GiB; XLA_PYTHON_CLIENT_MEM_FRACTION)")
    lines.append(f"  temporary memory is {plan.temporary_share:.0%} of keys and values")
    return "\n".join(lines)


def _collectives(plan: Plan) -> str:
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(plan.collectives.items()))
    return f"collectives in the decode: {named or 'none'}"


def _speed(plan: Plan) -> str:
    chip, step = plan.target.chip, plan.pair.step
    lines = [f"one step of both models on one device{'operations':>17}{'bytes':>9}{'products':>12}{'memory':>12}"]
    for name, work in step.parts.items():
        products, traffic = work.seconds(chip, step.itemsize)
        times = f"{1e3 * products:>9.2f} ms{1e3 * traffic:>9.2f} ms"
        lines.append(f"  {name:<35}{short(work.flops):>17}{short(work.bytes):>9}{times}")
    peak = chip.flops if step.itemsize == 2 else chip.flops32
    lines += [
        f"  at {short(peak)} operations/s and {short(chip.bandwidth)} bytes/s ({chip.source}); counted by hand",
        f"  the parts one after the other, each the longer of its two times: {1e3 * plan.pair.seconds:.2f} ms a step",
    ]
    for name, speed in (("both models", plan.pair), ("original alone", plan.alone)):
        each = speed.ceiling / len(plan.target.devices)
        lines.append(
            f"  {name:<14} at most {each:,.0f} tokens/s a device, {speed.ceiling:,.0f} in all; "
            f"at {plan.efficiency:.0%} of that {speed.expected:,.0f}"
        )
    return "\n".join(lines)


def _sweep(plan: Plan) -> str:
    sweep, asked = plan.sweep, plan.asked
    lines = [
        f"sweep: {asked['num_prompts']:,} prompts x ({asked['num_alphas']} alphas x {asked['n']:,} + "
        f"{asked['n_naive']:,} naive), {sweep.mean_tokens:,.0f} tokens each",
        f"  {sweep.path:,} rollouts by both models at {sweep.path_per_hour:,.0f} an hour",
        f"  {sweep.naive:,} naive ones by the original alone at {sweep.naive_per_hour:,.0f} an hour",
        f"  {sweep.hours:,.2f} hours, {sweep.device_hours:,.2f} device-hours, if {plan.efficiency:.0%} of the ceiling "
        "is reached; prefill, judging and loading are not in it",
    ]
    return "\n".join(lines)


def short(number: float) -> str:
    """ "12.3G" for 12.3e9."""
    for size, letter in _NUMBERS.items():
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
