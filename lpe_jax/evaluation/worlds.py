"""Worlds to judge estimators on, of which everything is known and which need no model.

A prompt of such a world is a finite set of kinds of rollout, each of which complies or does not. On the whole path from
variant (alpha = 0) to original (alpha = 1) the probability of each kind is a formula, exactly normalised at every
alpha, and so are its first two derivatives by alpha. Rates, importance weights, path scores and path variances are
therefore exact, and true rates of 1e-7 cost nothing. Estimators know nothing of kinds: they see a Bank, as of a model.

True log10 rates are uniform between -7.5 and -1 ("hidden" adds to them). Where on the path compliance sets in varies
apart from them, by the cap or by how sure the variant is of each decision: one factor behind both would let a count at
one fixed alpha rank prompts as well as any estimator.

Tuning and reporting: every family is there for both, and the seed separates them. Whatever is chosen (a threshold, a
prior, a gate) is chosen on seeds from FIRST_TUNING_SEED = 1000 up; what is reported is measured on seeds below it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lpe_jax.evaluation.drift import add_drift
from lpe_jax.types import Bank

FAMILIES = {
    "stages": "a true logit mixture: 1 to 4 decisions in a row, all to be passed, of independent severities",
    "shallow": "stages with one dominating decision: log rate nearly linear in alpha",
    "deep": "four grave stages: log rate concave, so that a line overestimates",
    "linear": "log rate exactly linear in alpha, up to a cap",
    "concave": "log rate quadratic in alpha up to a cap, falling ever faster towards the original",
    "convex": "log rate quadratic in alpha up to a cap, levelling off towards the original",
    "floor": "shallow, seen through a judge that errs: false-positive rate 1e-3, sensitivity 0.95",
    "hidden": "shallow, and a second route to compliance that is taken only right beside the original",
    "mixed": "linear, concave and stages prompts in turn",
}
FIRST_TUNING_SEED = 1000
ALPHAS = tuple(np.round(np.linspace(1, 0, 21), 9).tolist())
CAP = 0.95  # the rate of linear, concave and convex prompts at the variant
FALSE_POSITIVE, SENSITIVITY = 1e-3, 0.95  # of the judge of "floor"
REFUSED_TOKENS, COMPLIED_TOKENS = 12, 35  # Poisson means

_MIXED = ("linear", "concave", "stages")
_BENDS = {"linear": (0.0, 0.0), "concave": (0.2, 0.8), "convex": (-0.8, -0.2)}


@dataclasses.dataclass(frozen=True)
class PromptWorld:
    """The J kinds of rollout that a prompt has, at A alphas: float64, natural logs.

    score is d/dalpha log p and variance -d²/dalpha² log p. Of a mixture of logits (the stages) the latter is the path
    variance, the sum over the tokens of the variance of D. The other families are no mixtures of logits, and the
    definition by the derivative stands in; it may be negative there, as it is of convex prompts. Either way
    d/dalpha log P(C) = E[score | C] and d²/dalpha² log P(C) = Var(score | C) - E[variance | C].
    """

    complied: np.ndarray  # [J] bool
    logp: np.ndarray  # [A, J]
    score: np.ndarray  # [A, J]
    variance: np.ndarray  # [A, J]

    @property
    def log_rate(self) -> np.ndarray:
        """[A] log P_alpha(C), exact."""
        return np.logaddexp.reduce(self.logp[:, self.complied], axis=1)


def simulate(
    family: str,
    *,
    seed: int,
    prompts: int = 200,
    n: int = 1000,
    n_naive: int = 100_000,
    alphas: tuple[float, ...] = ALPHAS,
    stages: int | None = None,
    tau: float = 0.0,
) -> Bank:
    """A grid sweep of a world: `n` rollouts of each of `prompts` prompts at each alpha, `n_naive` beside at alpha = 1.

    Args:
      family: one of FAMILIES.
      seed: decides everything; see above for which seeds to tune on. A prompt depends on (family, seed, its place)
        alone, so that more prompts or rollouts keep the true rates. "floor" is the same world as "shallow".
      alphas: strictly descending from 1 to 0.
      stages: how many stages every prompt has that would draw it from 1 to 4 ("deep" has four whatever is said here).
      tau: style drift in nats; see lpe_jax.evaluation.drift.

    Returns a Bank in which everything is scored, with the exact truth (error 0) and `n_naive` exact binomial draws.
    What complied is the judge's word, who errs in "floor"; the truth is the rate that a perfect judge would see.
    At 200 prompts, 21 alphas and 1000 rollouts logp takes 353 MB (and twice as much for a while, with drift).
    """
    alpha = np.asarray(alphas, float)
    if alpha.ndim != 1 or len(alpha) < 2 or alpha[0] != 1 or alpha[-1] != 0 or not np.all(np.diff(alpha) < 0):
        raise ValueError(f"alphas must descend strictly from 1 to 0, and are {tuple(alphas)}.")
    for name, value, least in (("seed", seed, 0), ("prompts", prompts, 1), ("n", n, 1), ("n_naive", n_naive, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, and is {value}.")
    shape = (prompts, len(alpha), n)
    complied, tokens = np.empty(shape, bool), np.empty(shape, np.int32)
    logp = np.empty((*shape, len(alpha)), np.float32)
    score, variance = np.empty(shape, np.float32), np.empty(shape, np.float32)
    naive, truth = np.empty(prompts, np.int64), np.empty(prompts)
    for p in range(prompts):
        world = prompt_world(family, alpha, seed=seed, index=p, stages=stages)
        draws, judge = np.random.default_rng([seed, p, 1]), np.random.default_rng([seed, p, 2])
        kind = _draw(draws, world.logp, n)
        logp[p] = world.logp.T.astype(np.float32)[kind]
        score[p] = np.take_along_axis(world.score, kind, axis=1)
        variance[p] = np.take_along_axis(world.variance, kind, axis=1)
        complies = world.complied[kind]
        tokens[p] = 1 + draws.poisson(np.where(complies, COMPLIED_TOKENS, REFUSED_TOKENS) - 1)
        rate = math.exp(world.log_rate[0])
        truth[p] = world.log_rate[0] / math.log(10)
        if family == "floor":
            complies = judge.random(complies.shape) < np.where(complies, SENSITIVITY, FALSE_POSITIVE)
            rate = SENSITIVITY * rate + FALSE_POSITIVE * (1 - rate)
        complied[p] = complies
        naive[p] = draws.binomial(n_naive, rate)
    bank = Bank(
        prompt_ids=tuple(f"{_member(family, p)}-{seed}-{p:04d}" for p in range(prompts)),
        alpha=alpha,
        scored=np.ones(shape, bool),
        complied=complied,
        tokens=tokens,
        logp=logp,
        path_score=score,
        path_variance=variance,
        naive_scored=np.full(prompts, n_naive),
        naive_complied=naive,
        truth=truth,
        truth_error=np.zeros(prompts),
    )
    return add_drift(bank, tau, seed)


def prompt_world(
    family: str, alpha: np.ndarray, *, seed: int, index: int = 0, stages: int | None = None
) -> PromptWorld:
    """The prompt at place `index` of simulate(family, seed=seed, stages=stages), at any alphas [A].

    Raises ValueError for an unknown family and for stages that are no number of stages.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, and is {family!r}.")
    if stages is not None and stages < 1:
        raise ValueError(f"stages must be at least 1, and is {stages}.")
    alpha, member = np.asarray(alpha, float), _member(family, index)
    rng = np.random.default_rng([seed, index, 0])
    log_rate = rng.uniform(-7.5, -1) * math.log(10)
    if member in _BENDS:
        bend = rng.uniform(*_BENDS[member])
        return _binary(*_quadratic(alpha, log_rate, bend, capped=rng.uniform(0, 0.4)))
    drawn = int(rng.integers(1, 5))
    count = 4 if member == "deep" else stages or drawn
    # What share of the log rate each stage has: about equal ones of four grave stages, one large one, or any.
    share = rng.dirichlet(np.full(count, 4.0 if member == "deep" else 1.0))
    if member not in ("deep", "stages"):
        leader = rng.uniform(0.85, 1) if count > 1 else 1.0
        share = rng.permutation(np.append(leader, (1 - leader) * rng.dirichlet(np.ones(count - 1))))
    world = _stages(alpha, _logit(share * log_rate), 2 + rng.exponential(2, count))
    if member == "hidden":
        log_reach, steepness = rng.uniform(-5, -3) * math.log(10), rng.uniform(40, 80)
        route = log_reach - steepness * (1 - alpha)
        return _first(_binary(route, np.full_like(alpha, steepness), np.zeros_like(alpha)), world)
    return world


def _member(family: str, index: int) -> str:
    """The family that the prompt at place `index` belongs to."""
    return _MIXED[index % len(_MIXED)] if family == "mixed" else family


def _draw(rng: np.random.Generator, logp: np.ndarray, n: int) -> np.ndarray:
    """[A, n] int: kinds drawn with probabilities exp(logp) [A, J]."""
    ends = np.cumsum(np.exp(logp), axis=1)[:, None, :-1]
    return np.sum(rng.random((len(logp), n, 1)) >= ends, axis=2)


def _logit(logp: np.ndarray) -> np.ndarray:
    """The log-odds of a log-probability."""
    return logp - np.log(-np.expm1(logp))


def _stages(alpha: np.ndarray, original: np.ndarray, variant: np.ndarray) -> PromptWorld:
    """Decisions whose log-odds of passing [K] are mixed: the rollout passes all, or fails at the first it fails at.

    Kind j < K passes j decisions and fails the next; kind K passes all and complies.
    """
    apart = original - variant  # [K]: D of passing, where D of failing is 0
    odds = variant + alpha[:, None] * apart  # [A, K]
    log_pass, log_fail = -np.logaddexp(0, -odds), -np.logaddexp(0, odds)
    passing, failing = np.exp(log_pass), np.exp(log_fail)
    spread = apart**2 * passing * failing

    def kinds(if_passed, if_failed):
        """[A, K + 1]: a sum over the decisions taken, of what each adds [A, K]."""
        before = np.cumsum(np.pad(if_passed, ((0, 0), (1, 0))), axis=1)
        return before + np.pad(if_failed, ((0, 0), (0, 1)))

    return PromptWorld(
        complied=np.arange(len(apart) + 1) == len(apart),
        logp=kinds(log_pass, log_fail),
        score=kinds(apart * failing, -apart * passing),
        variance=kinds(spread, spread),
    )


def _quadratic(alpha: np.ndarray, log_rate: float, bend: float, capped: float) -> tuple[np.ndarray, ...]:
    """[A] log P and its first two derivatives by alpha: CAP up to alpha = capped, then a parabola to log_rate at 1.

    With t = (alpha - capped) / (1 - capped) and drop = log CAP - log_rate it is log P = log CAP - drop ((1 - bend) t
    + bend t²), which falls all the way for |bend| <= 1. Its second derivative is -2 bend drop / (1 - capped)².
    """
    width, drop = 1 - capped, math.log(CAP) - log_rate
    t = np.maximum((alpha - capped) / width, 0)
    below = t > 0
    slope = -drop * ((1 - bend) + 2 * bend * t) / width
    return (
        math.log(CAP) - drop * ((1 - bend) * t + bend * t**2),
        np.where(below, slope, 0.0),
        np.where(below, -2 * bend * drop / width**2, 0.0),
    )


def _binary(log_rate: np.ndarray, slope: np.ndarray, curvature: np.ndarray) -> PromptWorld:
    """Two kinds, complied and refused, from log P and its first two derivatives [A]."""
    odds = np.exp(_logit(log_rate))
    return PromptWorld(
        complied=np.array([True, False]),
        logp=np.stack([log_rate, np.log(-np.expm1(log_rate))], axis=1),
        score=np.stack([slope, -slope * odds], axis=1),
        variance=np.stack([-curvature, curvature * odds + slope**2 * odds * (1 + odds)], axis=1),
    )


def _first(route: PromptWorld, world: PromptWorld) -> PromptWorld:
    """The route's complied kind is taken first; whoever misses it enters the world."""

    def join(name):
        taken, missed = np.split(getattr(route, name), 2, axis=1)
        return np.append(taken, missed + getattr(world, name), axis=1)

    return PromptWorld(np.append(True, world.complied), join("logp"), join("score"), join("variance"))
