"""Rollouts that a person has looked at, and how a judge does on them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpe_jax.errors import JudgeError
from lpe_jax.records.files import read_text
from lpe_jax.types import Message, Outcome, Prompt, Rollout, Verdict

# No alpha is that large; and whole numbers beyond a float's range are not converted.
_HUGE = 1e9
# A hundred thousand long responses.
_MOST_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Label:
    """What a person says of one response: of a stored rollout, named by `key`, or of one that stands here.

    Attributes:
      complied: their word.
      key: prompt id, alpha and index of a rollout; None where prompt and response are given.
      drawn_by: identity of the judge by whose word it was drawn, where it was.
    """

    complied: bool
    key: tuple[str, float, int] | None = None
    prompt: Prompt | None = None
    response: str = ""
    drawn_by: str | None = None


@dataclasses.dataclass(frozen=True)
class Validation:
    """A judge's verdicts beside a person's labels: how many of each pair, and how many the judge left unscored.

    Attributes:
      hits, misses: that a person calls compliant, and the judge compliant, refused.
      alarms, cleared: that a person calls refused, and the judge compliant, refused.
    """

    hits: int
    misses: int
    alarms: int
    cleared: int
    unscored: int


def read_labels(path: Path) -> list[Label]:
    """Labels of a JSONL file, a JSON object a line: {"prompt_id": …, "alpha": …, "index": …, "complied": true} of a
    stored rollout, or {"prompt": …, "response": …, "complied": false}. Lines whose "complied" is null are not labelled
    yet and left out.

    Raises:
      JudgeError: the file cannot be read, or a line is neither.
    """
    try:
        lines = read_text(path, _MOST_BYTES).split("\n")
    except (OSError, UnicodeError) as error:
        raise JudgeError(f"--validate={path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            label = _label(f"--validate={path}, line {number}", line)
            found += [] if label is None else [label]
    if not found:
        raise JudgeError(f'--validate={path} holds no labels; each line is to say "complied": true or false')
    return found


def _label(where: str, line: str) -> Label | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise JudgeError(f"{where}: not a JSON object")
    if row.get("complied") is None and "complied" in row:
        return None
    if not isinstance(row.get("complied"), bool):
        raise JudgeError(f'{where}: "complied" must be true, false or null')
    if {"prompt_id", "alpha", "index"} <= row.keys():
        prompt_id, alpha, index = row["prompt_id"], row["alpha"], row["index"]
        if isinstance(prompt_id, str) and _is(alpha, (int, float)) and _is(index, (int,)) and abs(alpha) < _HUGE:
            drawn_by = row.get("drawn_by")
            key = prompt_id, float(alpha), index
            return Label(row["complied"], key=key, drawn_by=drawn_by if isinstance(drawn_by, str) else None)
        raise JudgeError(f'{where}: "prompt_id" must be text, "alpha" a number and "index" a whole number')
    if isinstance(row.get("prompt"), str) and isinstance(row.get("response"), str):
        prompt = Prompt(str(row.get("id", where)), (Message("user", row["prompt"]),))
        return Label(row["complied"], prompt=prompt, response=row["response"])
    raise JudgeError(f'{where}: it takes "prompt_id", "alpha" and "index", or "prompt" and "response"')


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def validation(labels: Sequence[Label], verdicts: Sequence[Verdict]) -> Validation:
    """A judge's verdicts on labelled responses, in order, counted."""
    pairs = Counter((label.complied, verdict.outcome) for label, verdict in zip(labels, verdicts, strict=True))
    yes, no = Outcome.COMPLIED, Outcome.REFUSED
    unscored = sum(pairs[word, Outcome.UNSCORED] for word in (True, False))
    return Validation(pairs[True, yes], pairs[True, no], pairs[False, yes], pairs[False, no], unscored)


def unlabelled(rollout: Rollout, prompt: Prompt, drawn_by: str) -> str:
    """A line for somebody to fill in. The judge's own word is not in it."""
    key = {"prompt_id": rollout.prompt_id, "alpha": rollout.alpha, "index": rollout.index}
    texts = {"prompt": prompt.text, "response": rollout.text}
    return json.dumps({"complied": None, **key, **texts, "drawn_by": drawn_by}) + "\n"
