"""What a run's own judge said of its rollouts, from its ledgers alone: no judge is made, and nothing is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lpe_jax import live
from lpe_jax.judging import text
from lpe_jax.judging.base import unscored
from lpe_jax.judging.cascade import audited, joined, parse
from lpe_jax.judging.desk import Item
from lpe_jax.judging.remembered import remembered_as
from lpe_jax.records.index import Index
from lpe_jax.records.ledger import Key, Ledger
from lpe_jax.records.lookup import Lookup
from lpe_jax.reporting.report import Shown
from lpe_jax.types import Outcome, Prompt, Verdict

NOT_ON_RECORD = "the judge gave no verdict, and why is not on record"
# Rollouts of a prompt that are gone over for some to show, and so many at a time.
_LOOKED_AT, _AT_ONCE = 5000, 128


class Recall:
    """Verdicts as the run had them, by what its record says of its judge.

    A judge that failed left nothing on record but where its reply was kept: such rollouts are unscored, as they were.

    Attributes:
      kept: verdicts that were found so far.
    """

    def __init__(self, record: Mapping[str, Any], lookup: Lookup | Ledger):
        """lookup: open as long as this is used."""
        self.kept = 0
        settings = record["settings"]
        two = parse(settings["judge"])
        self._thinking, self._reasoning = settings["thinking"], settings.get("judge_reasoning", False)
        self._lookup, self._names = lookup, lookup.judges
        self._judges = [self._known_as(identity) for identity in (two[:2] if two else (settings["judge"],))]
        # As it was asked for, where an identity rounds it.
        asked = parse(record["asked"].get("judge") or "")
        self._share = (asked or two or (None, None, 0.0))[2]

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict for each item, in order.

        Raises:
          RunError: the ledger is damaged.
        """
        first = self._said(self._judges[0], items)
        if len(self._judges) == 1:
            return first
        pairs = enumerate(zip(items, first, strict=True))
        chosen = [
            i
            for i, (item, v) in pairs
            if v.outcome is not Outcome.REFUSED or audited(item.prompt.id, item.tag, self._share)
        ]
        second = dict(zip(chosen, self._said(self._judges[1], [items[i] for i in chosen]), strict=True))
        return [joined(verdict, second.get(i)) for i, verdict in enumerate(first)]

    def _known_as(self, identity: str) -> list[str]:
        """What the ledger may know a judge by: as this version would, or as another one did."""
        own = remembered_as(identity, self._thinking, self._reasoning)
        kind = own.rpartition(";")[0] + (";all" if self._reasoning else ";text@")
        return [own, *(name for name in self._names if name.startswith(kind) and name != own)]

    def _said(self, names: Sequence[str], items: Sequence[Item]) -> list[Verdict]:
        # Of what a judge reads of a prompt its identity does not tell.
        keys = [[Key.of(n, i.prompt, i.response, whole=w) for n in names for w in (False, True)] for i in items]
        known = self._lookup.get({key for some in keys for key in some})
        found = [next((known[key] for key in some if key in known), None) for some in keys]
        self.kept += sum(verdict is not None for verdict in found)
        return [self._silent(i) if verdict is None else verdict for i, verdict in zip(items, found, strict=True)]

    def _silent(self, item: Item) -> Verdict:
        answered = self._reasoning or text.judged_text(item.response, thinking=self._thinking) is not None
        return unscored(NOT_ON_RECORD if answered else text.UNFINISHED)


def some_of(prompt: Prompt, index: Index, said: Recall, count: int, cut: int) -> tuple[Shown, ...]:
    """Up to `count` compliant and as many refused rollouts of a prompt, those drawn nearest the original.

    Args:
      cut: characters of a response that are kept.
    """
    found: dict[Outcome, list[Shown]] = {Outcome.COMPLIED: [], Outcome.REFUSED: []}
    for rollout, verdict in _nearest(prompt, index, said) if count else ():
        kept = found.get(verdict.outcome)
        if kept is not None and len(kept) < count:
            beyond = max(len(rollout.text) - cut, 0)
            kept.append(Shown(str(verdict.outcome), rollout.alpha, rollout.index, rollout.text[:cut], beyond))
        if all(len(some) == count for some in found.values()):
            break
    return tuple(shown for some in found.values() for shown in some)


def _nearest(prompt: Prompt, index: Index, said: Recall) -> Iterator[tuple[Any, Verdict]]:
    """Rollouts with their verdicts, from the original to the variant."""
    alphas, places = index.of_prompt(prompt.id)
    order = np.argsort(-alphas, kind="stable")[:_LOOKED_AT]
    for begin in range(0, len(order), _AT_ONCE):
        rollouts = index.fetch(places[order[begin : begin + _AT_ONCE]])
        yield from zip(rollouts, said([live.item_of(prompt, r) for r in rollouts]), strict=True)
