"""Banks on disk: the rollouts of a grid sweep, one Parquet shard per prompt, and how they become arrays.

A row stands for `count` rollouts of one text at one alpha. Rows come in the order they were found in, which for a
prefix tree is anything but random; reading expands them and puts each cell into an order of its own, drawn from the
run's seed, the prompt's id and alpha. Any first n rollouts of a cell are then a random n of them, and the same ones
each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lpe_jax.errors import RunError
from lpe_jax.records.chain import Chain
from lpe_jax.records.files import CURE, part_files, part_name
from lpe_jax.records.run import read_run
from lpe_jax.records.shard import MANIFEST, open_manifest, read_shard, write_shard
from lpe_jax.types import Bank, Outcome

FOLDER = "bank"
_SUMS = ("logp_path", "logp_original", "logp_variant", "path_score", "path_variance")
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("alpha", pa.float64()),
        ("count", pa.int64()),
        ("outcome", pa.string()),
        ("finish", pa.string()),
        ("length", pa.int32()),
        *((name, pa.float32()) for name in _SUMS),
        ("grid_logp", pa.list_(pa.float32())),
        ("text", pa.string()),
    ]
)
_META = b"lpe_jax"


@dataclasses.dataclass(frozen=True)
class Rows:
    """R distinct (alpha, text) of one prompt; NumPy columns, log-probabilities in nats as in lpe_jax.types.Rollout.

    Attributes:
      cell: [R] int, drawn at the grid's alpha of this index.
      count: [R] int, how many rollouts the row stands for.
      outcome: [R] of lpe_jax.types.Outcome.
      finish: [R] "stop", "length", or "decided" where drawing ended as soon as the outcome was settled; the row then
        stands for every response that begins so, and its length and sums are those of the beginning.
      length: [R] tokens.
      grid_logp: [R, A] log p at each alpha of the grid, or None where it was not taken.
      text: [R] responses; None leaves one out.
    """

    cell: np.ndarray
    count: np.ndarray
    outcome: np.ndarray
    finish: np.ndarray
    length: np.ndarray
    logp_path: np.ndarray
    logp_original: np.ndarray
    logp_variant: np.ndarray
    path_score: np.ndarray
    path_variance: np.ndarray
    grid_logp: np.ndarray | None
    text: list[str | None]


@dataclasses.dataclass(frozen=True)
class Shard:
    """All that is kept of one prompt: rows, counts of the extra rollouts at alpha = 1, and the truth where known.

    truth_log10 and truth_error are the true log10 rate and its standard error; None where they are not known.
    """

    prompt_id: str
    alphas: tuple[float, ...]
    rows: Rows
    naive_scored: int
    naive_complied: int
    truth_log10: float | None = None
    truth_error: float | None = None


class BankStore:
    """The shards of a run. A shard is written whole and only then named in manifest.jsonl, with its sha256.

    Processes that share a run have a manifest each, and read everybody's as they were at first.
    """

    def __init__(self, run_folder: Path, part: int = 0):
        """part: number of the process that writes.

        Raises:
          RunError: a manifest is damaged.
        """
        self.folder = run_folder / FOLDER
        parts = part_files(self.folder / MANIFEST).keys() | {part}
        self.manifests = {k: open_manifest(self.folder / part_name(MANIFEST, k)) for k in sorted(parts)}
        self._own = self.manifests[part]
        self.entries: dict[int, dict[str, Any]] = {}
        self._named_in: dict[int, str] = {}
        for own in self.manifests.values():
            for entry in own.lines:
                if type(entry.get("number")) is not int or not isinstance(entry.get("prompt_id"), str):
                    raise RunError(f"{own.path} is damaged: a line does not say which prompt its shard is of; {CURE}")
                self._take(own, entry)

    def written(self, part: int) -> int:
        """Prompts that process `part` has on disk."""
        return len(self.manifests[part].lines) if part in self.manifests else 0

    def write(self, number: int, shard: Shard) -> None:
        """Commits one prompt.

        Raises:
          RunError: the disk does not take it.
        """
        path, table = self.folder / f"{number:06d}.parquet", to_table(shard)
        entry = about(path.name, table) | {"sha256": write_shard(path, table)}
        self._own.append(entry)
        self._take(self._own, entry)

    def read(self, number: int) -> Shard:
        """One prompt's shard.

        Raises:
          RunError: it is missing or is not the file the manifest names.
        """
        if number not in self.entries:
            raise RunError(f"{self._own.path} names no shard of prompt {number}; the bank is not complete")
        return from_table(read_shard(self.folder, self.entries[number], self._named_in[number]))

    def _take(self, own: Chain, entry: dict[str, Any]) -> None:
        self.entries[entry["number"]], self._named_in[entry["number"]] = entry, own.path.name


def about(name: str, table: pa.Table) -> dict[str, Any]:
    """What a line of the manifest says of a shard besides its sha256."""
    return {
        "shard": name,
        "number": int(name.partition(".")[0]),
        "prompt_id": json.loads(table.schema.metadata[_META])["prompt_id"],
        "rows": table.num_rows,
        "rollouts": int(pc.sum(table.column("count")).as_py() or 0),
    }


def to_table(shard: Shard) -> pa.Table:
    """One line per row, by SCHEMA; what belongs to the prompt as a whole is in the schema's metadata."""
    rows, r = shard.rows, len(shard.rows.cell)
    alphas = np.asarray(shard.alphas, np.float64)
    grid = pa.nulls(r, pa.list_(pa.float32()))
    if rows.grid_logp is not None:
        offsets = np.arange(r + 1, dtype=np.int32) * len(alphas)
        grid = pa.ListArray.from_arrays(offsets, np.asarray(rows.grid_logp, np.float32).ravel())
    columns = {
        "prompt_id": [shard.prompt_id] * r,
        "alpha": alphas[rows.cell],
        "count": rows.count,
        "outcome": [str(outcome) for outcome in rows.outcome],
        "finish": [str(finish) for finish in rows.finish],
        "length": np.asarray(rows.length, np.int32),
        **{name: np.asarray(getattr(rows, name), np.float32) for name in _SUMS},
        "grid_logp": grid,
        "text": rows.text,
    }
    names = [f.name for f in dataclasses.fields(Shard) if f.name != "rows"]
    meta = json.dumps({name: getattr(shard, name) for name in names})
    return pa.table(columns, schema=SCHEMA.with_metadata({_META: meta.encode()}))


def from_table(table: pa.Table) -> Shard:
    """The inverse of to_table."""
    meta = json.loads(table.schema.metadata[_META])
    meta["alphas"] = tuple(meta["alphas"])
    cell_of = {alpha: cell for cell, alpha in enumerate(meta["alphas"])}
    grid = table.column("grid_logp").combine_chunks()
    numbers = {name: table.column(name).to_numpy() for name in ("count", "length", *_SUMS)}
    rows = Rows(
        cell=np.array([cell_of[alpha] for alpha in table.column("alpha").to_pylist()], np.int64),
        outcome=np.array([Outcome(word) for word in table.column("outcome").to_pylist()], object),
        finish=np.array(table.column("finish").to_pylist(), "<U7"),
        grid_logp=None if grid.null_count else grid.flatten().to_numpy().reshape(table.num_rows, -1),
        text=table.column("text").to_pylist(),
        **numbers,
    )
    return Shard(rows=rows, **meta)


def read_bank(folder: Path, truth: Mapping[str, tuple[float, float]] | None = None) -> Bank:
    """The bank of a finished run folder, expanded to N rollouts of every prompt at every alpha.

    log p at the grid is complete where the sweep took it; else it is known at 1, at 0 and at the rollout's own
    alpha, and NaN elsewhere. Refused rollouts whose outcome was settled early count their tokens up to there.

    Args:
      truth: true log10 rate and its standard error by prompt id, in the place of what the shards say.

    Raises:
      RunError: no finished sweep is there, or a shard is missing or damaged.
    """
    record = read_run(folder)
    if record is None or "alphas" not in record["settings"] or not (folder / FOLDER).is_dir():
        raise RunError(f"{folder} holds no bank; make one with experiments.sample")
    settings = record["settings"]
    if record["status"] != "finished":
        raise RunError(f"the bank in {folder} is not finished; the command that began it goes on with it")
    places = record["extent"]["places"]
    ids, alphas, n, seed = tuple(sorted(places, key=places.get)), settings["alphas"], settings["n"], settings["seed"]
    p, a = len(ids), len(alphas)
    store = BankStore(folder)
    scored, complied = np.zeros((2, p, a, n), bool)
    tokens = np.zeros((p, a, n), np.int32)
    score, variance = np.zeros((2, p, a, n), np.float32)
    logp = np.full((p, a, n, a), np.nan, np.float32)
    naive = np.zeros((2, p), np.int64)
    known = np.full((2, p), np.nan)
    for i, prompt_id in enumerate(ids):
        shard = store.read(i)
        rows = shard.rows
        fits = shard.prompt_id == prompt_id and list(shard.alphas) == list(alphas)
        if not (fits and (np.bincount(rows.cell, rows.count, a) == n).all()):
            raise RunError(f"shard {i} of {store.folder} is not what run.json describes; sample the bank anew")
        grid = _grid_logp(rows, alphas)
        for cell in range(a):
            own = np.flatnonzero(rows.cell == cell)
            order = np.repeat(own, rows.count[own])[cell_order(seed, prompt_id, alphas[cell], n)]
            scored[i, cell] = rows.outcome[order] != Outcome.UNSCORED
            complied[i, cell] = rows.outcome[order] == Outcome.COMPLIED
            tokens[i, cell] = rows.length[order]
            score[i, cell], variance[i, cell] = rows.path_score[order], rows.path_variance[order]
            logp[i, cell] = grid[order]
        naive[:, i] = shard.naive_scored, shard.naive_complied
        stored = (shard.truth_log10, shard.truth_error)
        known[:, i] = stored if truth is None else truth.get(prompt_id, (math.nan, math.nan))
    return Bank(
        prompt_ids=ids,
        alpha=np.array(alphas),
        scored=scored,
        complied=complied,
        tokens=tokens,
        logp=logp,
        path_score=score,
        path_variance=variance,
        naive_scored=naive[0],
        naive_complied=naive[1],
        truth=known[0],
        truth_error=known[1],
    )


def cell_order(seed: int, prompt_id: str, alpha: float, n: int) -> np.ndarray:
    """The order [n] in which the rollouts of one cell are taken: a permutation fixed by the arguments."""
    digest = hashlib.sha256(json.dumps([seed, prompt_id, float(alpha)]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(n)


def _grid_logp(rows: Rows, alphas) -> np.ndarray:
    """[R, A] log p at each alpha of the grid, as far as it is known."""
    if rows.grid_logp is not None:
        return rows.grid_logp
    known = np.full((len(rows.cell), len(alphas)), np.nan, np.float32)
    for cell, alpha in enumerate(alphas):
        if alpha in (0.0, 1.0):
            known[:, cell] = rows.logp_original if alpha else rows.logp_variant
    known[np.arange(len(rows.cell)), rows.cell] = rows.logp_path
    return known
