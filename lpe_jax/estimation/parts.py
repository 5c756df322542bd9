"""LPE on what it drew, fit and search side by side, in the one shape that every tool for estimators takes."""

from __future__ import annotations

import functools

import jax
import numpy as np

from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.registry import Estimator
from lpe_jax.types import Counts, Estimate, Sums


def join_parts(fit: Counts, search: Counts) -> Counts:
    """One prompt's two counts [A] as counts [1, 2 A], those of the fit first; on the host."""
    names = ("alpha", "scored", "complied")
    return Counts(*(np.concatenate([getattr(fit, name), getattr(search, name)])[None] for name in names))


@functools.cache
def of_parts(procedure: LPE) -> Estimator:
    """LPE with these settings as an estimator of joined counts. Cached, as each estimator is compiled once."""

    def function(counts: Counts, sums: Sums | None) -> Estimate:
        half = counts.alpha.shape[0] // 2
        fit, search = (jax.tree.map(part, counts) for part in (lambda x: x[:half], lambda x: x[half:]))
        return procedure.fit(fit, search)

    return Estimator("lpe", function)
