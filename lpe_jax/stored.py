"""A run folder read back: what was asked, what was drawn, and what any verdicts on it say."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from lpe_jax import live
from lpe_jax.asked import Asked
from lpe_jax.errors import RunError
from lpe_jax.estimation.adaptive import Path as PathProcedure
from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.registry import estimate as estimate_by
from lpe_jax.job import Job
from lpe_jax.judging.desk import Item
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.records.prompts import read_prompts
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import read_run
from lpe_jax.reporting.table import PromptResult
from lpe_jax.results import phases_of, result_of, results_of
from lpe_jax.types import Counts, Outcome, Prompt, Rollout, Verdict

PROCEDURES = {"lpe": LPE, "path": PathProcedure, "naive": Naive}
ELSEWHERE = "this judge would have had other rollouts drawn: estimated from those there are"

Verdicts = Mapping[tuple[str, str], Verdict]  # by prompt id and a rollout's tag


@dataclasses.dataclass(frozen=True)
class Stored:
    """A run folder's record, prompts and rollouts."""

    folder: Path
    record: Mapping[str, Any]
    prompts: list[Prompt]
    rollouts: list[Rollout]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decided its rollouts and verdicts."""
        return self.record["settings"]

    def items(self) -> list[Item]:
        """Its rollouts as a judge is given them."""
        by_id = {prompt.id: prompt for prompt in self.prompts}
        return [live.item_of(by_id[r.prompt_id], r) for r in self.rollouts]

    def job(self, judge: str | None, judge_settings: JudgeSettings, judge_reasoning: bool) -> Job:
        """The estimation job that it was, with another judge; None is its own."""
        asked, method = self.record["asked"], self.settings["method"]
        quality = self.settings.get("judge_quality")
        kind, extent = PROCEDURES[method], self.record["extent"]
        values = self.settings["procedure"] | {name: extent[name] for name in kind.GROWS}
        # JSON has no tuples, and procedures are hashed.
        procedure = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        if judge is None:
            judge, judge_reasoning = asked["judge"], asked["judge_reasoning"]
            own = {"template": asked["judge_template"], "mapping": asked["judge_mapping"]}
            judge_settings = dataclasses.replace(judge_settings, **own)
        fields = {f.name for f in dataclasses.fields(Asked)} & set(asked) - {"judge", "judge_reasoning"}
        return Job(
            program="judge",
            method=method,
            procedure=kind(**procedure),
            judge_quality=None if quality is None else JudgeQuality(**quality),
            naive_check=extent["naive_check"],
            judge=judge,
            judge_settings=judge_settings,
            judge_reasoning=judge_reasoning,
            **{name: asked[name] for name in fields},
        )


def open_stored(folder: Path) -> Stored:
    """A run of experiments.estimate.

    Raises:
      RunError: it is none, or is damaged.
    """
    record = read_run(folder)
    if record is None:
        raise RunError(f"--run={folder} is no run folder: there is no run.json in it")
    if "procedure" not in record["settings"]:
        raise RunError(f"--run={folder} is a bank, which keeps no responses; judge a run of experiments.estimate")
    prompts = read_prompts(folder, record["asked"]["prompt_texts"])
    return Stored(folder, record, prompts, list(RolloutStore(folder / "rollouts").read()))


def estimated(stored: Stored, job: Job, verdicts: Verdicts) -> tuple[list[PromptResult], Counter]:
    """What the verdicts say of every prompt, as the run itself would have said it where its rollouts suffice."""

    def told(items: Sequence[Item]) -> Future[list[Verdict]]:
        answer: Future[list[Verdict]] = Future()
        answer.set_result([verdicts[item.prompt.id, item.tag] for item in items])
        return answer

    store, nothing = RolloutStore(stored.folder / "rollouts"), live.Stored()
    found = {f.prompt.id: f for f in live.run(job.procedure, stored.prompts, nothing, told, store)}
    short = [prompt for prompt in stored.prompts if prompt.id not in found]
    checks = {}
    if job.naive_check:
        had = {i: f.drawn[np.asarray(job.procedure.grid) == 1.0].sum(keepdims=True) for i, f in found.items()}
        whole = [prompt for prompt in stored.prompts if prompt.id in found]
        naive = live.run(Naive(job.naive_check), whole, nothing, told, store, spoken_for=had)
        checks = {f.prompt.id: f for f in naive}
    own = defaultdict(list)
    for rollout in stored.rollouts:
        own[rollout.prompt_id].append(rollout)
    for prompt in short:
        found[prompt.id], check = _of_all(job, prompt, own[prompt.id], verdicts)
        if check is not None:
            checks[prompt.id] = check
    truth = _truth(stored.folder)
    ordered = [found[prompt.id] for prompt in stored.prompts]
    results = results_of(
        job, [(f, result_of(job, f, truth.get(f.prompt.id), job.judge_quality)) for f in ordered], checks, truth
    )
    elsewhere = {prompt.id for prompt in short}
    results = [dataclasses.replace(r, note=ELSEWHERE) if r.prompt_id in elsewhere else r for r in results]
    return results, phases_of([*ordered, *checks.values()])


def _of_all(
    job: Job, prompt: Prompt, rollouts: Sequence[Rollout], verdicts: Verdicts
) -> tuple[live.Finished, live.Finished | None]:
    """One prompt from whatever was drawn of it, and naive rollouts beside where its procedure does not fit to those."""
    grid = np.asarray(job.procedure.grid)
    beside = [r for r in rollouts if r.alpha not in grid]
    fitted = [r for r in rollouts if r.alpha in grid]
    counts = _counts(grid, fitted, prompt, verdicts)
    fit, search = counts, None
    if isinstance(job.procedure, LPE):
        # What was drawn for a fit is fitted to; the few of a search tell the interval alone.
        enough = counts.scored >= 0.9 * job.procedure.n_fit
        fit, search = (
            Counts(grid, np.where(part, counts.scored, 0.0), np.where(part, counts.complied, 0.0))
            for part in (enough, ~enough)
        )
        estimate = job.procedure.fit(fit, search)
    else:
        estimate = estimate_by("naive" if job.method == "naive" else "bend", counts)
    finished = _finished(prompt, estimate, fit, search, fitted, grid, verdicts)
    if not beside:
        return finished, None
    one = np.ones(1)
    return finished, _finished(prompt, estimate, _counts(one, beside, prompt, verdicts), None, beside, one, verdicts)


def _counts(grid: np.ndarray, rollouts: Sequence[Rollout], prompt: Prompt, verdicts: Verdicts) -> Counts:
    scored, complied = np.zeros(len(grid)), np.zeros(len(grid))
    for rollout in rollouts:
        outcome = verdicts[prompt.id, live.tag_of(rollout)].outcome
        cell = int(np.flatnonzero(grid == rollout.alpha)[0])
        scored[cell] += outcome is not Outcome.UNSCORED
        complied[cell] += outcome is Outcome.COMPLIED
    return Counts(grid, scored, complied)


def _finished(
    prompt: Prompt,
    estimate: Any,
    fit: Counts,
    search: Counts | None,
    rollouts: Sequence[Rollout],
    grid: np.ndarray,
    verdicts: Verdicts,
) -> live.Finished:
    tally = live.Tally()
    for rollout in rollouts:
        tally.add(rollout, verdicts[prompt.id, live.tag_of(rollout)])
    drawn = np.array([sum(r.alpha == alpha for r in rollouts) for alpha in grid])
    estimate = dataclasses.replace(estimate, rollouts=np.asarray(len(rollouts)))
    return tally.finished(prompt, estimate, fit, search, drawn)


@dataclasses.dataclass(frozen=True)
class _Truth:
    """A lpe_jax.tiny.truth.Truth as far as a table tells of it."""

    log10_rate: float
    se_log10: float = math.nan


def _truth(folder: Path) -> dict[str, _Truth]:
    """The truths that the run's own table tells of, where they are known."""
    path = folder / "estimates.csv"
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        known = {row["prompt_id"]: float(row["truth"]) for row in csv.DictReader(file) if row.get("truth")}
    return {prompt_id: _Truth(math.log10(rate)) for prompt_id, rate in known.items() if rate > 0}
