"""Every estimator by its name: counts, and sums where it wants them, to an estimate.

All have one signature, `estimator(counts, sums) -> Estimate`, over P prompts at once: counts [P, A], sums [P, N] (or
None), every field of the estimate [P]. Most look at one prompt at a time and are vmapped here; the pooled ones let the
prompts learn from each other. A new estimator is a function and a line in ESTIMATORS.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax

from lpe_jax.estimation.counts import check_counts
from lpe_jax.estimation.doubt import lpe
from lpe_jax.estimation.gate import path
from lpe_jax.estimation.importance import defensive, importance, mixture, self_normalised
from lpe_jax.estimation.likelihood import bend_likelihood, line_likelihood, path_slope
from lpe_jax.estimation.pooled import pooled
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.single import naive_rate, one_alpha_count
from lpe_jax.estimation.sums import check_sums
from lpe_jax.types import Counts, Estimate, Sums


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A named estimator.

    Attributes:
      function: (counts [A], sums [N] or None) -> Estimate of one prompt; of all prompts [P, ...] if pooled.
      pooled: whether prompts inform each other.
      needs_sums: whether it cannot do without the rollouts' sums; the others use them where they know how.
      claims_rate: False for a score that only ranks.
      weighs: whether it needs log p of the rollouts, and not their path scores alone.
    """

    name: str
    function: Callable[[Counts, Sums | None], Estimate]
    pooled: bool = False
    needs_sums: bool = False
    claims_rate: bool = True
    weighs: bool = False

    @in_float64(static=("self",))
    def __call__(self, counts: Counts, sums: Sums | None = None) -> Estimate:
        """Estimates of P prompts from counts [P, A] and sums [P, N]."""
        if self.needs_sums and sums is None:
            raise ValueError(f"{self.name} needs the rollouts' sums beside the counts.")
        if self.pooled:
            return self.function(counts, sums)
        if sums is None:
            return jax.vmap(lambda c: self.function(c, None))(counts)
        return jax.vmap(self.function)(counts, sums)


_ALL = (
    Estimator("naive", naive_rate),
    Estimator("count", one_alpha_count, claims_rate=False),
    Estimator("importance", importance, needs_sums=True, weighs=True),
    Estimator("self_normalised", self_normalised, needs_sums=True, weighs=True),
    Estimator("defensive", defensive, needs_sums=True, weighs=True),
    Estimator("mixture", mixture, needs_sums=True, weighs=True),
    Estimator("lpe", lpe),
    Estimator("line", line_likelihood),
    Estimator("bend", bend_likelihood),
    Estimator("slope", path_slope, needs_sums=True),
    Estimator("pooled", pooled, pooled=True),
    Estimator("path", path, pooled=True, needs_sums=True, weighs=True),
)
ESTIMATORS: dict[str, Estimator] = {estimator.name: estimator for estimator in _ALL}


def estimate(name: str, counts: Counts, sums: Sums | None = None) -> Estimate:
    """Estimates by name, for counts from anywhere: [A] of one prompt or [P, A] of many, with sums [N] or [P, N].

    What is wrong with the input is said before anything is computed, on the host; under jit call ESTIMATORS[name].

    Raises:
      ValueError: no such estimator, or counts or sums that cannot be.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"there is no estimator {name!r}; choose from {', '.join(ESTIMATORS)}.")
    counts = check_counts(counts)
    if sums is not None:
        sums = check_sums(counts, sums)
    if counts.alpha.ndim == 2:
        return ESTIMATORS[name](counts, sums)
    if counts.alpha.ndim != 1:
        raise ValueError(f"counts must be [A] or [prompts, A], and have {counts.alpha.ndim} axes.")
    add = functools.partial(jax.tree.map, lambda x: x[None])
    return jax.tree.map(lambda x: x[0], ESTIMATORS[name](add(counts), None if sums is None else add(sums)))
