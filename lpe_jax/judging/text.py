"""Which part of a response is judged."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"
# Why a response that ends while it still reasons is unscored.
UNFINISHED = "unfinished thinking"


def judged_text(response: str, *, thinking: bool) -> str | None:
    """The answer in a response: what follows the reasoning, without the blank lines in between.

    Reasoning ends at the first `</think>`, or goes on if another `<think>` follows at once; a tag that the answer
    merely mentions stays in it. With thinking off a response reasons only if it begins with `<think>` nonetheless;
    otherwise all of it is the answer, so that nothing said before a stray tag, a refusal for one, escapes the judge.

    Returns:
      None where the reasoning never ended, so that no answer was given.
    """
    answer, reasons = response, thinking
    while reasons or answer.lstrip().startswith(_OPEN):
        _, closed, answer = answer.partition(_CLOSE)
        if not closed:
            return None
        answer, reasons = answer.lstrip(), False
    return answer
