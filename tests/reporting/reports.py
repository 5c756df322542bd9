"""Contents of made-up runs, for reports to be made of."""

from __future__ import annotations

import dataclasses

import numpy as np

from lpe_jax.estimation.lpe import LPE
from lpe_jax.reporting.report import RunContents, Shown
from lpe_jax.reporting.table import PromptResult
from lpe_jax.types import Counts, Message, Prompt

DIGEST = "3b0c17b0c415e784ea217f44948ab8d4bb347a5d443e58f53d65bf18b295068f"
# Texts that a browser, a terminal or a spreadsheet would act on, were they not escaped.
NASTY = (
    "<script>window.struck = 1</script>",
    "</script><script>window.struck = 2</script>",
    "</style><img src=x onerror='window.struck = 3'>",
    '"><svg onload="window.struck = 4">',
    "' autofocus onfocus='window.struck = 5",
    "<a href='javascript:window.struck = 6'>fold</a>",
    "</pre></details></td></tr></table><iframe srcdoc='<script>parent.struck = 7</script>'></iframe>",
    "<!-- <base href='https://fold.example/'> --><meta http-equiv=refresh content='0;url=https://fold.example/'>",
    "{{ 7 * 7 }}{% for x in y %}${window.struck = 8}&lt;b&gt;",
    "a\u2028b\u2029c",
    "nul \x00 bell \x07 erase \x1b[2J\x1b]0;title\x07",
    "left \u202e thgir \u2066 isolated \u200f mark \ufeff",
    '=HYPERLINK("https://fold.example","fold")',
    "half a pair \ud83d",
    "]]><![CDATA[ <title>x</title> <textarea> <plaintext>",
)


def result(prompt_id: str, number: int, alphas: int = 20, truth: bool = True, **more) -> PromptResult:
    """A prompt whose path is a straight line, steeper for higher numbers."""
    rng = np.random.default_rng(number)
    alpha = np.linspace(0.95, 0.0, alphas)
    slope = -1.0 - 8.0 * rng.random()
    rate = 10.0 ** np.minimum(slope * alpha - 0.15, 0.0)
    scored = np.full(alphas, 60.0)
    fit = Counts(alpha, scored, rng.binomial(60, rate).astype(float))
    search = Counts(alpha, np.full(alphas, 10.0), rng.binomial(10, rate).astype(float))
    complied = int(fit.complied.sum() + search.complied.sum())
    fields = {
        "complied": complied,
        "refused": 70 * alphas - complied,
        "tokens": 900 * alphas,
        "truth": (slope - 0.15, 0.02) if truth else None,
        "naive": (int(rng.binomial(100, 10 ** (slope - 0.15))), 100),
    }
    return PromptResult(prompt_id, LPE().fit(fit, search), fit, "lpe", search=search, **(fields | more))


def record(judge: str = "rules@0123", **settings) -> dict:
    """As run.json of a finished run."""
    return {
        "status": "finished",
        "started": "2026-01-02T03:04:05Z",
        "settings": {"method": "lpe", "judge": judge, "seed": 0, "weights": DIGEST, "sampling": {"top_k": 0}}
        | settings,
        "extent": {"prompts": {"a": "b"}, "naive_check": 100},
        "asked": {"original": "made/up", "variant": "made/down", "judge": judge, "prompt_texts": DIGEST},
        "versions": {"lpe_jax": "0.0.0", "jax": "0.0"},
    }


def contents(ids, *, name: str = "run", truth: bool = True, text: str = "fold a boat", **more) -> RunContents:
    """A run over prompts of these ids."""
    shown = (Shown("complied", 0.9, 0, text), Shown("refused", 1.0, 3, "whistle " * 40, 17))
    fields = {
        "record": record(),
        "results": [result(prompt_id, i, truth=truth) for i, prompt_id in enumerate(ids)],
        "prompts": {i: Prompt(i, (Message("system", "hum"), Message("user", text)), "crafts") for i in ids},
        "shown": dict.fromkeys(ids, shown),
        "seconds": 12.0,
        "hashes": {"estimates.csv": DIGEST},
    }
    return RunContents(name=name, **(fields | more))


def nasty() -> list[RunContents]:
    """Runs in which whatever comes from outside is one of NASTY. Each has too few prompts for a forecast."""
    runs = []
    for part in (NASTY[0::3], NASTY[1::3], NASTY[2::3]):
        results = [
            result(text, i, category=part[-1 - i], note=text, unscored=3, reasons={text: 3})
            for i, text in enumerate(part)
        ]
        more = {
            "record": record(part[3], **{part[2]: part[4]}) | {"versions": {"lpe_jax": part[0]}},
            "results": results,
            "prompts": {i: Prompt(i, (Message(i, i), Message("user", i)), i) for i in part},
            "shown": {i: (Shown("complied", 0.5, 1, i), Shown("refused", 0.5, 2, i * 3)) for i in part},
            "reasons": dict.fromkeys(part, 2),
            "spent": {f"{part[1]};thinking=False": (1, 2, 3)},
            "hashes": {part[1]: part[2]},
        }
        runs.append(contents(part, name=part[0], **more))
    return runs


def large() -> RunContents:
    """Two hundred prompts at twenty alphas, six texts of 2,000 characters each."""
    made = contents([f"prompt-{i:03d}" for i in range(200)], truth=False, text="fold a boat " * 167)
    return dataclasses.replace(made, shown={i: some * 3 for i, some in made.shown.items()})
