"""The prompts of a job estimated from each other, against the estimator on the same rollouts."""

from collections import Counter

import numpy as np
import pytest

from lpe_jax.estimation.registry import estimate
from lpe_jax.live import Finished
from lpe_jax.together import estimate_together
from lpe_jax.types import Counts, Message, Outcome, Prompt, Sums

ALPHA = np.array([1.0, 0.7, 0.5, 0.3])
COMPLIED = np.array([[0, 2, 9, 20], [0, 1, 6, 22], [1, 4, 11, 25]], float)
SCORED, UNSCORED = 40.0, 7


def finished(complied=COMPLIED):
    """Three prompts with UNSCORED rollouts besides, and a path score for every compliant one."""
    rng = np.random.default_rng(0)
    found = []
    for i, row in enumerate(complied):
        counts = Counts(ALPHA, np.full(4, SCORED), row)
        cell = np.repeat(np.arange(4), row.astype(int))
        scores = np.stack([ALPHA[cell], -9 + 4 * rng.normal(size=len(cell)), np.full(len(cell), 20.0)], axis=1)
        outcomes = Counter({Outcome.COMPLIED: int(row.sum()), Outcome.UNSCORED: UNSCORED})
        prompt = Prompt(str(i), (Message("user", "?"),))
        found.append(Finished(prompt, None, counts, None, outcomes, 4 * int(SCORED) + UNSCORED, 1000 + i, scores, None))
    return found


@pytest.fixture(scope="module")
def together():
    return estimate_together(finished())


def test_it_is_the_pooled_estimate(together):
    found = finished()
    most = max(len(f.scores) for f in found)
    padded = np.zeros((3, most, 3))
    for row, f in zip(padded, found, strict=True):
        row[: len(f.scores)] = f.scores
        row[: len(f.scores), 0] = [int(np.flatnonzero(ALPHA == alpha)[0]) for alpha in f.scores[:, 0]]
    real = np.arange(most)[None] < np.array([len(f.scores) for f in found])[:, None]
    nothing = np.zeros((3, most))
    sums = Sums(
        padded[..., 0].astype(int), real * 1.0, real, np.zeros((3, most, 4)), nothing, nothing,
        padded[..., 1], padded[..., 2],
    )  # fmt: skip
    counts = Counts(np.broadcast_to(ALPHA, (3, 4)), np.full((3, 4), SCORED), COMPLIED)
    known = estimate("pooled", counts, sums)
    for field in ("log10_rate", "low", "high"):
        np.testing.assert_allclose([getattr(e, field) for e in together], getattr(known, field), err_msg=field)
    without = estimate("pooled", counts)
    assert np.abs(known.log10_rate - without.log10_rate).max() > 0.01  # the scores were read


def test_rollouts_that_went_unscored_were_paid_for_too(together):
    assert [int(e.rollouts) for e in together] == [167] * 3
    assert [int(e.tokens) for e in together] == [1000, 1001, 1002]
