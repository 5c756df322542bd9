"""The most that a procedure can draw of a prompt: never exceeded, whatever comes of the draws, and reached."""

import numpy as np
import pytest

from lpe_jax.estimation.adaptive import Path
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import replay

PROCEDURES = [
    Naive(7),
    Naive(3, alpha=1.5),
    LPE(n_search=3, n_fit=5),
    LPE(n_search=3, n_fit=5, alphas=(1.0, 0.5, 0.0, -0.5)),
    LPE(n_search=3, n_fit=5, alphas=(0.9, 0.3), fit_to_one=True),
    LPE(n_search=3, n_fit=5, alphas=(0.9, 0.3, 0.1), no_start="fallback"),
    LPE(n_search=3, n_fit=5, alphas=(0.9, 0.3, 0.1), reuse_search=True),
    LPE(n_search=3, n_fit=5, alphas=(0.9, 0.3, 0.1), reuse_search=True, fit_to_one=True),
    Path(budget=101, batch=7, n_scout=5),
]


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_the_most_is_reached_and_not_exceeded(procedure):
    """Rates that rise along the path, that do not, judges that score little or nothing; and, last, what takes most: of
    LPE nothing complies in the search until its last alpha, and then something at every alpha of the fit.
    """
    rng, shape = np.random.default_rng(0), (64, len(procedure.grid), procedure.most_per_cell)
    rate = rng.random(shape[:2]) ** rng.choice([0.2, 1, 5], shape[0])[:, None]
    rate[::2] = np.sort(rate[::2], axis=1)
    complied = rng.random(shape) < rate[..., None]
    scored = rng.random(shape) < rng.choice([1.0, 1.0, 0.7, 0.0], shape[0])[:, None, None]
    complied[-1], scored[-1] = True, True
    if isinstance(procedure, LPE):
        complied[-1, :-1, : procedure.n_search] = False
    _, estimate = replay(procedure, complied & scored, scored)
    assert estimate.rollouts[-1] == estimate.rollouts.max() == procedure.most_rollouts
