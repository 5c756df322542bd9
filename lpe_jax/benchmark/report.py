"""What was found as a table for people and as JSON for machines."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpe_jax.benchmark.run import Found, Options
from lpe_jax.machine import cores
from lpe_jax.records.files import write_whole
from lpe_jax.version import __version__

_HEAD = ("", "s (min..max)", "tokens/s", "rollouts/s", "tokens each", "ratio (min..max)")


def machine() -> dict[str, Any]:
    """The processor, how many of its cores there are, how busy they were, versions and the date."""
    packages = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "load": list(os.getloadavg()),
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "lpe_jax": __version__}
        | {name: version for name in packages if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name as Linux gives it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(found: Found) -> str:
    """One workload: a row for each contestant, then what was tried beside and remarks."""
    rows = [_HEAD]
    for standing in found.standings:
        rows.append(
            (
                standing.name,
                f"{standing.seconds:.2f} ({standing.fastest:.2f}..{standing.slowest:.2f})",
                f"{standing.tokens_per_second:,.1f}",
                f"{standing.rollouts_per_second:,.2f}",
                f"{standing.tokens_per_rollout:.1f}",
                f"{standing.ratio:.2f} ({min(standing.ratios):.2f}..{max(standing.ratios):.2f})",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [f"{found.workload}: {found.about}"]
    for name, *cells in rows:
        lines.append("  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]))
    lines.append(f"  ratio: {found.unit}/s to those of {found.reference!r} in the same round; medians over rounds")
    for name, took in found.trials.items():
        lines.append(f"  one batch by {name}: {took if isinstance(took, str) else f'{took:.2f} s'}")
    for name, fact in found.facts.items():
        shown = ", ".join(f"{k} {v:.3g}" for k, v in fact.items()) if isinstance(fact, dict) else f"{fact:.3g}"
        lines.append(f"  {name}: {shown}")
    return "\n".join([*lines, *(f"  {note}" for note in found.notes)])


def write_json(path: Path, found: Sequence[Found], options: Options) -> None:
    """Everything, all rounds included; the file is whole or not there."""
    whole = {"machine": machine(), "options": dataclasses.asdict(options), "workloads": list(map(_plain, found))}
    write_whole(path, json.dumps(whole, indent=1) + "\n")


def _plain(found: Found) -> dict[str, Any]:
    return dataclasses.asdict(found)
