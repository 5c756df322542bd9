"""All prompts of a job estimated together, from what each of them drew by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lpe_jax.estimation.gate import contradicted
from lpe_jax.estimation.pooled import pooled
from lpe_jax.live import Finished
from lpe_jax.types import Counts, Estimate, Sums


def estimate_together(finished: Sequence[Finished]) -> list[Estimate]:
    """The pooled bending path over the prompts of a job, an estimate for each; see lpe_jax.estimation.pooled.

    Reweighting takes no part in it: that needs every rollout's log p at every alpha, which a job does not keep and
    `experiments.sample` does. More compliant rollouts at alpha = 1 than an estimate can explain make it not identified.
    """
    counts = jax.tree.map(lambda *x: np.stack(x), *(result.fit for result in finished))
    sums = _sums([result.scores for result in finished], counts)
    estimates = jax.device_get(pooled(counts, sums))
    against = np.asarray(contradicted(counts, estimates))
    estimates = dataclasses.replace(
        estimates,
        identified=np.asarray(estimates.identified) & ~against,
        # Unscored rollouts are in no count, and were paid for.
        rollouts=np.array([result.rollouts for result in finished]),
        tokens=np.array([result.tokens for result in finished]),
    )
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], estimates) for i in range(len(finished))]


def _sums(scores: Sequence[np.ndarray], counts: Counts) -> Sums:
    """Path scores [N_i, 3] of every prompt as padded rows [P, N]; log p is not known."""
    most = max(1, *(len(rows) for rows in scores))
    padded = np.zeros((len(scores), most, 3))
    real = np.zeros((len(scores), most), bool)
    for i, rows in enumerate(scores):
        padded[i, : len(rows)], real[i, : len(rows)] = rows, True
    unknown = np.full((len(scores), most), np.nan)
    return Sums(
        cell=padded[..., 0].astype(int),
        count=real.astype(float),
        complied=real,
        logp=np.full((len(scores), most, counts.alpha.shape[1]), np.nan),
        logp_original=unknown,
        logp_variant=unknown,
        path_score=padded[..., 1],
        path_variance=padded[..., 2],
    )
