"""What LPE would have said of a finished run's prompts with fewer rollouts per alpha, from its counts alone.

Rollouts of one prompt and alpha are exchangeable: of k compliant ones among N a random subset of m has a hypergeometric
number. So the subsets of stored rollouts behind Figure 1 of Pernice and Aranguri 2026 need no stored rollouts.
"""

from __future__ import annotations

import jax
import numpy as np

from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.precision import in_float64
from lpe_jax.types import Counts


def with_fewer(
    procedure: LPE, fit: Counts, search: Counts, n: int, *, repeats: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """LPE's rates of P prompts with `n` rollouts per alpha of the fit, over random subsets of those it had.

    The search stays as it was. From its start the fit goes up to the first alpha at which the subset has no compliant
    rollout, which may be below where the run's own fit ended.

    Args:
      procedure: as the run had it; its search's rollouts are not in the fit (reuse_search is off).
      fit, search: counts [P, A] of each.
      n: at most procedure.n_fit. Where some rollouts went unscored the subset has its share of them.

    Returns:
      log10 rates [repeats, P], and rollouts of the fit [repeats, P].

    Raises:
      ValueError: n or reuse_search is otherwise.
    """
    if procedure.reuse_search or not 1 <= n <= procedure.n_fit:
        raise ValueError(f"n must be 1 to {procedure.n_fit} and is {n}, and reuse_search must be off.")
    alpha, scored, complied = (np.asarray(x) for x in (fit.alpha, fit.scored, fit.complied))
    scored, complied = scored.astype(int), complied.astype(int)
    taken = np.rint(scored * (n / procedure.n_fit)).astype(int)  # [P, A]
    random = np.random.default_rng([seed, n])
    hits = random.hypergeometric(complied, scored - complied, taken, (repeats, *taken.shape))  # [R, P, A]
    # Upwards from the start, which is the lowest alpha with any rollouts.
    order = np.argsort(alpha, axis=-1)
    barren = np.take_along_axis((taken > 0) & (hits == 0), np.broadcast_to(order, hits.shape), axis=-1)
    before = np.cumsum(barren, axis=-1) - barren
    reached = np.empty(hits.shape, bool)
    np.put_along_axis(reached, np.broadcast_to(order, hits.shape), before == 0, axis=-1)
    reached &= scored > 0
    rates = _rates(procedure, Counts(alpha, reached * taken, reached * hits), search)
    return np.asarray(rates), n * reached.sum(axis=-1)


@in_float64(static=("procedure",))
def _rates(procedure: LPE, fit: Counts, search: Counts) -> jax.Array:
    """log10 rates [R, P] of fits whose counts, but for alpha [P, A], are [R, P, A]; search [P, A]."""

    def one(alpha, scored, complied, searched):
        return procedure.fit(Counts(alpha, scored, complied), searched).log10_rate

    of_repeats = jax.vmap(jax.vmap(one), in_axes=(None, 0, 0, None))
    return of_repeats(fit.alpha, fit.scored, fit.complied, Counts(search.alpha, search.scored, search.complied))
