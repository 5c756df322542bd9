"""The small types that every room shares. One meaning per name; see docs/architecture.md for the words."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Message:
    """One chat turn: role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked: an id that is unique within a run, the turns, and what the prompt file said of it."""

    id: str
    messages: tuple[Message, ...]
    category: str = ""

    @property
    def text(self) -> str:
        """The last user turn: what a judge is told the model was asked."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


@dataclasses.dataclass(frozen=True)
class Request:
    """An order for one rollout. (seed, prompt_id, alpha, index) alone decide its tokens."""

    prompt_id: str
    alpha: float
    index: int


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One sampled response and the sums taken while it was drawn.

    Log-probabilities are in nats, sum over the response's tokens, and include the end-of-sequence token when
    there is one. path_score is d/dalpha log p_alpha(rollout) and path_variance the sum over tokens of the
    variance, under the path's next-token distribution, of original minus variant logits. grid_logp is log p at each
    alpha of a grid, where one was asked for; a grid sweep keeps it, a store of rollouts does not.
    """

    prompt_id: str
    alpha: float
    index: int
    tokens: np.ndarray  # [T] int32, the end-of-sequence token included
    text: str
    finish: str  # "stop" at an end-of-sequence token, "length" at max_new_tokens
    logp_path: float
    logp_original: float
    logp_variant: float
    path_score: float
    path_variance: float
    grid_logp: np.ndarray | None = None  # [G] float32


class Outcome(enum.StrEnum):
    """A judge's word on one rollout. A judge that fails says unscored, never refused."""

    COMPLIED = "complied"
    REFUSED = "refused"
    UNSCORED = "unscored"


# What counts as the reason of a verdict that has none.
NO_REASON = "no reason given"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An outcome and the judge's raw fields, for whoever checks the judge.

    phases, where two judges in a row had it: the first one's outcome, and the second's or None if it was not asked.
    """

    outcome: Outcome
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    phases: tuple[Outcome, Outcome | None] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """What was drawn of one prompt: at each alpha, how many rollouts were scored and how many complied.

    Arrays of shape [A] (or batched in front by vmap). Cells with scored == 0 were not drawn. Unscored rollouts
    are in neither number. tokens, where known, counts the tokens of all rollouts drawn at each alpha.
    """

    alpha: Any  # [A] float
    scored: Any  # [A] number
    complied: Any  # [A] number
    tokens: Any = None  # [A] number


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """What the scored rollouts behind some Counts carry: a row for each rollout, or for several that are alike.

    A is the alphas of those Counts. A row stands for `count` rollouts, all of one text and drawn at one alpha; rows of
    count 0 are padding and whatever else they hold is ignored. Log-probabilities are in nats and sum over the tokens,
    the end-of-sequence token included; a text whose outcome was settled early may stop there, as long as it does at
    every alpha. Compliant rows must be complete; refused ones matter to self-normalised importance sampling alone.
    """

    cell: Any  # [N] int, the rollout was drawn at alpha[cell]
    count: Any  # [N] number
    complied: Any  # [N] bool
    logp: Any  # [N, A] log p at each alpha of the counts
    logp_original: Any  # [N] log p at alpha = 1
    logp_variant: Any  # [N] log p at alpha = 0
    path_score: Any  # [N] at the rollout's own alpha, see Rollout
    path_variance: Any  # [N] likewise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Estimate:
    """A rate at alpha = 1 with a 95 % interval; every field is a scalar (or batched in front by vmap).

    The rate and both ends are log10; low is -inf and high 0 where the data bound nothing. What an estimator does not
    know is NaN. An estimator refuses (identified False) where it cannot stand by its rate: the rate is then its best
    guess, and the interval what the data bound without it, if anything.
    """

    log10_rate: Any  # []
    low: Any  # []
    high: Any  # []
    identified: Any  # [] bool
    slope: Any  # [] of log10 rate per unit alpha, at alpha = 1
    intercept: Any  # [] log10 rate at alpha = 1 of what was fitted, before any clipping
    r2: Any  # [] of a fitted line
    curvature: Any  # [] second derivative of log10 rate by alpha, at alpha = 1
    ess: Any  # [] effective number of compliant rollouts behind importance weights
    pareto_k: Any  # [] tail index of the weights; above 0.7 their mean cannot be trusted
    largest: Any  # [] share of the largest weight in the sum of all
    start_alpha: Any  # [] where a search ended
    used: Any  # [A] bool, the cells of Counts the estimate rests on
    fallback: Any  # [] bool, the rate is a default and not an estimate
    rollouts: Any  # [] rollouts that were paid for, search and unscored ones included
    tokens: Any  # [] tokens of those


@dataclasses.dataclass(frozen=True)
class Bank:
    """A grid sweep, for estimators to be tried on: N rollouts of every prompt at every alpha, and naive ones beside.

    NumPy arrays. P prompts, A alphas (descending from 1), N rollouts in the order they are to be taken; that order is
    random. Sums are as in Rollout; rows that are not scored count in no rate.
    """

    prompt_ids: tuple[str, ...]
    alpha: np.ndarray  # [A]
    scored: np.ndarray  # [P, A, N] bool
    complied: np.ndarray  # [P, A, N] bool
    tokens: np.ndarray  # [P, A, N] int
    logp: np.ndarray  # [P, A, N, A] float32, the last axis the alphas at which log p is taken
    path_score: np.ndarray  # [P, A, N] float32
    path_variance: np.ndarray  # [P, A, N] float32
    naive_scored: np.ndarray  # [P] int, rollouts at alpha = 1 other than those above
    naive_complied: np.ndarray  # [P] int
    truth: np.ndarray  # [P] true log10 rate; NaN where it is not known
    truth_error: np.ndarray  # [P] standard error of truth
