import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lpe_jax.evaluation.auroc import auroc


def cases(seed, size=37):
    random = np.random.default_rng(seed)
    score = random.integers(0, 6, size) * random.choice([1.0, 0.3])
    score[random.random(size) < 0.2] = -np.inf
    return score, random.random(size) < 0.4, random.random(size) < 0.8


@pytest.mark.parametrize("seed", range(5))
def test_like_scikit_learn_with_ties_and_infinities(seed):
    score, positive, mask = cases(seed)
    finite = np.where(np.isneginf(score), -1e9, score)
    assert auroc(score, positive, mask) == pytest.approx(roc_auc_score(positive[mask], finite[mask]), abs=1e-12)
    high = np.where(np.isneginf(score), np.inf, score)
    finite = np.where(np.isposinf(high), 1e9, high)
    assert auroc(high, positive, mask) == pytest.approx(roc_auc_score(positive[mask], finite[mask]), abs=1e-12)


def test_batches_order_and_extremes():
    table = [cases(seed) for seed in range(4)]
    together = auroc(*(np.stack(column) for column in zip(*table, strict=True)))
    assert together.shape == (4,)
    np.testing.assert_array_equal(together, [auroc(*case) for case in table])
    score, positive, mask = table[0]
    order = np.random.default_rng(9).permutation(len(score))
    assert auroc(score[order], positive[order], mask[order]) == auroc(score, positive, mask)
    assert auroc(positive, positive, mask) == 1 and auroc(-1.0 * positive, positive, mask) == 0
    assert auroc(np.zeros(len(score)), positive, mask) == 0.5


def test_what_cannot_be_ranked_is_nan():
    score, positive, mask = cases(0)
    assert np.isnan(auroc(score, np.ones(37, bool), mask)) and np.isnan(auroc(score, np.zeros(37, bool), mask))
    score[np.flatnonzero(mask)[0]] = np.nan
    assert np.isnan(auroc(score, positive, mask))
    assert np.isfinite(auroc(score, positive, mask & ~np.isnan(score)))
