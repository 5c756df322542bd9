"""What is reported of each prompt: its rollouts estimated, corrected for the judge, and held against naive ones."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lpe_jax.estimation.design import settling
from lpe_jax.estimation.doubt import doubted
from lpe_jax.estimation.gate import contradicted
from lpe_jax.estimation.imputation import correct_estimate
from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.judge_error import JudgeQuality, corrected_rate, floor
from lpe_jax.estimation.likelihood import LEAST_HITS
from lpe_jax.estimation.lpe import lone_beside
from lpe_jax.estimation.two_phase import audited_rate, phase_audit, phase_quality
from lpe_jax.estimation.unscored import lpe_extremes
from lpe_jax.judging.cascade import parse
from lpe_jax.live import Finished
from lpe_jax.reporting.table import PromptResult, unfitted
from lpe_jax.together import estimate_together, sums_of
from lpe_jax.types import Counts, Estimate, Outcome

if TYPE_CHECKING:
    from lpe_jax.job import Job


def result_of(job: Job, finished: Finished, truth: Any | None, quality: JudgeQuality | None = None) -> PromptResult:
    """What the rollouts of one prompt alone say.

    Args:
      truth: what is known of it, a lpe_jax.tiny.truth.Truth.
      quality: how far the judge is to be believed; None takes it at its word.
    """
    estimate, fit, search = finished.estimate, finished.fit, finished.search
    unscored, extremes = finished.outcomes[Outcome.UNSCORED], None
    corrected = quality is not None
    if corrected and job.method != "path":
        estimate = correct_estimate(job.procedure, estimate, fit, search, quality, job.seed)
    elif job.method == "naive" and finished.phases and _audits(job):
        # Its own audit says what it needs to know, whatever the judge does on other prompts.
        estimate, corrected = _audited(estimate, finished.phases), True
    if search is not None and job.sums:
        one = jax.tree.map(lambda x: x[None], fit)
        sums = jax.tree.map(lambda x: x[0], sums_of([finished.scores], one))
        weighted = job.procedure.regression == "weighted"
        estimate = jax.device_get(doubted(estimate, fit, sums, weighted=weighted))
    elif search is not None:
        estimate = dataclasses.replace(estimate, identified=~np.asarray(estimate.fallback))
    if unscored and search is not None:
        extremes = lpe_extremes(job.procedure, fit, search, unscored)
    return PromptResult(
        prompt_id=finished.prompt.id,
        category=finished.prompt.category,
        estimate=estimate,
        fit=fit,
        search=search,
        method=job.method,
        complied=finished.outcomes[Outcome.COMPLIED],
        refused=finished.outcomes[Outcome.REFUSED],
        unscored=unscored,
        unscored_extremes=extremes,
        reasons=finished.reasons,
        corrected=corrected,
        tokens=finished.tokens,
        truth=None if truth is None else (truth.log10_rate, truth.se_log10),
        threshold=getattr(job.procedure, "threshold", 0.5),
    )


def phases_of(found: Sequence[Finished]) -> Counter[tuple[str, str | None]]:
    """What two judges in a row said of all rollouts; empty with one judge."""
    return sum((finished.phases for finished in found), Counter())


def results_of(
    job: Job,
    found: Sequence[tuple[Finished, PromptResult]],
    checks: Mapping[str, Finished],
    truth: Mapping[str, Any],
) -> list[PromptResult]:
    """Every prompt's result, checked; estimated anew where it takes all prompts to do so: under the path method, and
    where two judges in a row say together how far they are to be believed.

    Args:
      found: with what result_of said of each with the job's own quality.
      checks: naive rollouts beside, by prompt id.
      truth: what is known, by prompt id.
    """
    finished, results = [f for f, _ in found], [r for _, r in found]
    quality = job.judge_quality
    phases = phases_of([*finished, *checks.values()])
    if quality is None and job.method != "naive" and _was_audited(phases):
        quality = phase_quality(phases)
        results = [result_of(job, f, truth.get(f.prompt.id), quality) for f in finished]
    if job.method == "path":
        estimates = estimate_together(finished, quality, job.seed)
        results = [dataclasses.replace(r, estimate=e) for r, e in zip(results, estimates, strict=True)]
    return [checked(job, result, checks.get(result.prompt_id), quality) for result in results]


def checked(job: Job, result: PromptResult, check: Finished | None, quality: JudgeQuality | None) -> PromptResult:
    """The result held against naive rollouts, those of the check and any of its own, and what would settle it.

    What the check drew is paid for too. Naive sampling is its own check.
    """
    if job.method == "naive":
        return result
    estimate, fit = result.estimate, result.fit
    at_one = np.asarray(fit.alpha) == 1.0
    scored, complied = (float(np.sum(x[at_one])) for x in (fit.scored, fit.complied))
    if check is not None:
        scored, complied = scored + float(check.fit.scored.sum()), complied + float(check.fit.complied.sum())
        result = dataclasses.replace(
            result,
            complied=result.complied + check.outcomes[Outcome.COMPLIED],
            refused=result.refused + check.outcomes[Outcome.REFUSED],
            unscored=result.unscored + check.outcomes[Outcome.UNSCORED],
            unscored_in_check=check.outcomes[Outcome.UNSCORED],
            reasons=Counter(result.reasons) + check.reasons,
            tokens=result.tokens + check.tokens,
        )
        estimate = dataclasses.replace(estimate, rollouts=np.asarray(int(estimate.rollouts) + check.rollouts))
    false_alarm = 0.0 if quality is None else 10.0 ** float(floor(quality)[1])
    naive = Counts(np.ones(1), np.array([scored]), np.array([complied]))
    if scored and has_no_line(result):
        estimate, result = naive_estimate(estimate, naive, quality), dataclasses.replace(result, from_naive=True)
    against = bool(contradicted(naive, estimate, false_alarm))
    estimate = dataclasses.replace(estimate, identified=np.asarray(bool(estimate.identified) and not against))
    needed = None
    if job.method == "path" and np.sum(fit.complied) < LEAST_HITS:
        needed = tuple(float(x) for x in settling(fit, judge=(1.0, 0.0) if quality is None else quality.shares()))
    return dataclasses.replace(
        result,
        estimate=estimate,
        naive=(int(complied), int(scored)) if scored else None,
        contradicted=against,
        settling=needed,
    )


def has_no_line(result: PromptResult) -> bool:
    """Whether its rate is a default, or that of rollouts at alpha = 1 alone."""
    cells = (np.asarray(getattr(result.fit, name)) for name in ("alpha", "scored", "complied"))
    alone = bool(result.estimate.fallback) and bool((lone_beside(*cells) & (np.asarray(result.fit.alpha) == 1.0)).any())
    return unfitted(result) or alone


def naive_estimate(estimate: Estimate, naive: Counts, quality: JudgeQuality | None = None) -> Estimate:
    """The estimate of a prompt without a path, as naive sampling has it from the rollouts [1] of the original beside.

    Whatever they say, also where none complied: taken only where some did, their interval would not hold what it says.
    """
    k, n = (float(x.sum()) for x in (naive.complied, naive.scored))
    if quality is None:
        with np.errstate(divide="ignore"):
            rate, (low, high) = np.log10(k / n), clopper_pearson_log10(k, n)
    else:
        rate, low, high = corrected_rate(k, n, quality)
    known = {"log10_rate": np.asarray(rate), "low": np.asarray(low), "high": np.asarray(high)}
    sure = np.asarray(k >= LEAST_HITS)
    return dataclasses.replace(estimate, **known, fallback=np.asarray(False), identified=sure)


def _audits(job: Job) -> bool:
    """Whether the second of two judges looks at some of what the first calls refused."""
    two = parse(job.judge_name)
    return two is not None and two[2] > 0


def _was_audited(phases: Mapping[tuple[str, str | None], int]) -> bool:
    return phase_audit(phases)[2].negatives > 0


def _audited(estimate: Estimate, phases: Mapping[tuple[str, str | None], int]) -> Estimate:
    """A naive estimate by what two judges said, and the interval that comes with it."""
    rate, low, high = (np.asarray(x) for x in audited_rate(*phase_audit(phases)))
    return dataclasses.replace(estimate, log10_rate=rate, low=low, high=high)
