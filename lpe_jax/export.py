"""A run's rollouts and verdicts in one file for other tools: CSV, JSON lines, Parquet, or a log of Inspect."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from lpe_jax import live
from lpe_jax.errors import RunError
from lpe_jax.recall import Recall
from lpe_jax.records.check import held
from lpe_jax.records.files import read_bytes, whole_file
from lpe_jax.records.ledger import NAME
from lpe_jax.records.lookup import Lookup
from lpe_jax.reporting import table
from lpe_jax.reporting.columns import rows_of
from lpe_jax.reporting.text import counted, printable, spreadsheet_safe
from lpe_jax.stored import AT_ONCE, Stored, open_stored
from lpe_jax.types import Outcome, Prompt, Rollout, Verdict

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("alpha", pa.float64()),
        ("index", pa.int32()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("finish", pa.string()),
        ("length", pa.int32()),
        ("logp_path", pa.float32()),
        ("logp_original", pa.float32()),
        ("logp_variant", pa.float32()),
        ("path_score", pa.float32()),
        ("path_variance", pa.float32()),
        ("text", pa.string()),
        ("fields", pa.string()),
    ]
)
_OUTCOMES = tuple(Outcome)

Judged = tuple[Prompt, Rollout, Verdict]


@dataclasses.dataclass(frozen=True)
class Sample:
    """How much of a run is exported, per prompt and alpha; None is all.

    Attributes:
      hits: of the rollouts that complied; others: of those that did not. Which ones is drawn at random, and the same
        ones whenever the same is asked.
    """

    hits: int | None = None
    others: int | None = None


@dataclasses.dataclass(frozen=True)
class Exported:
    """What there is to export.

    Attributes:
      totals: of all rollouts of the run, exported or not, how many had each outcome; by prompt id, then alpha.
      places: of the rollouts to be exported [N], ascending.
      rollouts: gives those, with prompts and verdicts, once.
    """

    stored: Stored
    totals: Mapping[str, Mapping[float, Mapping[Outcome, int]]]
    places: np.ndarray
    rollouts: Callable[[], Iterator[Judged]]

    @property
    def total(self) -> int:
        """Rollouts of the run."""
        return len(self.stored.index)

    def estimates(self) -> list[dict[str, str]]:
        """The rows of the run's table; none if it has none yet."""
        path = self.stored.folder / table.CSV
        return rows_of(read_bytes(path), path)


def run(folder: Path, out: Path, kind: str, sample: Sample) -> None:
    """Writes a run as `kind`, one of KINDS, to `out`, for its owner alone to read, and says so.

    Raises:
      RunError: the run cannot be read, or the file not written.
    """
    if out.is_dir():
        raise RunError(f"--out={out} is a folder; name a file")
    if out.exists() and out.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"--out={out} is a file of the run itself; name another")
    write = KINDS[kind]()
    with held(folder, to_write=False):
        stored = open_stored(folder)
        if not len(stored.index):
            raise RunError(f"{folder} has no rollouts yet")
        with Lookup(folder) as lookup:
            exported = _of(stored, Recall(stored.record, lookup), sample)
            with whole_file(out) as path:
                write(exported, path)
    if stored.record["status"] != "finished":
        print("note: the run is not finished; this is of what it has drawn so far")
    left = "" if len(exported.places) == exported.total else f" of {exported.total:,}"
    print(f"{len(exported.places):,}{left} rollouts of {counted(len(stored.prompts), 'prompt')} written to {out}")
    if left:
        print("(chosen by --sample and --hits: shares among them are no rates)")


def _of(stored: Stored, said: Recall, sample: Sample) -> Exported:
    """Goes over all rollouts once, for what there is and which of it is asked for."""
    outcome = np.full(stored.index.total, -1, np.int8)
    with tqdm(total=len(stored.index), unit=" rollouts", disable=None, leave=False) as bar:
        for places, items in stored.items():
            outcome[places] = [_OUTCOMES.index(verdict.outcome) for verdict in said(items)]
            bar.update(len(places))
    if not said.kept:
        raise RunError(
            f"{stored.folder / NAME} has none of the verdicts that this run was made with, or has them from another "
            f"version of lpe_jax; python -m experiments.judge {stored.folder} puts them there"
        )
    totals, chosen = {}, []
    for prompt in stored.prompts:
        alphas, places = stored.index.of_prompt(prompt.id)
        own = totals[prompt.id] = {}
        for alpha in np.unique(alphas).tolist():
            here = places[alphas == alpha]
            found = outcome[here]
            own[alpha] = {o: int(np.sum(found == i)) for i, o in enumerate(_OUTCOMES)}
            hit = found == _OUTCOMES.index(Outcome.COMPLIED)
            pick = functools.partial(_some, name=(stored.settings["seed"], prompt.id, alpha))
            chosen += [pick(here[hit], sample.hits), pick(here[~hit], sample.others)]
    places = np.sort(np.concatenate(chosen))
    return Exported(stored, totals, places, functools.partial(_judged, stored, said, places))


def _some(places: np.ndarray, most: int | None, name: tuple) -> np.ndarray:
    """At most so many of the places [n], at random by the name alone."""
    if most is None or most >= len(places):
        return places
    digest = hashlib.sha256(json.dumps(["export", *name]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).choice(np.sort(places), most, replace=False)


def _judged(stored: Stored, said: Recall, places: np.ndarray) -> Iterator[Judged]:
    by_id = {prompt.id: prompt for prompt in stored.prompts}
    for begin in range(0, len(places), AT_ONCE):
        rollouts = stored.index.fetch(places[begin : begin + AT_ONCE])
        prompts = [by_id[rollout.prompt_id] for rollout in rollouts]
        verdicts = said([live.item_of(p, r) for p, r in zip(prompts, rollouts, strict=True)])
        yield from zip(prompts, rollouts, verdicts, strict=True)


def row_of(rollout: Rollout, verdict: Verdict) -> dict[str, Any]:
    """A line of a table, by SCHEMA; a number that is not known is None."""
    numbers = {name: getattr(rollout, name) for name in SCHEMA.names if name.startswith(("logp_", "path_"))}
    return {
        "prompt_id": rollout.prompt_id,
        "alpha": rollout.alpha,
        "index": rollout.index,
        "outcome": str(verdict.outcome),
        "reason": str(verdict.fields.get("reason", "")),
        "finish": rollout.finish,
        "length": len(rollout.tokens),
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "text": rollout.text,
        "fields": json.dumps(dict(verdict.fields), sort_keys=True),
    }


def _csv(exported: Exported, path: Path) -> None:
    """Texts on one line each, with what a terminal or a spreadsheet would act on made harmless."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, SCHEMA.names, lineterminator="\n")
        writer.writeheader()
        for _, rollout, verdict in exported.rollouts():
            row = row_of(rollout, verdict)
            texts = {k: spreadsheet_safe(printable(v)) for k, v in row.items() if isinstance(v, str)}
            writer.writerow(row | texts)


def _jsonl(exported: Exported, path: Path) -> None:
    with open(path, "w", encoding="ascii") as file:
        for _, rollout, verdict in exported.rollouts():
            row = row_of(rollout, verdict) | {"fields": dict(verdict.fields)}
            file.write(json.dumps(row) + "\n")


def _parquet(exported: Exported, path: Path) -> None:
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        rows = []
        for _, rollout, verdict in exported.rollouts():
            rows.append(row_of(rollout, verdict))
            if len(rows) == AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def _inspect() -> Callable[[Exported, Path], None]:
    from lpe_jax.inspect_logs import writer

    return writer()


# What each is written by; made before anything is read, as one may lack a package.
KINDS: Mapping[str, Callable[[], Callable[[Exported, Path], None]]] = {
    "csv": lambda: _csv,
    "jsonl": lambda: _jsonl,
    "parquet": lambda: _parquet,
    "inspect": _inspect,
}
