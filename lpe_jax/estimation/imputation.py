"""Any estimator under an imperfect judge, by multiple imputation (Rubin 1987) of what truly complied."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jax.scipy.stats import beta

from lpe_jax.estimation.intervals import Z95
from lpe_jax.estimation.judge_error import JudgeQuality, corrected_rate
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.parts import join_parts, of_parts
from lpe_jax.estimation.pooled import pooled_evidence
from lpe_jax.estimation.precision import in_float64
from lpe_jax.estimation.registry import Estimator
from lpe_jax.types import Counts, Estimate, Sums

# True rates are sought in any decade down to this; per cell they are drawn from so many values.
_SMALLEST, _VALUES = 1e-8, 128
# Draws that are computed side by side: memory against speed.
_TOGETHER = 10
# False alarms rarer than this change no rate that is looked for.
_FEWEST_ALARMS = 1e-8


@in_float64(static=("estimator", "draws", "seed"))
def with_judge_error(
    estimator: Estimator,
    counts: Counts,
    sums: Sums | None,
    judge: JudgeQuality,
    draws: int = 100,
    seed: int = 0,
) -> Estimate:
    """Estimates [P] of what truly complied, from judged counts [P, A] and sums [P, N] (or None).

    Each draw takes the judge's sensitivity and specificity from their Jeffreys Beta posteriors, the true rate of each
    cell from its posterior given those, and then true outcomes: of the rollouts judged compliant each is kept with
    the positive predictive value, of those judged refused each is flipped with 1 - the negative one. The estimator
    runs on the imputed counts, and `pool` makes one estimate of the draws'.

    A priori no decade of rates is likelier than another (even in the logit from 1e-8 up), and the true rate does not
    rise with alpha; nothing else is assumed of the path. Both matter where the judged rate is near the judge's
    false-positive rate. Cell by cell, a chance excess of false alarms passes for a few true hits, which become points
    of a line; with the order, all cells from there down to lower alphas speak against it. On a path that does rise
    with alpha this is the wrong correction. Errors are taken not to depend on prompt or alpha.

    Sums are thinned likewise: rows judged compliant are split in those kept and those refused. A compliant rollout
    that the judge missed is added to the counts alone, as the log-probabilities of a refused row need not be
    complete; estimators by importance weights therefore speak of recognised compliance, up to -log10(sensitivity)
    lower in log10 rate.

    Raises:
      ValueError: draws < 2.
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2 to say anything of a spread, and is {draws}.")
    floats = {name: jnp.asarray(getattr(counts, name), float) for name in ("alpha", "scored", "complied")}
    counts = dataclasses.replace(counts, **floats)

    def one(key):
        return estimator(*_impute(key, counts, sums, judge))

    keys = jax.random.split(jax.random.key(seed), draws)
    return pool(jax.lax.map(one, keys, batch_size=min(_TOGETHER, draws)))


@in_float64(static=("draws", "seed"))
def pooled_with_judge_error(
    counts: Counts, sums: Sums | None, judge: JudgeQuality, draws: int = 40, seed: int = 0
) -> Estimate:
    """`pooled` estimates [P] of what truly complied, from judged counts [P, A] and sums [P, N].

    The bending path knows what a judge of given errors makes of it, so nothing is imputed but those. What the judge's
    own check says of them (Jeffreys Beta posteriors) is joined with what the rollouts say, as thousands of refusals
    near alpha = 1 bound the false alarms more closely than a check of fifty: errors are drawn from the former, false
    alarms half the time evenly in their logarithm instead, weighted by the marginal likelihood of all rollouts, and
    resampled. `pool` makes one estimate of what is left.
    """
    first, second, third = jax.random.split(jax.random.key(seed), 3)
    sensitivity, checked = jax.vmap(lambda key: _draw_judge(key, judge))(jax.random.split(first, draws))
    a, b = judge.false_alarms + 0.5, judge.specificity_total - judge.false_alarms + 0.5
    bottom = jnp.log(_FEWEST_ALARMS)
    top = jnp.maximum(jnp.log(jnp.minimum(jnp.max(checked) * 2.0, 0.9 * jnp.min(sensitivity))), bottom + 1.0)
    even = jnp.exp(bottom + (top - bottom) * (jnp.arange(draws) + jax.random.uniform(second, (draws,))) / draws)
    false_alarm = jnp.where(jnp.arange(draws) % 2 == 0, checked, even)
    by_check = beta.logpdf(false_alarm, a, b)
    inside = (false_alarm > _FEWEST_ALARMS) & (jnp.log(false_alarm) < top)
    by_log = jnp.where(inside, -jnp.log(false_alarm) - jnp.log(top - bottom), -jnp.inf)
    proposal = jnp.logaddexp(by_check, by_log) - jnp.log(2.0)

    estimates, evidence = jax.lax.map(lambda errs: pooled_evidence(counts, sums, *errs), (sensitivity, false_alarm))
    weight = jax.nn.softmax(jnp.where(jnp.isfinite(evidence), evidence, -jnp.inf) + by_check - proposal)
    # Systematic resampling: each draw as often as its weight says, to within one.
    at = (jnp.arange(draws) + jax.random.uniform(third)) / draws
    chosen = jnp.minimum(jnp.searchsorted(jnp.cumsum(weight), at), draws - 1)
    return pool(jax.tree.map(lambda x: x[chosen], estimates))


def correct_estimate(
    procedure: LPE | Naive, estimate: Estimate, fit: Counts, search: Counts | None, judge: JudgeQuality, seed: int = 0
) -> Estimate:
    """One prompt's estimate under judge error, from the `parts` [A] of what `procedure` drew; on the host.

    The naive rate is corrected in closed form (`corrected_rate`), LPE's by imputation. What it cost and where its
    search ended stay as they are in `estimate`.
    """
    if search is None:
        rate, low, high = corrected_rate(np.sum(fit.complied), np.sum(fit.scored), judge)
        return dataclasses.replace(estimate, log10_rate=rate, low=low, high=high)
    pooled = with_judge_error(of_parts(procedure), join_parts(fit, search), None, judge, seed=seed)
    pooled = jax.tree.map(lambda x: np.asarray(x)[0], pooled)
    kept = {name: getattr(estimate, name) for name in ("start_alpha", "rollouts", "tokens")}
    return dataclasses.replace(pooled, **kept)


def _impute(key: jax.Array, counts: Counts, sums: Sums | None, judge: JudgeQuality) -> tuple[Counts, Sums | None]:
    """One draw of the true counts [P, A] and sums [P, 2 N]."""
    for_judge, for_rate, for_outcomes = jax.random.split(key, 3)
    scored, complied = counts.scored, counts.complied
    sensitivity, false_positive = _draw_judge(for_judge, judge)
    rate = _draw_rates(for_rate, counts, sensitivity, false_positive)
    judged = false_positive + (sensitivity - false_positive) * rate
    right = rate * sensitivity / judged  # [P, A] the positive predictive value
    missed = rate * (1.0 - sensitivity) / (1.0 - judged)

    judged_compliant, stays = complied, right
    if sums is not None:
        judged_compliant = jnp.where(sums.complied, jnp.asarray(sums.count, float), 0.0)  # [P, N]
        stays = jnp.take_along_axis(right, sums.cell, axis=-1)
    # One call for both, as the sampler is slow to compile.
    trials = jnp.concatenate([judged_compliant, scored - complied], axis=-1)
    drawn = jax.random.binomial(for_outcomes, trials, jnp.concatenate([stays, missed], axis=-1))
    kept, flipped = jnp.split(drawn, [judged_compliant.shape[-1]], axis=-1)
    if sums is not None:
        cell, rows = sums.cell, kept
        sums = _split(sums, rows)
        kept = jax.vmap(lambda into, cell, row: into.at[cell].add(row))(jnp.zeros_like(scored), cell, rows)
    return dataclasses.replace(counts, complied=kept + flipped), sums


def _draw_judge(key: jax.Array, judge: JudgeQuality) -> tuple[jax.Array, jax.Array]:
    """(sensitivity, 1 - specificity) from Jeffreys posteriors, the one kept above the other."""
    first, second = jax.random.split(key)
    fields = (judge.sensitivity_hits, judge.sensitivity_total, judge.false_alarms, judge.specificity_total)
    a, na, b, nb = (jnp.asarray(field, float) for field in fields)
    # Never 0 or 1 to the last bit: a posterior of 0/n rounds to them where its density is highest.
    x, y = (
        jnp.clip(value, 1e-12, 1.0 - 1e-12)
        for value in (jax.random.beta(first, a + 0.5, na - a + 0.5), jax.random.beta(second, b + 0.5, nb - b + 0.5))
    )
    return jnp.maximum(x, y + 1e-12), y


def _draw_rates(key: jax.Array, counts: Counts, sensitivity: jax.Array, false_positive: jax.Array) -> jax.Array:
    """[P, A] true rates from their joint posterior: on a grid that is even in the logit, none rising with alpha."""
    top = -np.log(_SMALLEST)
    rates = jax.nn.sigmoid(jnp.linspace(-top, 0.5 * top, _VALUES))  # [G]
    judged = false_positive + (sensitivity - false_positive) * rates
    hit, miss = jnp.log(judged), jnp.log1p(-judged)

    def one(key, alpha, scored, complied):  # [A] each
        order = jnp.argsort(alpha)

        def forward(before, cell):  # [G] log weight of a path that ends in each rate
            scored, complied = cell
            now = complied * hit + (scored - complied) * miss + jax.lax.cumlogsumexp(before, reverse=True)
            now = jnp.where(scored > 0, now, before)
            return now, now

        def backward(least, step):
            key, weights, drawn = step
            index = jax.random.categorical(key, jnp.where(jnp.arange(_VALUES) >= least, weights, -jnp.inf))
            return jnp.where(drawn, index, least), index

        start = jnp.where(jnp.arange(_VALUES) == _VALUES - 1, 0.0, -jnp.inf)
        _, weights = jax.lax.scan(forward, start, (scored[order], complied[order]))
        steps = (jax.random.split(key, alpha.shape[0]), weights, scored[order] > 0)
        _, index = jax.lax.scan(backward, 0, steps, reverse=True)
        return jnp.zeros_like(alpha).at[order].set(rates[index])

    keys = jax.random.split(key, counts.alpha.shape[0])
    return jax.vmap(one)(keys, counts.alpha, counts.scored, counts.complied)


def _split(sums: Sums, kept: jax.Array) -> Sums:
    """Rows [P, N] to [P, 2 N]: first what stays as it was judged, then what was called compliant and was not."""
    count = jnp.asarray(sums.count, float)
    fields = {f.name: jnp.concatenate([getattr(sums, f.name)] * 2, axis=1) for f in dataclasses.fields(sums)}
    fields["count"] = jnp.concatenate(
        [jnp.where(sums.complied, kept, count), jnp.where(sums.complied, count - kept, 0.0)], axis=1
    )
    fields["complied"] = jnp.concatenate([sums.complied, jnp.zeros_like(sums.complied)], axis=1)
    return Sums(**fields)


@in_float64()
def pool(estimates: Estimate) -> Estimate:
    """One estimate [...] of D draws of it [D, ...].

    Rate and figures of the fit are medians; flags and `used` go by the majority. Draws that fell back on a default
    rate have no part in the median unless they are the majority. The interval is that of the draws' mixture, each
    draw read as a normal on either side of its rate, in log10, with the interval's two half-widths, half the mass on
    each side. An end that bounds nothing puts its half beyond every number: low is -inf as soon as a twentieth of
    the draws have no lower end, and high 0 likewise.
    """
    majority = jnp.mean(estimates.fallback, axis=0) > 0.5
    counted = estimates.fallback == majority[None]

    def median(value):
        value = jnp.where(counted, value, jnp.nan)
        # Infinite rates are ranked, and not averaged: between -inf and a number the lower is taken.
        return jnp.nanquantile(value, 0.5, axis=0, method="lower")

    rate, low, high = (jnp.asarray(x, float) for x in (estimates.log10_rate, estimates.low, estimates.high))
    vote = {name: jnp.mean(getattr(estimates, name), axis=0) > 0.5 for name in ("identified", "used")}
    point = median(rate)
    low, high = (_mixture_quantile(rate, low, high, p) for p in (0.025, 0.975))
    known = ("slope", "intercept", "r2", "curvature", "ess", "pareto_k", "largest", "start_alpha")
    return Estimate(
        log10_rate=point,
        low=jnp.where(jnp.isnan(point), low, jnp.minimum(low, point)),
        high=jnp.where(jnp.isnan(point), high, jnp.maximum(high, point)),
        **{name: median(getattr(estimates, name)) for name in known},
        **vote,
        fallback=majority,
        rollouts=estimates.rollouts[0],
        tokens=estimates.tokens[0],
    )


def _mixture_quantile(rate: jax.Array, low: jax.Array, high: jax.Array, p: float) -> jax.Array:
    """The p quantile over D draws [D, ...] read as two half-normals each; -inf or 0 where it lies beyond an end."""
    # A draw without a rate knows its interval at most: its middle then stands for the rate.
    rate = jnp.where(jnp.isnan(rate), 0.5 * (low + high), rate)
    unbounded_low, unbounded_high = jnp.isneginf(low), high >= 0.0
    sd_low = jnp.where(unbounded_low, 1.0, jnp.maximum(rate - low, 1e-9) / Z95)
    sd_high = jnp.where(unbounded_high, 1.0, jnp.maximum(high - rate, 1e-9) / Z95)
    # A rate of 0 with a ceiling: as for a count of 0, whose posterior falls off exponentially in the rate.
    none = jnp.isneginf(rate)
    centre = jnp.where(none, 0.0, rate)

    def cdf(x):  # [...] -> [...]
        x = x[None]
        below = jnp.where(unbounded_low, 0.5, ndtr((x - centre) / sd_low))
        above = jnp.where(unbounded_high, 0.5, ndtr((x - centre) / sd_high))
        tail = -jnp.expm1(jnp.log(0.025) * 10.0 ** jnp.clip(x - high, -300.0, 2.0))
        at_none = jnp.where(unbounded_high, 0.5, jnp.maximum(0.5, tail))
        return jnp.mean(jnp.where(none, at_none, jnp.where(x < centre, below, above)), axis=0)

    least = jnp.min(jnp.where(unbounded_low, jnp.where(none, high, rate), low), axis=0)
    bottom, top = 4.0 * jnp.minimum(least, 0.0) - 20.0, jnp.zeros_like(least)

    def halve(_, ends):
        a, b = ends
        middle = 0.5 * (a + b)
        under = cdf(middle) < p
        return jnp.where(under, middle, a), jnp.where(under, b, middle)

    _, found = jax.lax.fori_loop(0, 60, halve, (bottom, top))
    return jnp.where(cdf(bottom) >= p, -jnp.inf, jnp.where(cdf(top - 1e-9) < p, 0.0, found))
