"""What is to be known of the judge before its rates are believed, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lpe_jax.estimation.two_phase import phase_audit
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.reporting.table import PromptResult
from lpe_jax.reporting.text import format_rate

if TYPE_CHECKING:
    from lpe_jax.judging.desk import Desk

# Fewer verdicts than these say nothing of a judge.
_FEW = 50
# Agreement beyond chance below this is called poor (Landis and Koch 1977 call it slight).
_POOR = 0.2


def spent_words(desk: Desk, settings: JudgeSettings) -> str:
    """What judges that are waited for have cost so far; empty without any."""
    parts = []
    for judge in desk.remote:
        meter = judge.meter
        said = f"{meter.calls:,} calls"
        if settings.prices is not None:
            said += f", {meter.cost(settings.prices):,.2f} spent"
        if meter.failures:
            said += ", " + ", ".join(f"{n} x {what}" for what, n in sorted(meter.failures.items()))
        parts.append(said)
    return "; ".join(parts)


def judging_words(desk: Desk, settings: JudgeSettings) -> list[str]:
    """What each judge that is waited for has cost, a sentence each."""
    found = []
    for judge in desk.remote:
        meter = judge.meter
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
            "nothing that the first judge called refused was audited: what it misses is in no rate and in no interval"
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
