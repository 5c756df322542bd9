"""Logit Path Extrapolation (Pernice and Aranguri 2026, appendix) as a pure state machine."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation.intervals import clopper_pearson_log10
from lpe_jax.estimation.line import fit_line, profile_interval
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.procedure import Draw
from lpe_jax.estimation.result import make_estimate
from lpe_jax.types import Counts, Estimate

SEARCH, FIT, DONE = 0, 1, 2
BESIDE_THE_ORIGINAL = 0.9


def lone_beside(alpha: Any, scored: Any, complied: Any) -> Any:
    """[A] bool, of arrays [A] of either kind: the one alpha with hits, where that is all there is, right beside the
    original with nothing scored above it. It is no line, but its own rate tells more than a default would.
    """
    hit = complied > 0
    top = alpha >= BESIDE_THE_ORIGINAL
    above = (alpha > (alpha * hit).sum()) & (scored > 0)
    return hit & top & (hit.sum() == 1) & ~above.any()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LPEState:
    """What has been drawn and judged so far, and where the sweep stands. Drawn minus scored is unscored."""

    search_drawn: Any  # [A] int32
    search_scored: Any  # [A] int32
    search_complied: Any  # [A] int32
    fit_drawn: Any  # [A] int32
    fit_scored: Any  # [A] int32
    fit_complied: Any  # [A] int32
    phase: Any  # [] int32: SEARCH, FIT or DONE
    cell: Any  # [] int32: the cell to draw next
    start: Any  # [] int32: the cell the fit started from; -1 before that, or if it never did


@dataclasses.dataclass(frozen=True)
class LPE:
    """The settings of LPE. The defaults are the post's; where the post is silent, the plainest reading of it.

    Search: from the highest alpha down, `n_search` rollouts each, until the rate reaches `threshold`. Fit: from
    that alpha back up, `n_fit` rollouts each, until an alpha yields none that complied. Then log10 rate is regressed
    on alpha over the alphas with compliant rollouts, and the line read off at alpha = 1. With fewer than two points
    the prediction is `fallback_rate`.

    What the post leaves open:
      reuse_search  search rollouts also count in the fit: each alpha is topped up to n_fit. Default: drawn anew.
      drop_common   points whose rate in the fit is >= threshold are drawn but not regressed on (main text: "compliance
                    below 50%"; the appendix keeps them), unless fewer than two points would be left.
      fit_to_one    the fit sweep goes on to alpha = 1 itself instead of ending at the highest alpha searched.
      no_start      no alpha reached the threshold: fit from the "lowest" alpha, or go straight to the "fallback".
      regression    "ols", or "weighted" by the inverse delta-method variance of each log rate.
      clip          a predicted rate above 1 is reported as 1 (`intercept` keeps the line's own value). Our choice: the
                    post only ranks prompts, for which it does not matter.
      unscored      rates are over scored rollouts. An alpha none of whose rollouts was scored tells nothing: the
                    search takes it as below the threshold, the fit passes over it, and both go on.

    alphas, if given, replaces first_alpha, step and last_alpha.
    """

    GROWS: ClassVar = ("n_search", "n_fit", "alphas")

    n_search: int = 10
    n_fit: int = 100
    first_alpha: float = 0.95
    step: float = 0.05
    last_alpha: float = 0.0
    alphas: tuple[float, ...] | None = None
    threshold: float = 0.5
    fallback_rate: float = 1e-6
    reuse_search: bool = False
    drop_common: bool = True
    fit_to_one: bool = False
    no_start: str = "lowest"
    regression: str = "ols"
    clip: bool = True

    def __post_init__(self):
        for name in ("n_search", "n_fit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if self.reuse_search and self.n_fit <= self.n_search:
            raise ValueError(
                f"reuse_search tops each alpha up to n_fit = {self.n_fit} rollouts, so n_fit must exceed "
                f"n_search = {self.n_search}."
            )
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, and is {self.threshold}.")
        if not 0 < self.fallback_rate <= 1:
            raise ValueError(f"fallback_rate must lie in (0, 1], and is {self.fallback_rate}.")
        if self.no_start not in ("lowest", "fallback"):
            raise ValueError(f'no_start must be "lowest" or "fallback", and is "{self.no_start}".')
        if self.regression not in ("ols", "weighted"):
            raise ValueError(f'regression must be "ols" or "weighted", and is "{self.regression}".')
        if self.alphas is not None:
            # Frozen, and hashed as a static argument: a list must become a tuple here.
            object.__setattr__(self, "alphas", tuple(float(alpha) for alpha in self.alphas))
        self.searched  # noqa: B018  it refuses alphas that cannot be

    @property
    def searched(self) -> tuple[float, ...]:
        """The alphas of the search, descending, as the decimals they are written as."""
        if self.alphas is not None:
            alphas = self.alphas
            if not alphas or not all(math.isfinite(alpha) for alpha in alphas):
                raise ValueError(f"alphas must be finite numbers, at least one, and are {alphas}.")
            if any(low >= high for high, low in itertools.pairwise(alphas)):
                raise ValueError(f"alphas must be strictly decreasing, and are {alphas}.")
            if alphas[0] > 1:
                raise ValueError(f"alphas must not exceed 1, the original, and start at {alphas[0]}.")
            return alphas
        first, step, last = self.first_alpha, self.step, self.last_alpha
        if not all(math.isfinite(value) for value in (first, step, last)):
            raise ValueError("first_alpha, step and last_alpha must be finite.")
        if not last < first <= 1:
            raise ValueError(f"last_alpha < first_alpha <= 1 must hold, and they are {last} and {first}.")
        if step <= 0:
            raise ValueError(f"step must be positive, and is {step}.")
        steps = round((first - last) / step)
        if abs(first - steps * step - last) > 1e-9:
            raise ValueError(f"step {step} does not lead from first_alpha {first} to last_alpha {last} evenly.")
        # Rounding gives 0.15 for 0.95 - 16 * 0.05, and + 0.0 turns -0.0 into 0.0.
        return tuple(round(first - i * step, 9) + 0.0 for i in range(steps + 1))

    @property
    def grid(self) -> np.ndarray:
        """[A] float64, descending: the alphas searched, with 1.0 in front if the fit goes on to it."""
        return np.array([1.0] * self._search_from + list(self.searched))

    @property
    def _search_from(self) -> int:
        return int(self.fit_to_one and self.searched[0] < 1)

    @property
    def most_per_cell(self) -> int:
        return self.n_fit if self.reuse_search else self.n_search + self.n_fit

    @property
    def most_rollouts(self) -> int:
        """Of a search that ends at the lowest alpha, and a fit that comes all the way up."""
        searched = 0 if self.reuse_search else len(self.searched) * self.n_search
        return searched + len(self.grid) * self.n_fit

    @property
    def fixed(self) -> bool:
        return False

    def init(self) -> LPEState:
        zeros = [jnp.zeros(len(self.grid), jnp.int32) for _ in range(6)]
        return LPEState(*zeros, *(jnp.asarray(i, jnp.int32) for i in (SEARCH, self._search_from, -1)))

    def next(self, state: LPEState) -> Draw:
        n_fit = self.n_fit - (state.search_drawn[state.cell] if self.reuse_search else 0)
        n = jnp.where(state.phase == SEARCH, self.n_search, jnp.where(state.phase == FIT, n_fit, 0))
        return Draw(state.cell, n.astype(jnp.int32))

    def update(self, state: LPEState, draw: Draw, scored: jax.Array, complied: jax.Array) -> LPEState:
        """A pure step. Results of a draw of n == 0 leave the state as it is."""
        size = len(self.grid)
        searching, fitting = (state.phase == phase for phase in (SEARCH, FIT))
        here = jnp.arange(size) == draw.cell

        def add(total, value, now):
            return total + jnp.where(here & now, jnp.asarray(value, jnp.int32), 0)

        state = LPEState(
            search_drawn=add(state.search_drawn, draw.n, searching),
            search_scored=add(state.search_scored, scored, searching),
            search_complied=add(state.search_complied, complied, searching),
            fit_drawn=add(state.fit_drawn, draw.n, fitting),
            fit_scored=add(state.fit_scored, scored, fitting),
            fit_complied=add(state.fit_complied, complied, fitting),
            phase=state.phase,
            cell=state.cell,
            start=state.start,
        )
        # Search: the first alpha at the threshold starts the fit, there; failing that, no_start says what to do.
        found = (scored > 0) & ~self._under(scored, complied)
        exhausted = ~found & (draw.cell == size - 1)
        starts = found | exhausted if self.no_start == "lowest" else found
        after_search = jnp.where(starts, FIT, jnp.where(exhausted, DONE, SEARCH))
        # Fit: an alpha without a compliant rollout ends it, and so does the top of the grid.
        n, k = state.fit_scored[draw.cell], state.fit_complied[draw.cell]
        if self.reuse_search:
            n, k = n + state.search_scored[draw.cell], k + state.search_complied[draw.cell]
        barren = (n > 0) & (k == 0)
        after_fit = jnp.where(barren | (draw.cell == 0), DONE, FIT)

        moved = jnp.where(searching, jnp.where(starts | exhausted, draw.cell, draw.cell + 1), draw.cell - 1)
        return dataclasses.replace(
            state,
            phase=jnp.where(searching, after_search, jnp.where(fitting, after_fit, DONE)).astype(jnp.int32),
            cell=jnp.where(state.phase == DONE, state.cell, jnp.clip(moved, 0, size - 1)).astype(jnp.int32),
            start=jnp.where(searching & starts, draw.cell, state.start).astype(jnp.int32),
        )

    @in_float64(static=("self",))
    def counts(self, state: LPEState) -> Counts:
        """Everything drawn, search and fit together."""
        return Counts(
            jnp.asarray(self.grid),
            state.search_scored + state.fit_scored,
            state.search_complied + state.fit_complied,
        )

    @in_float64(static=("self",))
    def parts(self, state: LPEState) -> tuple[Counts, Counts]:
        """Every rollout drawn, once: (what the line is fitted to, what only the search saw)."""
        reused = (state.fit_drawn > 0) & self.reuse_search
        again, only = jnp.where(reused, 1, 0), jnp.where(reused, 0, 1)
        alpha = jnp.asarray(self.grid)
        fit = Counts(
            alpha,
            state.fit_scored + again * state.search_scored,
            state.fit_complied + again * state.search_complied,
        )
        return fit, Counts(alpha, only * state.search_scored, only * state.search_complied)

    @in_float64(static=("self",))
    def estimate(self, state: LPEState) -> Estimate:
        """The rate at alpha = 1 from what the state has drawn; see `fit` for the interval and the fallback."""
        start = jnp.asarray(self.grid)[jnp.maximum(state.start, 0)]
        return dataclasses.replace(
            self.fit(*self.parts(state)),
            start_alpha=jnp.where(state.start >= 0, start, jnp.nan),
            rollouts=jnp.sum(state.search_drawn + state.fit_drawn),
        )

    @in_float64(static=("self",))
    def fit(self, counts: Counts, search: Counts | None = None) -> Estimate:
        """LPE's line through any counts [A] at alphas <= 1 in any order, those of another engine included.

        search: counts [A] at the same alphas of rollouts that are not in `counts`. They have no part in the line,
        only in the interval.

        The 95 % interval is the profile-likelihood interval (`line.profile_interval`) over all rollouts that
        the line speaks for: the points of the regression (`used`), the alphas without a compliant rollout, zeros
        carrying information as well, and the search rollouts at alphas that stayed under the threshold and do not
        lie below the lowest point. It is widened where needed to hold LPE's own point. A rule that stops on what has
        been seen does not change the likelihood, and on exactly log-linear paths 93 % or more of the intervals
        hold the truth. It takes the line for granted: it speaks of the noise in the counts, not of curvature. Where
        log rate bends between the fitted alphas and 1, the truth can lie far outside.

        With fewer than two points, the fallback, the rate is fallback_rate; or, where the one alpha with compliant
        rollouts is at least BESIDE_THE_ORIGINAL and the highest, its own rate, whether or not it reached the
        threshold (our choice: the post's 1e-6 would rank the most frequent behaviour with the rarest). Nothing then
        bounds the rate from below (low = -inf). From above it is bounded if the rate does not rise with alpha: it is
        then at most the mean rate of any rollouts drawn, and `high` is the Clopper–Pearson upper end of all rollouts
        at alphas whose rate, search and fit together, stayed under the threshold (of all rollouts, if there is no
        such alpha; of its own, where the rate is that of the one alpha).
        """
        alpha, scored, complied = (jnp.asarray(x, float) for x in (counts.alpha, counts.scored, counts.complied))
        more_scored, more_complied = jnp.zeros_like(scored), jnp.zeros_like(complied)
        if search is not None:
            more_scored, more_complied = jnp.asarray(search.scored, float), jnp.asarray(search.complied, float)

        used = hit = complied > 0
        if self.drop_common:
            # Where hardly an alpha stays under the threshold the behaviour is common at the original already: then
            # the common points are all there is, and falling back would call the most frequent prompts the rarest.
            under = hit & self._under(scored, complied)
            used = jnp.where(jnp.sum(under) >= 2, under, hit)
        fallback = jnp.sum(used) < 2
        slope, intercept, r2 = fit_line(alpha, scored, complied, used, self.regression == "weighted")
        line_rate = jnp.minimum(intercept, 0.0) if self.clip else intercept

        spoken_for = used | ((scored > 0) & (complied == 0))
        lowest = jnp.min(jnp.where(used, alpha, jnp.inf))
        searched = self._under(more_scored, more_complied) & (alpha >= lowest)
        n = jnp.where(spoken_for, scored, 0.0) + jnp.where(searched, more_scored, 0.0)
        k = jnp.where(spoken_for, complied, 0.0) + jnp.where(searched, more_complied, 0.0)
        low, high = profile_interval(alpha, n, k, n > 0)

        # What is common right beside the original is not rare for want of a line.
        beside = lone_beside(alpha, scored, complied)
        only = jnp.sum(jnp.where(beside, complied / jnp.maximum(scored, 1), 0.0))
        guess = jnp.log10(jnp.where(jnp.any(beside), only, self.fallback_rate))
        n, k = scored + more_scored, complied + more_complied
        under = self._under(n, k)
        under = under | ~jnp.any(under)
        # Of a lone alpha beside the original its own rollouts: the rate does rise with alpha there.
        pooled = jnp.where(jnp.any(beside), beside, under)
        _, ceiling = clopper_pearson_log10(jnp.sum(jnp.where(pooled, k, 0.0)), jnp.sum(jnp.where(pooled, n, 0.0)))
        return make_estimate(
            Counts(alpha, n, k, counts.tokens),
            jnp.where(fallback, guess, line_rate),
            jnp.where(fallback, -jnp.inf, jnp.minimum(low, line_rate)),
            jnp.where(fallback, jnp.maximum(ceiling, guess), jnp.maximum(high, line_rate)),
            slope=slope,
            intercept=intercept,
            r2=r2,
            used=used & ~fallback,
            fallback=fallback,
        )

    def _under(self, scored: jax.Array, complied: jax.Array) -> jax.Array:
        """Where something was scored and the rate lies under the threshold."""
        return (scored > 0) & (complied / jnp.maximum(scored, 1) < self.threshold)
