"""Reports of stored runs: estimated anew from their rollouts and verdicts, without models and without a judge."""

from __future__ import annotations

from pathlib import Path

from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.page import NAME, contents_of, write_page
from lpe_jax.recall import Recall
from lpe_jax.records.lookup import Lookup
from lpe_jax.reporting.report import Options, RunContents
from lpe_jax.stored import Verdicts, estimated, open_stored


def read_contents(folder: Path, options: Options) -> RunContents:
    """What a report tells of a stored run; of one that is not finished, of what it has drawn.

    Raises:
      RunError: it is none, or is damaged.
    """
    stored = open_stored(folder)
    verdicts = Verdicts(stored.index.total)
    with Lookup(folder) as lookup:
        said = Recall(stored.record, lookup)
        for places, items in stored.items():
            verdicts.put(places, said(items))
        job = stored.job(None, JudgeSettings(), False)
        results, phases = estimated(stored, job, verdicts)
        there = stored.record, stored.prompts, stored.index
        return contents_of(folder, *there, said, results, phases, options, job.procedure)


def run(folders: list[Path], *, out: Path | None, options: Options) -> Path:
    """Writes the report of one run into its folder, or of several into `out`; returns where it is.

    Raises:
      RunError: a run cannot be read, or the report not be written.
    """
    path = folders[0] / NAME if out is None else out
    write_page([read_contents(folder, options) for folder in folders], path, options)
    return path
