"""All prompts of a job estimated together, from what each of them drew by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lpe_jax.estimation.imputation import pooled_with_judge_error
from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.estimation.pooled import pooled
from lpe_jax.live import Finished
from lpe_jax.types import Counts, Estimate, Sums

_ROWS = 128


def estimate_together(finished: Sequence[Finished], judge: JudgeQuality | None = None, seed: int = 0) -> list[Estimate]:
    """The pooled bending path over the prompts of a job, an estimate for each; see lpe_jax.estimation.pooled.

    Reweighting takes no part in it: that needs every rollout's log p at every alpha, which a job does not keep and
    `experiments.sample` does.

    judge: how it did on rollouts of known outcome; the rates are then of what truly complies.
    """
    counts = jax.tree.map(lambda *x: np.stack(x), *(result.fit for result in finished))
    sums = sums_of([result.scores for result in finished], counts)
    if judge is None:
        estimates = jax.device_get(pooled(counts, sums))
    else:
        estimates = jax.device_get(pooled_with_judge_error(counts, sums, judge, seed=seed))
    estimates = dataclasses.replace(
        estimates,
        # Unscored rollouts are in no count, and were paid for.
        rollouts=np.array([result.rollouts for result in finished]),
        tokens=np.array([result.tokens for result in finished]),
    )
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], estimates) for i in range(len(finished))]


def sums_of(scores: Sequence[np.ndarray], counts: Counts) -> Sums:
    """What `live.Finished.scores` [N_i, 3] of every prompt tell, as padded rows [P, N]; log p is not known."""
    # In steps, so that a few more compliant rollouts do not compile anew.
    most = -(-max(1, *(len(rows) for rows in scores), 1) // _ROWS) * _ROWS
    padded = np.zeros((len(scores), most, 3))
    real = np.zeros((len(scores), most), bool)
    for i, rows in enumerate(scores):
        padded[i, : len(rows)], real[i, : len(rows)] = rows, True
    unknown = np.full((len(scores), most), np.nan)
    return Sums(
        cell=np.abs(counts.alpha[:, None] - padded[..., :1]).argmin(axis=-1),
        count=real.astype(float),
        complied=real,
        logp=np.full((len(scores), most, counts.alpha.shape[1]), np.nan),
        logp_original=unknown,
        logp_variant=unknown,
        path_score=padded[..., 1],
        path_variance=padded[..., 2],
    )
