"""The rate of anything that passes or fails: a pipeline of the user's own in the place of sampler and judge."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpe_jax.errors import RunError
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.procedure import Procedure
from lpe_jax.estimation.registry import estimate as estimate_by
from lpe_jax.records.chain import Chain
from lpe_jax.reporting.table import PromptResult, notes
from lpe_jax.reporting.text import format_interval
from lpe_jax.types import Counts, Estimate

Answer = int | tuple[int, int]
# The bending path is not stood by where its interval spans more decades. Chosen on simulated worlds of seed 1003.
MOST_DECADES = 2.0
_TAKEN_FOR_GRANTED = "the interval speaks of the noise in these counts and takes the line for granted"
_LEANS = (
    "successes and failures alone do not tell how far the path bends: the interval leans on paths that decisions in a "
    "row would make, and does not hold where log rate levels off towards alpha = 1"
)


@dataclasses.dataclass(frozen=True)
class Rate:
    """The rate at alpha = 1 with a 95 % interval, and what it rests on.

    Attributes:
      rate, low, high: shares of trials; rate is NaN where nothing was scored.
      identified: False where the trials do not tell the rate; note says why.
      note: what to know before trusting it; may be empty.
      trials: how many there were, unscored ones included.
      counts: trials that were scored and that succeeded, [A] at each alpha.
      estimate: all that the procedure says.
    """

    rate: float
    low: float
    high: float
    identified: bool
    note: str
    trials: int
    counts: Counts
    estimate: Estimate

    def __str__(self) -> str:
        ends = (float(x) for x in (self.estimate.log10_rate, self.estimate.low, self.estimate.high))
        return format_interval(*ends) + (f"; {self.note}" if self.note else "")


def estimate(
    evaluate: Callable[[float, int], Answer],
    procedure: Procedure | None = None,
    *,
    line: bool = False,
    record: Path | str | None = None,
) -> Rate:
    """How often something happens at alpha = 1 that `evaluate` counts anywhere on the path.

    evaluate(alpha, n) runs n independent trials of whatever is evaluated (a chat of several turns, an agent's task, a
    red-teaming loop) with the model at alpha, and returns how many succeeded; or (succeeded, scored) where some could
    not be scored, which are then in no rate. Success is the rare thing that is looked for.

    Args:
      procedure: what is asked of it and in which order: by default that of LPE as published
        (lpe_jax.estimation.lpe.LPE); there are lpe_jax.estimation.naive.Naive and lpe_jax.estimation.adaptive.Path.
      line: extrapolate LPE's trials by a straight line, as published. By default the path may bend, as successes and
        failures alone do not tell whether it does, and is identified where its interval spans MOST_DECADES or less.
        docs/estimators.md has what either is worth on simulated worlds, and where both fail.
      record: a file that keeps every answer as it comes. The same call goes on from it; answers to another procedure
        are refused.

    Raises:
      ValueError: an answer that no n trials can give; or a line is asked of a procedure that is not LPE's.
      RunError: the record is of another procedure, or damaged.
    """
    procedure = procedure or LPE()
    if line and not isinstance(procedure, LPE):
        raise ValueError(f"line=True goes with LPE, and the procedure is {type(procedure).__name__}.")
    chain = None if record is None else _opened(Path(record), procedure)
    known = iter([] if chain is None else chain.lines[1:])
    unscored, state = 0, _in_float64(procedure.init)
    after, following = jax.jit(procedure.update), jax.jit(procedure.next)
    draw = _in_float64(following, state)
    while (n := int(draw.n)) > 0:
        alpha = float(procedure.grid[int(draw.cell)])
        if (answer := next(known, None)) is None:
            complied, scored = _counted(evaluate(alpha, n), alpha, n)
            if chain is not None:
                chain.append({"alpha": alpha, "n": n, "succeeded": complied, "scored": scored})
        else:
            complied, scored = _recalled(answer, alpha, n, chain.path)
        unscored += n - scored
        state = _in_float64(after, state, draw, np.int32(scored), np.int32(complied))
        draw = _in_float64(following, state)
    found = _in_float64(procedure.estimate, state)
    fit, search = _in_float64(procedure.parts, state)
    counts = _in_float64(procedure.counts, state)
    note = ""
    if search is not None and not line and np.sum(counts.scored):
        found, fit, search, note = _bending(found, counts), counts, None, _LEANS
    elif search is not None:
        found = dataclasses.replace(found, identified=~np.asarray(found.fallback))
        note = "" if bool(found.fallback) else _TAKEN_FOR_GRANTED
    return _rate(procedure, found, fit, search, unscored, counts, note)


def _bending(found: Estimate, counts: Counts) -> Estimate:
    """The bending path through all trials [A]; where the search for them ended, and what they were, stays."""
    bent = jax.device_get(estimate_by("bend", counts))
    narrow = np.asarray(float(bent.high) - float(bent.low) <= MOST_DECADES)
    kept = {"start_alpha": found.start_alpha, "rollouts": found.rollouts}
    return dataclasses.replace(bent, identified=np.asarray(bool(bent.identified) and bool(narrow)), **kept)


def _in_float64(function: Callable, *arguments: Any) -> Any:
    """As estimation computes; not around what the user runs, which computes as it likes."""
    with float64():
        return jax.device_get(function(*arguments))


def _rate(
    procedure: Procedure,
    found: Estimate,
    fit: Counts,
    search: Counts | None,
    unscored: int,
    counts: Counts,
    note: str,
) -> Rate:
    scored, complied = int(np.sum(counts.scored)), int(np.sum(counts.complied))
    result = PromptResult(
        prompt_id="",
        estimate=found,
        fit=fit,
        search=search,
        method=_method(procedure, search),
        complied=complied,
        refused=scored - complied,
        unscored=unscored,
        threshold=getattr(procedure, "threshold", 0.5),
        note=note,
    )
    rate, low, high = (10.0 ** float(x) for x in (found.log10_rate, found.low, found.high))
    return Rate(rate, low, high, bool(found.identified), notes(result), scored + unscored, counts, found)


def _method(procedure: Procedure, search: Counts | None) -> str:
    """What notes are to call it."""
    if isinstance(procedure, LPE):
        return "bend" if search is None else "lpe"
    return "naive" if isinstance(procedure, Naive) else "path"


def _counted(answer: Answer, alpha: float, n: int) -> tuple[int, int]:
    pair = answer if isinstance(answer, tuple) else (answer, n)
    whole = len(pair) == 2 and all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in pair)
    if not whole or not 0 <= pair[0] <= pair[1] <= n:
        raise ValueError(
            f"evaluate({alpha:g}, {n}) returned {answer!r}; it must return how many of {n} trials succeeded, or "
            "(succeeded, scored)"
        )
    return int(pair[0]), int(pair[1])


def _opened(path: Path, procedure: Procedure) -> Chain:
    """The record, whose first line says what asks."""
    chain = Chain(path, cure="; move it away to ask anew")
    asks = {"procedure": f"{type(procedure).__name__} {json.dumps(dataclasses.asdict(procedure), sort_keys=True)}"}
    if not chain.lines:
        chain.append(asks)
    if chain.lines[0] != asks:
        raise RunError(f"{path} holds the answers to another procedure; name another file for this one")
    return chain


def _recalled(answer: Any, alpha: float, n: int, path: Path) -> tuple[int, int]:
    if not isinstance(answer, dict) or (answer.get("alpha"), answer.get("n")) != (alpha, n):
        raise RunError(f"{path} is damaged: an answer is not to what was asked at alpha = {alpha:g}")
    return _counted((answer.get("succeeded"), answer.get("scored")), alpha, n)
