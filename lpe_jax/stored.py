"""A run folder read back: what was asked, what was drawn, and what any verdicts on it say."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from lpe_jax.records.files import CURE
from lpe_jax.records.index import Index
from lpe_jax.records.prompts import read_prompts
from lpe_jax.records.rollouts import FOLDER, RolloutStore
from lpe_jax.records.run import no_run_folder, read_made, read_run
from lpe_jax.reporting.columns import rows_of
from lpe_jax.reporting.table import CSV, PromptResult
from lpe_jax.results import phases_of, result_of, results_of
from lpe_jax.types import Counts, Outcome, Prompt, Verdict

PROCEDURES = {"lpe": LPE, "path": PathProcedure, "naive": Naive}
ELSEWHERE = "this judge would have had other rollouts drawn: estimated from those there are"
BEGUN = "not all of its rollouts are drawn: estimated from those there are"

# Rollouts that are in memory at a time, where all are gone over.
AT_ONCE = 1024
# The fields of a verdict that tables tell of.
_TOLD = ("reason",)


@dataclasses.dataclass(frozen=True)
class _Truth:
    """A lpe_jax.tiny.truth.Truth as far as a table tells of it."""

    log10_rate: float
    se_log10: float = math.nan


@dataclasses.dataclass(frozen=True)
class Stored:
    """A run folder's record and prompts, and where its rollouts are.

    Attributes:
      truth: the truths that its table tells of, by prompt id, where they are known.
    """

    folder: Path
    record: Mapping[str, Any]
    prompts: list[Prompt]
    store: RolloutStore
    truth: Mapping[str, _Truth]

    @property
    def index(self) -> Index:
        """Where its rollouts are."""
        return self.store.index()

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decided its rollouts and verdicts."""
        return self.record["settings"]

    def items(self) -> Iterator[tuple[np.ndarray, list[Item]]]:
        """Its rollouts as a judge is given them, some at a time, with their places."""
        by_id, all_places = {prompt.id: prompt for prompt in self.prompts}, self.index.places()
        for begin in range(0, len(all_places), AT_ONCE):
            places = all_places[begin : begin + AT_ONCE]
            yield places, [live.item_of(by_id[r.prompt_id], r) for r in self.index.fetch(places)]

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
            own = {"template": asked.get("judge_template"), "mapping": asked.get("judge_mapping")}
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


class Verdicts:
    """What a judge said of a run's rollouts, by their places: the few different things it said, and which of them.

    Of the raw fields those stay that tables tell of; the ledger has all.
    """

    def __init__(self, places: int):
        """places: how many there are."""
        self._which = np.full(places, -1, np.int32)
        self._said: list[Verdict] = []
        self._number: dict[str, int] = {}

    def put(self, places: np.ndarray, verdicts: Sequence[Verdict]) -> None:
        """Takes verdicts [n] on the rollouts at places [n]."""
        for place, verdict in zip(places.tolist(), verdicts, strict=True):
            fields = {k: verdict.fields[k] for k in _TOLD if k in verdict.fields}
            told = Verdict(verdict.outcome, fields, verdict.phases)
            number = self._number.setdefault(f"{told.outcome} {told.fields} {told.phases}", len(self._said))
            if number == len(self._said):
                self._said.append(told)
            self._which[place] = number

    def at(self, places: np.ndarray) -> list[Verdict]:
        """Those on the rollouts at places [n]."""
        return [self._said[number] for number in self._which[places]]

    def which(self, outcome: Outcome) -> np.ndarray:
        """The places [n] with this outcome, ascending."""
        return np.flatnonzero(np.isin(self._which, [n for n, v in enumerate(self._said) if v.outcome is outcome]))


def open_stored(folder: Path) -> Stored:
    """A run of experiments.estimate.

    Raises:
      RunError: it is none, or is damaged.
    """
    record = read_run(folder) if folder.is_dir() else None
    if record is None:
        raise no_run_folder(folder)
    if "procedure" not in record["settings"]:
        raise RunError(f"{folder} is a bank, which keeps few responses; name a run of experiments.estimate")
    prompts = read_prompts(folder, record["asked"]["prompt_texts"])
    return Stored(folder, record, prompts, RolloutStore(folder / FOLDER), _truth(folder, record))


def estimated(stored: Stored, job: Job, verdicts: Verdicts) -> tuple[list[PromptResult], Counter]:
    """What the verdicts say of every prompt, as the run itself would have said it where its rollouts suffice."""

    def told(items: Sequence[Item]) -> Future[list[Verdict]]:
        answer: Future[list[Verdict]] = Future()
        answer.set_result(verdicts.at(stored.index.find([live.request_of(item) for item in items])))
        return answer

    store, nothing = stored.store, live.FromStore()
    found = {f.prompt.id: f for f in live.run(job.procedure, stored.prompts, nothing, told, store)}
    short = [prompt for prompt in stored.prompts if prompt.id not in found]
    checks = {}
    if job.naive_check:
        had = {i: f.drawn[np.asarray(job.procedure.grid) == 1.0].sum(keepdims=True) for i, f in found.items()}
        whole = [prompt for prompt in stored.prompts if prompt.id in found]
        naive = live.run(Naive(job.naive_check), whole, nothing, told, store, spoken_for=had)
        checks = {f.prompt.id: f for f in naive}
    for prompt in short:
        found[prompt.id], check = _of_all(job, prompt, stored.index, verdicts)
        if check is not None:
            checks[prompt.id] = check
    ordered = [found[prompt.id] for prompt in stored.prompts]
    results = results_of(
        job,
        [(f, result_of(job, f, stored.truth.get(f.prompt.id), job.judge_quality)) for f in ordered],
        checks,
        stored.truth,
    )
    elsewhere = {prompt.id for prompt in short}
    why = ELSEWHERE if stored.record["status"] == "finished" else BEGUN
    results = [dataclasses.replace(r, note=why) if r.prompt_id in elsewhere else r for r in results]
    return results, phases_of([*ordered, *checks.values()])


def _of_all(job: Job, prompt: Prompt, index: Index, verdicts: Verdicts) -> tuple[live.Finished, live.Finished | None]:
    """One prompt from whatever was drawn of it, and naive rollouts beside where its procedure does not fit to those."""
    grid = np.asarray(job.procedure.grid)
    alphas, places = index.of_prompt(prompt.id)
    fitted = np.isin(alphas, grid)
    counts, tally = _judged(grid, places[fitted], index, verdicts)
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
    finished = _finished(prompt, estimate, fit, search, alphas[fitted], grid, tally)
    if fitted.all():
        return finished, None
    one = np.ones(1)
    counts, tally = _judged(one, places[~fitted], index, verdicts)
    return finished, _finished(prompt, estimate, counts, None, alphas[~fitted], one, tally)


def _judged(grid: np.ndarray, places: np.ndarray, index: Index, verdicts: Verdicts) -> tuple[Counts, live.Tally]:
    """Counts and more of the rollouts at places [n], which were drawn at alphas of the grid."""
    scored, complied, tally = np.zeros(len(grid)), np.zeros(len(grid)), live.Tally()
    for begin in range(0, len(places), AT_ONCE):
        some = places[begin : begin + AT_ONCE]
        for rollout, verdict in zip(index.fetch(some), verdicts.at(some), strict=True):
            tally.add(rollout, verdict)
            cell = int(np.flatnonzero(grid == rollout.alpha)[0])
            scored[cell] += verdict.outcome is not Outcome.UNSCORED
            complied[cell] += verdict.outcome is Outcome.COMPLIED
    return Counts(grid, scored, complied), tally


def _finished(
    prompt: Prompt,
    estimate: Any,
    fit: Counts,
    search: Counts | None,
    alphas: np.ndarray,
    grid: np.ndarray,
    tally: live.Tally,
) -> live.Finished:
    drawn = (alphas == grid[:, None]).sum(axis=1)
    estimate = dataclasses.replace(estimate, rollouts=np.asarray(len(alphas)))
    return tally.finished(prompt, estimate, fit, search, drawn)


def _truth(folder: Path, record: Mapping[str, Any]) -> dict[str, _Truth]:
    """The truths that a run's own table tells of, where they are known.

    Raises:
      RunError: it is not the table that was written.
    """
    data = read_made(folder, record, CSV)
    if data is None:
        if record["status"] == "finished":
            raise RunError(f"{folder / CSV} is missing or damaged: its sha256 is not the one in run.json; {CURE}")
        return {}
    try:
        rows = rows_of(data, folder / CSV)
        known = {row["prompt_id"]: float(row["truth"]) for row in rows if row.get("truth")}
    except (ValueError, KeyError):
        raise RunError(f"{folder / CSV} is no table of a run") from None
    return {prompt_id: _Truth(math.log10(rate)) for prompt_id, rate in known.items() if rate > 0}
