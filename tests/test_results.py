"""What a job makes of a prompt's rollouts: the doubt, the naive check, what would settle it."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from lpe_jax import job, results
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.errors import UserError
from lpe_jax.estimation.adaptive import Path
from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.estimation.likelihood import LEAST_HITS
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.pooled import ENOUGH
from lpe_jax.estimation.result import make_estimate
from lpe_jax.live import Finished
from lpe_jax.reporting import ground
from lpe_jax.reporting.table import PromptResult, notes
from lpe_jax.results import result_of
from lpe_jax.types import Counts, Message, Outcome, Prompt

ASKED = dict.fromkeys(field.name for field in dataclasses.fields(job.Asked) if field.default is field.default_factory)
PROMPT = Prompt("p", (Message("user", "?"),))
ALPHA = np.array([1.0, 0.6, 0.4, 0.2])


def asked(method="path", procedure=None, **more):
    return job.Job(program="estimate", method=method, procedure=procedure or Path(), **ASKED | {"seed": 0} | more)


def finished(fit, search=None, scores=None, estimate=None, unscored=0):
    scored, complied = (int(sum(getattr(c, name).sum() for c in (fit, search) if c)) for name in ("scored", "complied"))
    outcomes = {Outcome.COMPLIED: complied, Outcome.REFUSED: scored - complied, Outcome.UNSCORED: unscored}
    scores = np.zeros((0, 3)) if scores is None else scores
    total = scored + unscored
    why = Counter({"empty": unscored})
    return Finished(
        PROMPT, estimate, fit, search, outcomes, total, 10 * total, scores, np.asarray(fit.scored, int), why
    )


def path_result(complied=(0, 1, 8, 40), high=-3.0):
    fit = Counts(ALPHA, np.full(4, 100.0), np.array(complied, float))
    estimate = make_estimate(fit, np.array(-4.0), np.array(-5.0), np.array(high), used=fit.scored > 0)
    return PromptResult("p", estimate, fit, "path", complied=49, refused=351, tokens=4000)


def naive(complied, scored=100, unscored=0):
    return finished(Counts(np.ones(1), np.array([float(scored)]), np.array([float(complied)])), unscored=unscored)


def test_a_check_is_paid_for_and_told_and_changes_no_rate():
    result = path_result()
    checked = results.checked(asked(), result, naive(0, 90, 10), None)
    assert bool(checked.estimate.identified) and not checked.contradicted
    # With what the estimate itself has of alpha = 1.
    assert checked.naive == (0, 190)
    assert int(checked.estimate.rollouts) == 400 + 100 and checked.tokens == 4000 + 1000
    assert (checked.complied, checked.refused, checked.unscored) == (49, 351 + 90, 10)
    assert checked.estimate.log10_rate == result.estimate.log10_rate
    assert "some alpha" not in notes(checked)
    assert checked.reasons == {"empty": 10}


def test_naive_rollouts_that_the_estimate_cannot_explain_are_held_against_it():
    result = path_result()
    checked = results.checked(asked(), result, naive(6), None)
    assert checked.contradicted and not bool(checked.estimate.identified)
    assert "6 of 200 naive rollouts complied" in notes(checked)
    of_own = path_result(complied=(9, 1, 8, 40))
    assert results.checked(asked(), of_own, None, None).contradicted


def test_false_alarms_explain_naive_hits():
    result = path_result()
    quality = JudgeQuality(95, 100, 950, 1000)
    assert not results.checked(asked(), result, naive(6), quality).contradicted
    assert results.checked(asked(), result, naive(60), quality).contradicted


def test_too_few_hits_say_how_many_more_would_do():
    result = path_result(complied=(0, 0, 0, 2))
    result = dataclasses.replace(result, estimate=dataclasses.replace(result.estimate, identified=np.asarray(False)))
    checked = results.checked(asked(), result, naive(0), None)
    assert 0 < checked.settling[1] < 1e8 and "2 compliant rollouts to go by; " in notes(checked)


@pytest.mark.parametrize("quality", [None, JudgeQuality(10_000, 10_000, 10**6, 10**6)], ids=["taken", "corrected"])
def test_lines_are_doubted_with_and_without_a_correction(quality):
    """Scores that scatter far more than a straight path lets them: the line is refused, whoever judged."""
    procedure = LPE(n_fit=100)
    rate = np.minimum(10.0 ** (-6 * (procedure.grid - 0.1)), 0.9)
    hits = np.where(procedure.grid < 0.5, np.round(100 * rate), 0.0)
    drawn = np.where(procedure.grid < 0.56, 100.0, 0.0)
    fit, search = Counts(procedure.grid, drawn, hits), Counts(procedure.grid, 0 * drawn, 0 * drawn)
    rng = np.random.default_rng(0)
    alpha = np.repeat(procedure.grid, hits.astype(int))
    scores = np.stack([alpha, -14 + 12 * rng.normal(size=len(alpha)), np.full(len(alpha), 4.0)], axis=1)
    done = finished(fit, search, scores, procedure.fit(fit, search))
    result = result_of(asked("lpe", procedure), done, None, quality)
    assert not bool(result.estimate.identified)
    assert "may be far from straight" in notes(result)
    assert result.estimate.low < procedure.fit(fit, search).low < result.estimate.log10_rate


def test_path_scores_cannot_be_left_out_where_they_are_needed():
    with pytest.raises(UserError, match="--method=path rests on path scores"):
        asked(sums=False)
    lpe = asked("lpe", LPE(), sums=False)
    assert any("take the line at its word" in warning for warning in job._warnings(lpe, SamplingSettings(), 1))
    assert not job._warnings(dataclasses.replace(lpe, sums=True), SamplingSettings(), 1)


def test_few_prompts_that_are_estimated_together_are_said_to_be_few():
    def said(method, procedure, prompts):
        return " ".join(job._warnings(asked(method, procedure), SamplingSettings(), prompts))

    assert "3 prompts teach little of how paths bend" in said("path", Path(), 3)
    assert "1 prompt teaches little" in said("path", Path(), 1)
    assert not said("path", Path(), ENOUGH) and not said("lpe", LPE(), 3)


def unfitted_result(complied=0):
    """LPE's, whose fit saw nothing: the rate is the default."""
    fit = Counts(ALPHA[1:], np.array([0.0, 0.0, 100.0]), np.array([0.0, 0.0, float(complied)]))
    search = Counts(ALPHA[1:], np.full(3, 10.0), np.array([0.0, 0.0, 6.0]))
    return PromptResult("p", LPE(alphas=(0.6, 0.4, 0.2)).fit(fit, search), fit, "lpe", search=search)


@pytest.mark.parametrize("quality", [None, JudgeQuality(95, 100, 990, 1000)])
def test_naive_rollouts_stand_where_no_path_was_fitted(quality):
    """A default of one in a million beside 42 of 100 would be believed by nobody who saw both."""
    lpe = asked("lpe", LPE())
    found = results.checked(lpe, unfitted_result(), naive(42), quality)
    assert found.from_naive and bool(found.estimate.identified) and not bool(found.estimate.fallback)
    rate = 0.42 if quality is None else (0.42 - 0.01) / (0.95 - 0.01)
    assert 10 ** float(found.estimate.log10_rate) == pytest.approx(rate, abs=0.01)
    assert found.estimate.low < found.estimate.log10_rate < found.estimate.high and not found.contradicted
    assert "no line could be fitted: this is what the naive rollouts say, 42 of 100" in notes(found)


@pytest.mark.parametrize("quality", [None, JudgeQuality(95, 100, 970, 1000)])
def test_they_stand_whatever_they_say(quality):
    """Taken only where some complied, their interval would hold less than it says; and more hits rank no lower."""
    lpe, rates = asked("lpe", LPE()), []
    for hits in (0, 1, 2, 9, 10, 20):
        found = results.checked(lpe, unfitted_result(), naive(hits), quality)
        rates.append(float(found.estimate.log10_rate))
        assert found.from_naive and bool(found.estimate.identified) == (hits >= LEAST_HITS)
        assert float(found.estimate.high) > -2.5 and "fallback" not in notes(found)
        # None of them checks what was fitted, as nothing was.
        assert ground.against_naive([found]) is None
    assert rates == sorted(rates) and rates[0] == -np.inf
    unchecked = results.checked(lpe, unfitted_result(), None, quality)
    assert not unchecked.from_naive and float(unchecked.estimate.log10_rate) == -6 and "fallback" in notes(unchecked)


def test_what_unscored_naive_rollouts_could_change_is_said_of_that_rate():
    found = results.checked(asked("lpe", LPE()), unfitted_result(), naive(10, 95, 5), None)
    assert "rate 1.0e-01 had the naive ones all refused, 1.5e-01 had they all complied" in notes(found)


def test_a_lone_alpha_that_is_the_original_is_counted():
    """With --fit_to_one: its own rollouts and the check are of one kind."""
    fit = Counts(np.array([1.0, 0.95]), np.array([100.0, 100.0]), np.array([9.0, 0.0]))
    result = PromptResult(
        "p", LPE(alphas=(1.0, 0.95)).fit(fit), fit, "lpe", search=Counts(fit.alpha, 0 * fit.scored, 0 * fit.scored)
    )
    found = results.checked(asked("lpe", LPE()), result, naive(11), None)
    assert found.from_naive and 10 ** float(found.estimate.log10_rate) == pytest.approx(20 / 200)


def test_a_lone_alpha_beside_the_original_has_its_own_interval():
    """However few comply at alphas below: there the rate does rise with alpha."""
    counts = Counts(np.array([0.95, 0.9, 0.8, 0.7]), np.full(4, 100.0), np.array([2.0, 0.0, 0.0, 0.0]))
    estimate = LPE(alphas=(0.95, 0.9, 0.8, 0.7)).fit(counts)
    assert 10 ** float(estimate.log10_rate) == pytest.approx(0.02) and 10 ** float(estimate.high) == pytest.approx(
        0.0704, abs=1e-3
    )


def test_what_is_common_beside_the_original_is_its_own_estimate():
    """The fit fell under the threshold that the search had reached, at the highest alpha."""
    fit = Counts(np.array([0.95, 0.9]), np.array([100.0, 0.0]), np.array([44.0, 0.0]))
    search = Counts(np.array([0.95, 0.9]), np.array([10.0, 0.0]), np.array([5.0, 0.0]))
    estimate = LPE(alphas=(0.95, 0.9)).fit(fit, search)
    assert 10 ** float(estimate.log10_rate) == pytest.approx(0.44)
    result = PromptResult("p", estimate, fit, "lpe", search=search)
    assert not results.checked(asked("lpe", LPE()), result, naive(42), None).from_naive
