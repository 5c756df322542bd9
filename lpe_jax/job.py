"""One estimation job from start to end: read, load, draw, judge, estimate, report."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lpe_jax import page
from lpe_jax.asked import Asked
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.drawing import Drawing, followed
from lpe_jax.errors import UserError
from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import Procedure
from lpe_jax.judging.cascade import AnyJudge
from lpe_jax.judging.desk import Desk
from lpe_jax.models.pair import describe_sharing
from lpe_jax.preemption import Notice
from lpe_jax.processes import ALONE, Processes
from lpe_jax.recall import Recall
from lpe_jax.records.files import write_whole
from lpe_jax.records.ledger import spent_in
from lpe_jax.records.lookup import Lookup
from lpe_jax.records.prompts import write_prompts
from lpe_jax.records.run import check_folder, more, read_made, read_run, settings_hash
from lpe_jax.reporting import figures, table
from lpe_jax.reporting.cautions import cautions
from lpe_jax.reporting.judges import cascade_words, judging_words, verdict_words
from lpe_jax.reporting.report import AS_USUAL, Options
from lpe_jax.reporting.text import counted, printable_lines
from lpe_jax.results import phases_of, results_of
from lpe_jax.types import Prompt

# Of 200, in an order in which any first few span all rates.
EMBEDDED_LIMIT = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(Asked):
    """What an estimation program was asked for.

    Attributes:
      naive_check: rollouts of the original that no estimate is fitted to, by which it is checked; 0 is no check.
    """

    program: str
    method: str
    procedure: Procedure
    naive_check: int = 0
    judge_quality: JudgeQuality | None = None

    def __post_init__(self):
        if self.method == "path" and not self.sums:
            raise UserError("--method=path rests on path scores, which --nosums leaves out; drop one of them")

    @property
    def at_one(self) -> bool:
        """Whether the rate that is asked for is that of the original itself."""
        return not isinstance(self.procedure, Naive) or self.procedure.alpha == 1.0

    @property
    def default_limit(self) -> int:
        return EMBEDDED_LIMIT if self.prompts is None else 0


def run(
    job: Job,
    *,
    out: str | None,
    asked: Mapping[str, Any],
    flagfile: str,
    figure_formats: Sequence[str] = (),
    report: Options = AS_USUAL,
    processes: Processes = ALONE,
) -> Path:
    """Runs a job, or goes on with it, or says that it is finished. Returns the run folder.

    Everything cheap that can be wrong is looked at before the models are loaded, and nothing is written before
    everything has been.

    Args:
      asked: the flags as given; a finished run that was asked for with the same ones is left alone.
      flagfile: the same as a file for --flagfile.
      figure_formats: what figures are written as, of lpe_jax.reporting.figures.FORMATS; none draws none.
      report: what is asked of report.html.
      processes: who shares the run; each draws its share of the prompts, and the first reports them all.

    Raises:
      UserError: any input that cannot be used, or a process that is missing.
    """
    began = time.monotonic()
    job.sampling()  # refuses what is out of range before anything is loaded
    prompts = job.read_prompts()
    judge = job.make_judge(processes.count)
    asked = job.complete(asked, prompts, judge)
    folder = Path(out or f"runs/{job.program}-{settings_hash(asked)}")
    folder, finished = processes.follow(folder, processes.first and not job.verify and is_finished(folder, asked))
    if finished:
        if processes.first:
            print(printable_lines((folder / table.TEXT).read_bytes()), end="")
            print(
                f"\n{folder} is finished: nothing to do (experiments.check looks whether it is all as it was written). "
                "Another --seed or --out draws anew."
            )
        return folder

    if processes.first:
        check_folder(folder)
    with processes.notice(job.grace) as notice:
        with job.desk(judge) as desk:
            # Before the models are loaded: a judge that cannot be used is to fail now.
            desk.open(spent_in(folder))
            _run(job, folder, prompts, judge, desk, asked, flagfile, (figure_formats, report), processes, notice)
        processes.end()
    if processes.first:
        print(f"\nfinished in {time.monotonic() - began:.0f} s; see {folder} and {page.NAME} in it")
    return folder


def _run(
    job: Job,
    folder: Path,
    prompts: Sequence[Prompt],
    judge: AnyJudge,
    desk: Desk,
    asked: Mapping[str, Any],
    flagfile: str,
    shown: tuple[Sequence[str], Options],
    processes: Processes,
    notice: Notice,
) -> None:
    """`run` of a job that is not finished, whose judge is there."""
    began, sampling = time.monotonic(), job.sampling()
    mesh = job.mesh()
    loaded = job.load(mesh)
    seconds = time.monotonic() - began
    rendered = job.render(loaded, prompts)
    sampler = job.sampler(loaded, rendered, mesh)
    if isinstance(job.procedure, Naive) and job.at_one:
        sampler = sampler.alone
    procedure = dataclasses.asdict(job.procedure)
    if isinstance(job.procedure, LPE):
        # As they are, however they were given.
        procedure = {k: v for k, v in procedure.items() if k not in ("first_alpha", "step", "last_alpha")}
        procedure["alphas"] = list(job.procedure.searched)
    settings = {
        **job.settings(loaded, judge, mesh),
        "method": job.method,
        "procedure": {name: value for name, value in procedure.items() if name not in job.procedure.GROWS},
        **({} if job.judge_quality is None else {"judge_quality": dataclasses.asdict(job.judge_quality)}),
        # None, which runs that say nothing of it have too, for XLA's products.
        "attention": None if sampler.kernel is None else "pallas",
    }
    extent = {
        **job.extent(prompts, rendered, sampler),
        "naive_check": job.naive_check,
        **{name: procedure[name] for name in job.procedure.GROWS},
    }

    resolved = {
        "dtype": loaded.identity["dtype"],
        "judge": job.judge_name,
        "limit": len(prompts),
        "max_new_tokens": sampling.max_new_tokens,
        "batch_size": job.rows,
    }
    # Later lines win: a default that depends on the models is written out, should it ever change.
    flagfile += "".join(f"--{name}={value}\n" for name, value in resolved.items())
    share = processes.share(prompts)
    with (
        processes.open(folder, settings, extent, asked, flagfile) as opened,
        followed(len(share), folder, desk, job.judge_settings, processes) as progress,
    ):
        if processes.first:
            write_prompts(folder, prompts)
            for note in (
                describe_sharing(loaded.pair),
                *loaded.notes,
                *desk.notes,
                *_warnings(job, sampling, len(prompts)),
            ):
                print(note)
            if opened.grown_from is not None:
                print(f"the run grows: {more(opened.grown_from, extent)}")
            shared = "" if processes.count == 1 else f" shared by {processes.count} processes"
            work = f"{counted(len(prompts), 'prompt')}{shared}, method {job.method}, judge {judge.identity}"
            print(f"{work}; writing to {folder}\n", flush=True)
        # The desk goes before its ledger does, and before the folder is anybody else's.
        with contextlib.closing(processes.ledger(folder)) as ledger, desk:
            desk.remember(ledger)
            opened.metric(**loaded.as_event(seconds))
            truth = job.truth(loaded) if job.at_one else {}
            drawing = Drawing(job, desk, opened, processes, notice, progress, truth)
            found, checks = drawing.draw(share, sampler)
            if not processes.first:
                drawing.done()
                return
            if processes.count > 1:
                found, checks = drawing.gather(prompts, sampler, ledger)
        progress.expect("reporting", [], 0, exact=True)
        results = results_of(job, found, checks, drawing.truth)
        order = {prompt.id: i for i, prompt in enumerate(prompts)}
        results.sort(key=lambda result: order[result.prompt_id])
        text = table.terminal_table(results) + "\n"
        table.write_csv(table.estimates_rows(results), folder / table.CSV)
        write_whole(folder / table.TEXT, text)
        progress.say("\n" + text.rstrip("\n"))
        phases = phases_of([*(finished for finished, _ in found), *checks.values()])
        cost = judging_words(desk, spent_in(folder), job.judge_settings)
        for line in (*cost, *cascade_words(phases), *verdict_words(results)):
            print(line)
        for remote, _ in desk.remote:
            opened.metric(event="judge", judge=remote.identity, **remote.meter.as_json())
        formats, options = shown
        figures.draw_all(results, folder / "figures", formats)
        if reasons := page.reasons_of(results):
            opened.metric(event=page.UNSCORED, reasons=reasons)
        # All but for saying so.
        finished, index = opened.record | {"status": "finished"}, drawing.store().index()
        with Lookup(folder) as lookup:
            said = Recall(finished, lookup)
            contents = page.contents_of(folder, finished, prompts, index, said, results, phases, options, job.procedure)
        page.write_page([contents], folder / page.NAME, options)
        opened.metric(event="finished", seconds=round(time.monotonic() - began, 1))
        opened.finish(table.CSV, table.TEXT)


def is_finished(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether the folder has all that a job that was asked for so gives."""
    record = read_run(folder)
    whole = record is not None and record["status"] == "finished" and record.get("asked") == asked
    made = {table.TEXT, table.CSV, *record.get("made", {})} if whole else ()
    return whole and all(read_made(folder, record, name) is not None for name in made)


def _warnings(job: Job, sampling: SamplingSettings, prompts: int) -> list[str]:
    own = {"tiny": job.folder is not None, "own_prompts": job.prompts is not None, "judge": job.judge_name}
    found = [f"note: {line}" for line in cautions(method=job.method, prompts=prompts, **own)]
    if sampling.truncates:
        found.append("--top_k or --top_p truncates: importance weights of these rollouts mean nothing")
    if job.method == "lpe" and not job.sums:
        found.append("--nosums: intervals take the line at its word, as no path score says how it bends")
    if not job.at_one:
        found.append(f"drawing at alpha = {job.procedure.alpha:g}: rates are of this mixture, not of the original")
    if job.judge_quality is not None:
        found.append(table.floor_words(job.judge_quality))
    return found
