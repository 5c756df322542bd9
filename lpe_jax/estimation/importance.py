"""Importance sampling: rollouts of other alphas, weighted by how much likelier the original was to say the same.

Every p_alpha is normalised and the sums hold log p at every alpha, so the weights are exact and what these estimators
can get wrong is their spread. Two things follow from it.

The bar. A rate is identified if LEAST_ESS compliant rollouts stand behind it, by the weights drawn (`weights.ess`)
and by what their tail must be expected to hold (`weights.tempered_ess`), or by the naive hits that rollouts at
alpha = 1 stand for. The first alone lets pass the very samples that missed the tail. A bar on the Pareto index does the
same, since a sample without its tail has a low index: so that index is reported and decides nothing.

The interval. Above the bar it is Fay and Feuer's (1997) gamma interval for a sum of weighted Poisson counts, its
variance the larger of that drawn and that expected. Below it, what holds without a word about tails: an unbiased
estimate exceeds forty times the truth in at most one case of forty (Markov), and rollouts at alpha = 1 cap each weight.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from lpe_jax.estimation import weights
from lpe_jax.estimation.intervals import Z95
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.result import make_estimate
from lpe_jax.types import Counts, Estimate, Sums

LEAST_ESS = 10.0
_TAIL = 0.025
_LN10 = math.log(10.0)


@in_float64()
def importance(counts: Counts, sums: Sums) -> Estimate:
    """Plain importance sampling from the variant: (1/N) sum of p_original / p_variant over its compliant rollouts.

    Counts [A] and sums [N] of one prompt. Only rollouts at alpha = 0 are read; without one, NaN and not identified.
    """
    at_variant = _at(counts, 0.0)
    return _mixture(counts, sums, at_variant, jnp.any(at_variant & (counts.scored > 0)))


@in_float64()
def defensive(counts: Counts, sums: Sums) -> Estimate:
    """The variant and the original as one mixture of whole sequences (Hesterberg 1995): alpha = 0 and alpha = 1 only.

    Counts [A] and sums [N] of one prompt. A compliant rollout counts with p_1 / (N_0 p_0 + N_1 p_1), at most 1 / N_1.
    Not identified unless both were drawn.
    """
    ends = [_at(counts, alpha) for alpha in (0.0, 1.0)]
    both = jnp.all(jnp.array([jnp.any(end & (counts.scored > 0)) for end in ends]))
    return _mixture(counts, sums, ends[0] | ends[1], both)


@in_float64()
def mixture(counts: Counts, sums: Sums) -> Estimate:
    """Multiple importance sampling over every alpha drawn, by the balance heuristic.

    Counts [A] and sums [N] of one prompt. The rate is the sum of p_1 / sum_k N_k p_k over all compliant rollouts
    (Veach and Guibas 1995; Owen and Zhou 2000); as every p_k is normalised, this is also MBAR. N_k counts scored
    rollouts. Unbiased if the N_k were not chosen by what was drawn.
    """
    return _mixture(counts, sums, jnp.ones(counts.alpha.shape, bool), jnp.any(counts.scored > 0))


@in_float64()
def self_normalised(counts: Counts, sums: Sums) -> Estimate:
    """Plain importance sampling over the sum of all weights instead of N: the compliant share of the weights.

    Counts [A] and sums [N] of one prompt. Only rollouts at alpha = 0 are read, refused ones too: where rows do not add
    up to the scored rollouts there, or none was drawn, NaN and not identified. Biased at any N, and neither Markov's
    inequality nor a largest weight bounds it. The diagnostics are those of the compliant rows; the bar is also asked
    of all rows.
    """
    n = _drawn(counts, _at(counts, 0.0))
    rows = _rows(n, sums, sums.logp_original)
    hits = rows.complied(sums)
    known = (jnp.sum(n) > 0) & (jnp.sum(rows.count) == jnp.sum(n))

    of_hits, of_all = hits.sum(n), rows.sum(n)
    rate = jnp.exp(of_hits.log - of_all.log)
    # Delta method: the influence of a row is its share of all weights times (complied - rate).
    share = jnp.where(rows.count > 0, jnp.exp(rows.log_weight - of_all.log), 0.0)
    influence = share * (jnp.where(hits.count > 0, 1.0, 0.0) - rate)
    total = jnp.sum(n)
    drawn = jnp.sum(rows.count * influence**2) / rate**2 * total / jnp.maximum(total - 1, 1)
    spread = drawn + of_hits.unseen() + of_all.unseen()
    low, high = _gamma_interval(of_hits.log - of_all.log, spread, of_hits.largest)
    identified = known & (jnp.minimum(of_hits.least_ess(), of_all.least_ess()) >= LEAST_ESS)
    return make_estimate(
        counts,
        jnp.where(known, of_hits.log - of_all.log, jnp.nan) / _LN10,
        jnp.where(identified, low, -jnp.inf) / _LN10,
        jnp.where(identified, high, 0.0) / _LN10,
        used=n > 0,
        identified=identified,
        ess=of_hits.ess,
        pareto_k=weights.pareto_k(hits.log_weight, hits.count),
        largest=of_hits.largest,
    )


@in_float64()
def reweighted_path(counts: Counts, sums: Sums) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rate at every alpha of `counts`, each from all rollouts by the balance heuristic.

    Counts [A] and sums [N] of one prompt. Returns log10 rates [A], their standard errors by the delta method [A], of
    independent rollouts at each alpha, and effective sample sizes [A]. The standard errors do not warn of
    weights with heavy tails: look at the sizes. Without a hit -inf, NaN, 0; the errors of neighbours are correlated.
    """
    n = _drawn(counts, jnp.ones(counts.alpha.shape, bool))
    rows = _rows(n, sums, jnp.zeros(sums.cell.shape)).complied(sums)

    def at(logp):
        total = dataclasses.replace(rows, log_weight=logp + rows.log_weight).sum(n)
        return total.log / _LN10, jnp.sqrt(total.variance) / _LN10, total.ess

    return jax.vmap(at, in_axes=1)(jnp.asarray(sums.logp, float))


@in_float64()
def reweighted(counts: Counts, sums: Sums, alpha_index: int | jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reweighted_path` at counts.alpha[alpha_index] alone: (log10 rate, standard error, effective size), all []."""
    return tuple(values[alpha_index] for values in reweighted_path(counts, sums))


@dataclasses.dataclass(frozen=True)
class _Total:
    """A sum of weights, in units of itself: log of the sum, the relative variance drawn, and what it rests on."""

    log: jax.Array  # []
    variance: jax.Array  # [] relative
    largest: jax.Array  # [] share of one rollout
    ess: jax.Array  # []
    tempered: jax.Array  # []

    def least_ess(self, hits: jax.Array | float = 0.0) -> jax.Array:
        """The smaller of the size drawn and that expected, to which naive hits at alpha = 1 are a floor."""
        return jnp.minimum(self.ess, jnp.maximum(self.tempered, hits))

    def unseen(self, hits: jax.Array | float = 0.0) -> jax.Array:
        """Relative variance to be expected from the tail beyond that drawn."""
        return 1 / self.least_ess(hits) - 1 / self.ess


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Weighted rollouts and where they were drawn."""

    log_weight: jax.Array  # [N] whatever padding holds makes of it
    count: jax.Array  # [N], 0 in rows that are not to be read
    here: jax.Array  # [N, A] 1 at the rollout's cell, else 0

    def complied(self, sums: Sums) -> _Rows:
        return dataclasses.replace(self, count=jnp.where(jnp.asarray(sums.complied, bool), self.count, 0.0))

    def sum(self, n: jax.Array) -> _Total:
        """The sum over the n [A] rollouts of each cell, those without a weight included; -inf and ess 0 without any."""
        log_weight = jnp.where(self.count > 0, self.log_weight, -jnp.inf)
        top = jnp.max(log_weight, initial=-jnp.inf)
        top = jnp.where(top > -jnp.inf, top, 0.0)
        weight = jnp.exp(log_weight - top)
        first, second = (jnp.matmul(self.count * power, self.here) for power in (weight, weight**2))  # [A]
        # N / (N - 1) makes the variance of each cell unbiased; of one rollout nothing is known.
        by_cell = jnp.where(n > 0, (second - first**2 / jnp.maximum(n, 1)) * n / jnp.maximum(n - 1, 1), 0.0)
        total = jnp.sum(first)
        return _Total(
            log=top + jnp.log(total),
            variance=jnp.maximum(jnp.sum(by_cell), 0.0) / total**2,
            largest=weights.largest_share(self.log_weight, self.count),
            ess=weights.ess(self.log_weight, self.count),
            tempered=weights.tempered_ess(self.log_weight, self.count),
        )


def _mixture(counts: Counts, sums: Sums, cells: jax.Array, drawn: jax.Array) -> Estimate:
    """Deterministic-mixture importance sampling from the marked cells [A]; `drawn`: [] whether all needed are there."""
    n = _drawn(counts, cells)
    rows = _rows(n, sums, sums.logp_original).complied(sums)
    total = rows.sum(n)
    # No weight exceeds 1 / N_1, so the estimate varies no more than naive counts with as many hits.
    n_original = jnp.sum(jnp.where(_at(counts, 1.0), n, 0.0))
    hits = n_original * jnp.exp(total.log)

    low, high = _gamma_interval(total.log, total.variance + total.unseen(hits), total.largest)
    capped = jnp.log((hits + 1) / jnp.maximum(n_original, 1)) + _log_gamma(1 / (hits + 1), Z95)
    identified = drawn & (total.least_ess(hits) >= LEAST_ESS)
    some = jnp.any(n > 0)
    # A weighted sum can exceed 1, a rate cannot.
    clipped = jnp.minimum(total.log, 0.0)
    return make_estimate(
        counts,
        jnp.where(some, clipped, jnp.nan) / _LN10,
        jnp.minimum(jnp.where(identified, low, total.log + math.log(_TAIL)), clipped) / _LN10,
        jnp.minimum(jnp.where(identified, high, jnp.where(n_original > 0, capped, 0.0)), 0.0) / _LN10,
        used=n > 0,
        identified=identified,
        ess=total.ess,
        pareto_k=weights.pareto_k(rows.log_weight, rows.count),
        largest=total.largest,
    )


def _at(counts: Counts, alpha: float) -> jax.Array:
    """[A] bool: the cell at this alpha, if any."""
    return jnp.isclose(counts.alpha, alpha, rtol=0.0, atol=1e-9)


def _drawn(counts: Counts, cells: jax.Array) -> jax.Array:
    """[A] float: scored rollouts in the marked cells."""
    return jnp.where(cells, jnp.asarray(counts.scored, float), 0.0)


def _rows(n: jax.Array, sums: Sums, log_target: jax.Array) -> _Rows:
    """The rows drawn in cells with n [A] > 0, each weighing target / sum_k n_k p_k; log_target [N]."""
    here = jnp.asarray(jnp.asarray(sums.cell)[:, None] == jnp.arange(n.shape[0])[None], float)
    count = jnp.asarray(sums.count, float)
    count = jnp.where((count > 0) & (jnp.matmul(here, n) > 0), count, 0.0)
    logp = jnp.asarray(sums.logp, float)
    logp = jnp.where(jnp.isfinite(logp), logp, -jnp.inf)
    # The shift is over all cells, drawn or not: then the exponentials depend on the rows alone, and vmap over many
    # draws of the same rows takes them once. A rollout e^700 times likelier where it was not drawn is never drawn.
    shift = jnp.max(logp, axis=1)
    shift = jnp.where(jnp.isfinite(shift), shift, 0.0)
    log_mixture = shift + jnp.log(jnp.matmul(jnp.exp(logp - shift[:, None]), n))
    return _Rows(jnp.asarray(log_target, float) - log_mixture, count, here)


def _gamma_interval(log_rate: jax.Array, spread: jax.Array, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Fay and Feuer's 95 % interval of log rate, from its relative variance and its largest rollout's share; all [].

    Equal weights give Garwood's interval for a Poisson count, but for one thing: the upper end allows for one more
    rollout like the largest, and here its variance is in the lower end too, or all but all complying would pass for
    certain.
    """
    spread = spread + largest**2
    low = log_rate + _log_gamma(spread, -Z95)
    high = log_rate + jnp.log1p(largest) + _log_gamma(spread / (1 + largest) ** 2, Z95)
    return low, jnp.minimum(high, 0.0)


def _log_gamma(variance: jax.Array, z: float) -> jax.Array:
    """log of the quantile at normal score z of a gamma variable of mean 1 (Wilson and Hilferty 1931)."""
    return 3 * jnp.log(jnp.maximum(1 - variance / 9 + z * jnp.sqrt(variance) / 3, 0.0))
