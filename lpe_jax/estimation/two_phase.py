"""Two-phase verdicts: every rollout judged, and random samples of both answers checked by something better."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.estimation.intervals import clopper_pearson
from lpe_jax.estimation.judge_error import JudgeQuality, least, most, plain, profile_ends
from lpe_jax.estimation.precision import in_float64
from lpe_jax.types import Outcome

# A judge that is right about so many of so many is right.
_CERTAIN = 1e12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Audit:
    """What a check of judged rollouts found; they were drawn at random from those judged compliant, and refused.

    Of `positives` judged compliant `positives_complied` truly complied; of `negatives` judged refused
    `negatives_complied` did. The fields may be arrays of one shape.

    Raises:
      ValueError: counts that no audit can yield.
    """

    positives: Any
    positives_complied: Any
    negatives: Any
    negatives_complied: Any

    def __post_init__(self):
        if not plain(vars(self).values()):  # being traced, or taken apart and put together by jax
            return
        for name in ("positives", "negatives"):
            total, hits = np.asarray(getattr(self, name)), np.asarray(getattr(self, f"{name}_complied"))
            if not (np.all(hits == np.round(hits)) and np.all(total == np.round(total))):
                raise ValueError(f"{name} must be whole rollouts, and are {hits} of {total}.")
            if np.any(hits < 0) or np.any(hits > total):
                raise ValueError(f"{name} must have 0 <= complied <= audited, and are {hits} of {total}.")


def audited_rate(complied: Any, scored: Any, audit: Audit) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rate of truly compliant rollouts: (log10 rate, low, high), of the shape all arguments broadcast to.

    complied of scored is what the judge said of all, the audited ones included. The rate is the stratified one, q
    times the share of audited positives that complied plus 1 - q times that of audited negatives (Cochran 1977,
    double sampling). An empty stratum of the audit is one nothing is known of: its share is 0 in the rate, and
    anything in the interval.

    The 95 % interval is the profile-likelihood interval of that rate. Audited rollouts make up a two-by-two table of
    truth by judge, the others are judged only; and the likelihood is then that of `corrected_rate`, where the
    table's rows are the judge's sensitivity b / (b + d) and false alarms (a - b) / (a - b + c - d), the unaudited
    rollouts are the judged count, and the table's own truths are one more binomial. So an audit is a check of the
    judge on the very rollouts whose rate is asked for; its rows alone are no JudgeQuality, as positives were
    sampled more often than negatives. The interval is widened where needed to what each binomial alone allows by
    Clopper and Pearson (judged rate, positives, negatives), the others held at their estimates.

    Raises:
      ValueError: more audited than the judge said so of.
    """
    if plain((complied, scored, *vars(audit).values())):
        if np.any(np.asarray(audit.positives) > np.asarray(complied)):
            raise ValueError(f"positives must be some of the {complied} judged compliant, and are {audit.positives}.")
        if np.any(np.asarray(audit.negatives) > np.asarray(scored) - np.asarray(complied)):
            raise ValueError(
                f"negatives must be some of the {np.asarray(scored) - np.asarray(complied)} judged refused, and are "
                f"{audit.negatives}."
            )
    return _audited_rate(complied, scored, audit)


@in_float64()
def _audited_rate(complied: jax.Array, scored: jax.Array, audit: Audit) -> tuple[jax.Array, jax.Array, jax.Array]:
    fields = (complied, scored, audit.positives, audit.positives_complied, audit.negatives, audit.negatives_complied)
    k, n, a, b, c, d = jnp.broadcast_arrays(*(jnp.asarray(field, float) for field in fields))
    q, positive, negative = (hits / jnp.maximum(total, 1.0) for hits, total in ((k, n), (b, a), (d, c)))

    def rate(q, positive, negative):
        return q * positive + (1.0 - q) * negative

    point = rate(q, positive, negative)
    table = (b, b + d), (a - b, a - b + c - d), (b + d, a + c)
    low, high = profile_ends(point, (k - a, n - a - c), *table)
    ends = clopper_pearson(jnp.stack([k, b, d]), jnp.stack([n, a, c]))
    low, high = (
        pick(end, rate(q_end, positive, negative), rate(q, positive_end, negative), rate(q, positive, negative_end))
        for pick, end, (q_end, positive_end, negative_end) in zip((least, most), (low, high), ends, strict=True)
    )
    return (
        jnp.where(n > 0, jnp.log10(point), jnp.nan),
        jnp.where(n > 0, low, -jnp.inf),
        jnp.where(n > 0, high, 0.0),
    )


def phase_audit(phases: Mapping[tuple[str, str | None], float]) -> tuple[float, float, Audit]:
    """What two judges in a row said of one prompt at one alpha, as arguments of `audited_rate`: (complied, scored,
    audit), on the host.

    phases counts rollouts by (the first judge's outcome, the second's or None where it was not asked); the second was
    asked of all that the first did not call refused, and of a random sample of the others. Its word is the truth.
    Rollouts that it left unscored are in no count.
    """

    def of(first: tuple[str, ...], second: tuple[str | None, ...]) -> float:
        return sum(n for (a, b), n in phases.items() if a in first and b in second)

    raised = (Outcome.COMPLIED, Outcome.UNSCORED)
    known = (Outcome.COMPLIED, Outcome.REFUSED)
    positives, positives_complied = of(raised, known), of(raised, (Outcome.COMPLIED,))
    negatives, negatives_complied = of((Outcome.REFUSED,), known), of((Outcome.REFUSED,), (Outcome.COMPLIED,))
    scored = positives + negatives + of((Outcome.REFUSED,), (None,))
    return positives, scored, Audit(positives, positives_complied, negatives, negatives_complied)


def phase_quality(phases: Mapping[tuple[str, str | None], float]) -> JudgeQuality:
    """How far two judges in a row are to be believed as one judge, from what they said of all rollouts of a run.

    What the second calls compliant did comply, so there are no false alarms. Of what complied, what the first called
    refused and the audit passed over is missed. With b found and m of them by the audit, which saw c of the N that the
    first called refused, m (N - c) / c are estimated to be missed, and known as well as m misses are known: as of
    (b + m) c / (N - c) hits and m misses. Counts are shares of rollouts then, and not whole.
    """
    complied, scored, audit = phase_audit(phases)
    seen, missed = audit.negatives, audit.negatives_complied
    found, unseen = audit.positives_complied + missed, scored - complied - audit.negatives
    # Where all were looked at nothing can have been missed.
    hits, misses = (found * seen / unseen, missed) if unseen > 0 else (_CERTAIN, 0.0)
    # As jax numbers: they are shares of rollouts, and need not be whole.
    right, of, certain = (jnp.asarray(float(x)) for x in (hits, hits + misses, _CERTAIN))
    return JudgeQuality(right, of, certain, certain)


def audit_quality(complied: float, scored: float, audit: Audit) -> tuple[int, int, int, int]:
    """The fields of a JudgeQuality, for a judge whose answers were sampled for an audit; whole rollouts, on the host.

    Of `scored` rollouts it called `complied` compliant. Each kind of error is known about as well as the few that the
    audit found of it, so what complied is scaled to the share of refusals that were audited and stands beside the
    misses among those; and likewise what was cleared beside false alarms. Of the audited rollouts themselves
    `audited_rate` says more.
    """
    positives, negatives = max(complied, 1.0), max(scored - complied, 1.0)
    seen_positives, seen_negatives = audit.positives / positives, audit.negatives / negatives
    wrong, missed = audit.positives - audit.positives_complied, audit.negatives_complied
    found = audit.positives_complied / max(audit.positives, 1) * positives
    cleared = (1.0 - missed / max(audit.negatives, 1)) * negatives
    hits, right = round(found * seen_negatives), round(cleared * seen_positives)
    return hits, hits + int(missed), right, right + int(wrong)
