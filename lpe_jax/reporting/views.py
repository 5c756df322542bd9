"""What stands where in a report: numbers as words, for the template to put in place. Nothing here is markup but SVG."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.reporting import ground, svg
from lpe_jax.reporting.cautions import cautions
from lpe_jax.reporting.judges import cascade_words, verdict_words
from lpe_jax.reporting.report import LONGEST, Options, RunContents
from lpe_jax.reporting.risk import above, deployment
from lpe_jax.reporting.standing import METHODS, STATES, interval_of, order_of, place_of, sortable, state_of
from lpe_jax.reporting.table import PromptResult, estimates_rows, floor_words, notes, stood_by, unfitted
from lpe_jax.reporting.text import counted, duration, format_rate, printable, superscript
from lpe_jax.types import Prompt


def visible(text: str) -> str:
    """Text in its lines, with every other control, direction or invisible character escaped as \\x1b."""
    return "\n".join(printable(line) for line in text.replace("\r\n", "\n").split("\n"))


def run_view(contents: RunContents, number: int, options: Options) -> dict[str, Any]:
    """All that the template says of one run."""
    results = contents.results
    lowest = min([-3.0, *(place_of(r) for r in results), *(r.truth[0] for r in ground.known(results))])
    lowest = max(math.floor(lowest - 0.5), -12)
    unscored, total = sum(r.unscored for r in results), sum(r.complied + r.refused + r.unscored for r in results)
    risks, why_not = deployment(results) if contents.finished else ([], "this run is not finished")
    return {
        "key": f"r{number}",
        "name": printable(contents.name),
        "method": METHODS.get(contents.method, contents.method),
        "about": _about(contents),
        "finished": contents.finished,
        "differing": contents.differing,
        "count": len(results),
        "above": dataclasses.asdict(above(results, math.log10(options.risk))),
        "identified": sum(map(stood_by, results)),
        "worst": _worst(results),
        "unfitted": sum(map(unfitted, results)),
        "rollouts": sum(int(r.estimate.rollouts) for r in results),
        "tokens": sum(int(r.tokens) for r in results),
        "unscored": unscored,
        "unscored_share": f"{100 * unscored / total:.2g} %" if unscored else "0 %",
        "risks": [_risk(risk) for risk in risks],
        "tails": _tails(risks, results) if risks else None,
        "no_risks": why_not,
        "cautions": _cautions(contents),
        "axis": Markup(svg.strip_axis(lowest)),
        "rows": [
            _row(contents, r, row, lowest, options) for r, row in zip(results, estimates_rows(results), strict=True)
        ],
        "states": {state: STATES[state] for state in STATES if any(state_of(r) == state for r in results)},
        "truths": _truths(contents),
        "naive": ground.against_naive(results),
        "saved": _saved(results),
        "seconds": duration(contents.seconds),
        "judge": _judge(contents),
        "tables": _tables(contents),
    }


def _row(
    contents: RunContents, result: PromptResult, row: Mapping[str, str], lowest: float, options: Options
) -> dict[str, Any]:
    """One prompt's, closed and opened."""
    prompt = contents.prompts.get(result.prompt_id)
    said = contents.notes.get(result.prompt_id, printable(notes(result)))
    fit = result.fit
    drawn = [i for i in np.argsort(np.asarray(fit.alpha)) if fit.scored[i] > 0]
    fitted = np.asarray(result.estimate.used, bool)
    return {
        "id": printable(result.prompt_id),
        "category": printable(result.category),
        "find": printable(f"{result.prompt_id} {result.category} {said}").lower(),
        "rate": row["rate"],
        "low": row["low"],
        "high": row["high"],
        "interval": interval_of(result),
        "sort": order_of(result),
        "strip": Markup(svg.strip_svg(result, lowest)),
        "state": state_of(result),
        "state_words": STATES[state_of(result)],
        "method": METHODS.get("naive" if result.from_naive else result.method, result.method),
        "fit": _fit(result),
        "fit_sort": sortable(_fit_sort(result)),
        "rollouts": int(result.estimate.rollouts),
        "verdicts": f"{result.complied:,} complied, {result.refused:,} refused, {result.unscored:,} unscored",
        "unscored": result.unscored,
        "notes": said,
        "brief": said.removeprefix("not identified: "),
        "truth": "" if result.truth is None else format_rate(result.truth[0]),
        "naive": _naive(result),
        "figure": Markup(svg.path_svg(result)),
        "legend": [(Markup(mark), words) for mark, words in svg.path_legend(result)],
        "searched": result.search is not None,
        "points": [
            (f"{float(fit.alpha[i]):g}", f"{float(fit.complied[i]):,.0f}", f"{float(fit.scored[i]):,.0f}", fitted[i])
            for i in drawn
        ],
        "turns": [] if prompt is None or not options.rollouts else _turns(prompt),
        "shown": [
            {
                "outcome": shown.outcome,
                "alpha": f"{shown.alpha:g}",
                "index": shown.index,
                "text": visible(shown.text),
                "beyond": shown.beyond,
            }
            for shown in contents.shown.get(result.prompt_id, ())
        ],
    }


def _naive(result: PromptResult) -> str:
    if result.naive is None:
        return ""
    fitted = ground.fitted_at_one(result)[1]
    said = f"{result.naive[0]:,} of {result.naive[1]:,} complied"
    if result.from_naive:
        return f"{said}; no path was fitted, and the rate is theirs"
    return said + (f"; {fitted:,} of these rollouts are fitted, the others check the fit" if fitted else "")


def _turns(prompt: Prompt) -> list[tuple[str, str, int]]:
    """(role, text, characters left out) of what was asked."""
    return [
        (printable(m.role), visible(m.content[:LONGEST]), max(len(m.content) - LONGEST, 0)) for m in prompt.messages
    ]


def _fit(result: PromptResult) -> str:
    hits, points = int(np.sum(result.fit.complied)), int(np.sum(result.estimate.used))
    if result.from_naive:
        return "{:,} of {:,} naive".format(*result.naive)
    if result.method == "naive":
        return f"{hits:,} of {int(np.sum(result.fit.scored)):,}"
    if result.search is None:
        return f"{counted(hits, 'hit')} at {counted(points, 'alpha')}"
    r2 = float(result.estimate.r2)
    return counted(points, "point") + ("" if math.isnan(r2) else f", R² {r2:.2f}")


def _fit_sort(result: PromptResult) -> float:
    r2 = float(result.estimate.r2)
    return float(np.sum(result.fit.complied)) if result.search is None else -1.0 if math.isnan(r2) else r2


def _worst(results: Sequence[PromptResult]) -> dict[str, str] | None:
    """The highest rate of those that come from a fit: what stands in for one is a default."""
    some = [r for r in results if float(r.estimate.log10_rate) > -math.inf and not unfitted(r)]
    if not some:
        return None
    worst = max(some, key=place_of)
    ends = f"[{format_rate(float(worst.estimate.low))}, {format_rate(float(worst.estimate.high))}]"
    return {"id": printable(worst.prompt_id), "ends": ends, "rate": format_rate(place_of(worst))}


def _risk(risk) -> dict[str, str]:
    return {
        "method": risk.method,
        "queries": superscript(round(math.log10(risk.queries))),
        "worst": _chance(*risk.worst),
        "any": _chance(*risk.any),
        "failures": "{} [{}, {}]".format(*(_count(10.0**x) for x in risk.failures)),
    }


def _chance(value: float, low: float, high: float) -> str:
    """A probability with its interval, of log10; what is nearly certain is not called certain."""

    def words(log10: float) -> str:
        return "> 0.99" if 10**log10 > 0.99 else format_rate(log10) if log10 < -2 else f"{10**log10:.2f}"

    return words(value) if 10**low > 0.99 else f"{words(value)} [{words(low)}, {words(high)}]"


def _tails(risks: Sequence[Any], results: Sequence[PromptResult]) -> dict[str, Any]:
    """What a forecast is to be held against: failures by the mean of these rates themselves, and how far the tails are
    from each other, at the fewest queries.
    """
    queries = min(risk.queries for risk in risks)
    failures = [risk.failures[0] for risk in risks if risk.queries == queries]
    mean = float(np.mean([10.0 ** min(float(r.estimate.log10_rate), 0.0) for r in results]))
    apart = 10 ** (max(failures) - min(failures))
    return {
        "queries": superscript(round(math.log10(queries))),
        "mean": _count(mean * queries),
        "apart": f"{apart:.0f}" if apart >= 3 else "",
        "guesses": sum(not stood_by(r) for r in results),
    }


def _count(value: float) -> str:
    """A number of queries to two digits."""
    if not math.isfinite(value):
        return "unknown"
    if value < 0.01:
        return f"{value:.1e}"
    if value < 10:
        return f"{value:.2g}"
    unit = 10 ** max(math.floor(math.log10(value)) - 1, 0)
    return f"{round(value / unit) * unit:,}"


def _truths(contents: RunContents) -> dict[str, Any] | None:
    """Calibration, and ranking where it tells anything."""
    results = contents.results
    found, ranks = ground.held(results), ground.ranked(results, contents.procedure)
    if found is None:
        return None
    needs = math.inf if ranks is None else ranks.naive_needs
    return {
        "held": found,
        "figure": Markup(svg.calibration_svg(ground.known(results))),
        "bias": f"{abs(found.bias):.2f} decades too {'high' if found.bias > 0 else 'low'}",
        "ranks": ranks,
        "auroc": None if ranks is None else Markup(svg.auroc_svg([("this run", ranks)])),
        "fewer": ranks is not None and len(ranks.fewer[0]) > 1,
        "needs": f"more than {_count(float(ranks.budgets[-1]))}" if ranks and needs == math.inf else _count(needs),
    }


def _saved(results: Sequence[PromptResult]) -> dict[str, str] | None:
    found = ground.saved(results)
    if found is None or results[0].method == "naive":
        return None
    prompts, naive, spent = found
    return {
        "prompts": f"{prompts:,}",
        "naive": _count(naive),
        "spent": f"{spent:,.0f}",
        "factor": _count(naive / spent),
        "less": naive <= spent,
        "all": prompts == len(results),
    }


def _judge(contents: RunContents) -> dict[str, Any]:
    settings = contents.record["settings"]
    quality = settings.get("judge_quality")
    words = [
        *cascade_words(contents.phases),
        *verdict_words(contents.results),
        *([] if quality is None else [floor_words(JudgeQuality(**quality))]),
        *(
            f"{known_as.partition(';')[0]}: {calls:,} calls, {read:,} input and {said:,} output tokens"
            for known_as, (calls, read, said) in sorted(contents.spent.items())
        ),
    ]
    return {
        "identity": printable(settings["judge"]),
        "words": [printable(line) for line in words],
        "corrected": sum(r.corrected for r in contents.results),
        "reasons": [
            (visible(why), f"{n:,}") for why, n in sorted(contents.reasons.items(), key=lambda x: (-x[1], x[0]))
        ],
        "complied": sum(r.complied for r in contents.results),
        "refused": sum(r.refused for r in contents.results),
        "unscored": sum(r.unscored for r in contents.results),
    }


def _cautions(contents: RunContents) -> list[str]:
    asked = contents.record["asked"]
    judge = contents.record["settings"]["judge"].partition("@")[0]
    own = {"tiny": not asked.get("original"), "own_prompts": bool(asked.get("prompts")), "judge": judge}
    return [
        line[0].upper() + line[1:] for line in cautions(method=contents.method, prompts=len(contents.results), **own)
    ]


def _about(contents: RunContents) -> list[tuple[str, str]]:
    asked, record = contents.record["asked"], contents.record
    models = asked.get("original") or asked.get("world") or "the embedded pair"
    if asked.get("variant"):
        models += f" and {asked['variant']}"
    return [
        (name, printable(str(value)))
        for name, value in (
            ("models", models),
            ("method", f"{contents.method} ({METHODS.get(contents.method, contents.method)})"),
            ("judge", record["settings"]["judge"].partition("@")[0]),
            ("begun", record["started"]),
            ("lpe_jax", record["versions"].get("lpe_jax", "unknown")),
        )
    ]


def _tables(contents: RunContents) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headed tables of names and values: settings, extent, versions, hashes."""
    record = contents.record
    settings = dict(_flat(record["settings"]))
    hashed = {name: settings.pop(name) for name in list(settings) if _is_hash(settings[name]) or name == "judge"}
    hashed |= {f"prompts: {k}": record["asked"][k] for k in ("prompt_texts",) if k in record["asked"]}
    extent = {k: v if not isinstance(v, dict) else len(v) for k, v in record["extent"].items()}
    tables = (
        ("Settings", settings | {f"{k} (may grow)": v for k, v in extent.items()}),
        ("Fingerprints: weights, tokenizer, chat template, judge, prompts", hashed),
        ("Files, sha256", contents.hashes),
        ("Versions", record["versions"]),
    )
    return [
        (head, [(printable(k), printable(_value(v))) for k, v in sorted(rows.items())]) for head, rows in tables if rows
    ]


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, inner in value.items():
        rows += _flat(inner, f"{before}{key}.") if isinstance(inner, dict) else [(before + key, inner)]
    return rows


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
