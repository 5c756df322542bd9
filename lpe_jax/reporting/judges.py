"""What is to be known of the judge before its rates are believed, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lpe_jax.estimation.intervals import clopper_pearson
from lpe_jax.estimation.two_phase import Audit, audit_quality, phase_audit
from lpe_jax.judging.base import Meter
from lpe_jax.judging.labels import Validation
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.reporting.table import PromptResult
from lpe_jax.reporting.text import format_rate
from lpe_jax.types import Outcome

if TYPE_CHECKING:
    from lpe_jax.judging.desk import Desk

# Fewer verdicts than these say nothing of a judge.
_FEW = 50
# Agreement beyond chance below this is called poor (Landis and Koch 1977 call it slight).
_POOR = 0.2


def spending(desk: Desk, settings: JudgeSettings) -> tuple[Meter, float | None]:
    """What judges that are waited for have cost since this process began, and that in money if prices are known."""
    total = Meter()
    for judge, _ in desk.remote:
        total.add(judge.meter.calls, judge.meter.input_tokens, judge.meter.output_tokens)
        # A copy, as another thread counts in it.
        total.failures.update(dict(judge.meter.failures))
    return total, None if settings.prices is None or not desk.remote else total.cost(settings.prices)


def judging_words(desk: Desk, spent: Mapping[str, tuple[int, int, int]], settings: JudgeSettings) -> list[str]:
    """What each judge that is waited for has cost the run, a sentence each.

    Args:
      spent: by what a ledger knows a judge by, see lpe_jax.records.ledger.spent_in.
    """
    found = []
    for judge, known_as in desk.remote:
        meter = Meter(*spent.get(known_as, (0, 0, 0)))
        said = f"judge {judge.identity}: {meter.calls:,} calls"
        said += f", {meter.input_tokens:,} input and {meter.output_tokens:,} output tokens"
        if settings.prices is not None:
            said += f", {meter.cost(settings.prices):,.2f} at --judge_prices"
        found.append(said)
    return found


def cascade_words(phases: Mapping[tuple[str, str | None], int]) -> list[str]:
    """How two judges in a row agreed, what the second was spared, and what the first alone could not have seen.

    phases: rollouts by the outcomes of both, see lpe_jax.estimation.two_phase.phase_audit; empty gives nothing.
    """
    total = sum(phases.values())
    if not total:
        return []
    raised, scored, audit = phase_audit(phases)
    refused, looked = scored - raised, sum(n for (_, second), n in phases.items() if second is not None)
    found = [
        f"the first judge called {raised:,} of {scored:,} rollouts compliant; the second looked at those and at "
        f"{audit.negatives:,} of the others, {looked:,} looks in all, {total / max(looked, 1):,.1f} x fewer than all"
    ]
    if not audit.negatives:
        found.append(
            "nothing that the first judge did not call compliant was audited: what it misses is in no rate and in no "
            "interval"
        )
        return found
    share = audit.negatives_complied / audit.negatives
    # Rows: the second judge's word, complied and refused; columns: the first's.
    table = (
        (audit.positives_complied, share * refused),
        (raised - audit.positives_complied, (1 - share) * refused),
    )
    complied, innocent, kappa = sum(table[0]), sum(table[1]), _kappa(table)
    found.append(
        f"of the {raised:,} that the first called compliant the second agreed on {audit.positives_complied:,}; of the "
        f"{audit.negatives:,} audited it called {audit.negatives_complied:,} compliant, so about "
        f"{share * refused:,.0f} of all {refused:,}"
    )
    found.append(
        f"agreement beyond chance (κ) {_number(kappa)}; the first alone would have found "
        f"{_share(table[0][0], complied)} of what complied, and called {_share(table[1][0], innocent)} of refusals "
        f"compliant: a floor of {_rate(table[1][0], innocent)} under its rates"
    )
    if scored >= _FEW and not kappa > _POOR:
        found.append("warning: the two judges hardly agree more than by chance; look at both before believing either")
    return found


def agreement_words(both: Mapping[tuple[Outcome, Outcome], int], name: str) -> list[str]:
    """How a judge agrees with an earlier one, `name`, where both have scored.

    Args:
      both: rollouts by the earlier judge's outcome and the new one's.
    """
    both = Counter({words: n for words, n in both.items() if Outcome.UNSCORED not in words})
    total = sum(both.values())
    if not total:
        return [f"no rollout has a verdict by {name} to compare with"]
    yes, no = Outcome.COMPLIED, Outcome.REFUSED
    table = (both[yes, yes], both[no, yes]), (both[yes, no], both[no, no])
    return [
        f"against {name}, on {total:,} rollouts that both scored: both compliant {both[yes, yes]:,}, both refused "
        f"{both[no, no]:,}, compliant by this one alone {both[no, yes]:,}, by that one alone {both[yes, no]:,}; "
        f"agreement beyond chance (κ) {_number(_kappa(table))}"
    ]


def validation_words(found: Validation, totals: tuple[int, int] | None, other: bool = False) -> list[str]:
    """How a judge does on responses that a person has labelled, and how that is passed on.

    Args:
      totals: of all rollouts that the labelled ones were drawn from by this judge's own word, how many it called
        compliant and how many it scored; None where they were drawn whatever it said.
      other: they were drawn by another judge's word.
    """
    yes, no = found.hits + found.misses, found.alarms + found.cleared
    lines = [f"held against {yes + no:,} labels, {found.unscored:,} more unscored:"]
    if totals is None:
        lines += [
            f"  of {yes:,} that comply it found {_counted(found.hits, yes)}",
            f"  of {no:,} that refuse it cleared {_counted(found.cleared, no)}",
        ]
        if other:
            lines.append("the labels were drawn by another judge's word, so these shares are not those of all rollouts")
            return lines
        quality = found.hits, yes, found.cleared, no
    else:
        raised, refused = found.hits + found.alarms, found.misses + found.cleared
        lines += [
            f"  of {raised:,} that it calls compliant comply {_counted(found.hits, raised)}",
            f"  of {refused:,} that it calls refused refuse {_counted(found.cleared, refused)}",
        ]
        quality = audit_quality(*totals, Audit(raised, found.hits, refused, found.misses))
    if quality[1] and quality[3]:
        hits, of, right, total = quality
        lines.append(f"to correct rates for it: --judge_sensitivity={hits}/{of} --judge_specificity={right}/{total}")
    else:
        lines.append("too few labels of one kind to correct rates by")
    return lines


def _counted(hits: int, total: int) -> str:
    """A count, its share and the share's exact 95 % interval."""
    if not total:
        return "0"
    low, high = (100 * float(end) for end in clopper_pearson(hits, total))
    return f"{hits:,}, {100 * hits / total:.3g} % [{low:.3g}, {high:.3g}]"


def verdict_words(results: Iterable[PromptResult]) -> list[str]:
    """Warnings that verdicts themselves give rise to: a judge that always says the same."""
    results = list(results)
    complied, refused = sum(r.complied for r in results), sum(r.refused for r in results)
    if complied + refused < _FEW or (complied and refused):
        return []
    word = "compliant" if complied else "refused"
    return [
        f"warning: the judge called every one of {complied + refused:,} rollouts {word}, at every alpha; unless these "
        "prompts are like that, it cannot tell the difference"
    ]


def _kappa(table: tuple[tuple[float, float], tuple[float, float]]) -> float:
    """Cohen's (1960) agreement beyond chance of a table of counts; NaN where either says only one thing."""
    (a, b), (c, d) = table
    n = a + b + c + d
    agreed, chance = (a + d) / n, ((a + b) * (a + c) + (c + d) * (b + d)) / n**2
    return (agreed - chance) / (1 - chance) if chance < 1 else math.nan


def _share(part: float, whole: float) -> str:
    return "an unknown share" if not whole else f"{100 * part / whole:.3g} %"


def _rate(part: float, whole: float) -> str:
    return "unknown height" if not whole else format_rate(math.log10(part / whole) if part else -math.inf)


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"
