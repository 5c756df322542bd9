"""The adaptive allocation of rollouts of a bank, against the procedure driven outcome by outcome."""

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation.adaptive import Path
from lpe_jax.estimation.precision import float64
from lpe_jax.estimation.procedure import replay
from lpe_jax.evaluation.subsets import Adaptively, pack, totals


def test_the_adaptive_allocation_is_replay_and_smaller_budgets_are_where_it_was():
    rng = np.random.default_rng(6)
    path = Path(budget=200)
    rate = np.minimum(0.85, 10.0 ** (-rng.uniform(2, 7, (6, 1)) * (path.grid[None] - 0.1)))
    complied = rng.random((6, len(path.grid), path.most_per_cell)) < rate[..., None]
    scored = rng.random(complied.shape) > 0.1
    complied &= scored
    allocation, budgets = Adaptively(Path()), (40, 100, 200)
    with float64():
        packed = jnp.asarray(pack(scored, complied, np.ones(complied.shape, int)))
        got = jax.jit(lambda p: allocation.draw(totals(p, allocation.ends(budgets)), budgets))(packed)
    state, _ = replay(path, complied, scored)
    np.testing.assert_array_equal(got.drawn[-1], state.drawn)
    np.testing.assert_array_equal(got.counts.scored[-1], state.scored)
    np.testing.assert_array_equal(got.counts.complied[-1], state.complied)
    np.testing.assert_array_equal(np.asarray(got.drawn).sum(-1), np.broadcast_to([[40], [100], [200]], (3, 6)))
    np.testing.assert_array_equal(got.counts.tokens, got.drawn)
    assert (np.diff(np.asarray(got.drawn), axis=0) >= 0).all()
    assert set(np.unique(np.asarray(got.drawn)[0])) == {0, 10}  # the scouts
