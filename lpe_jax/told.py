"""What a run's own judge said of its rollouts, from the ledger alone: no judge is made, and nothing is asked."""

from __future__ import annotations

from collections.abc import Sequence

from lpe_jax.judging.base import unscored
from lpe_jax.judging.cascade import audited, joined, parse
from lpe_jax.judging.desk import Item
from lpe_jax.judging.remembered import remembered_as
from lpe_jax.judging.text import UNFINISHED, judged_text
from lpe_jax.records.ledger import Key, Ledger
from lpe_jax.stored import Stored
from lpe_jax.types import Outcome, Verdict

# Why a rollout has no verdict here; a judge may have failed on it, or not have come to it yet.
NOT_KEPT = "no verdict is kept"


class Told:
    """The verdicts of the judge, or the two in a row, that a run was made with."""

    def __init__(self, stored: Stored, ledger: Ledger):
        """ledger: open as long as this is used."""
        self._ledger, settings = ledger, stored.settings
        self._thinking, self._reasoning = settings["thinking"], settings.get("judge_reasoning", False)
        two = parse(settings["judge"])
        judges, self._share = ((settings["judge"],), 0.0) if two is None else (two[:2], two[2])
        self._known_as = [remembered_as(judge, self._thinking, self._reasoning) for judge in judges]
        self.kept = 0  # verdicts found so far

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """One for each item, in order; unscored where none is kept.

        Raises:
          RunError: the ledger is damaged.
        """
        first = self._said(self._known_as[0], items)
        if len(self._known_as) == 1:
            return first
        asked = [
            i
            for i, (item, verdict) in enumerate(zip(items, first, strict=True))
            if verdict.outcome is not Outcome.REFUSED or audited(item.prompt.id, item.tag, self._share)
        ]
        second = dict(zip(asked, self._said(self._known_as[1], [items[i] for i in asked]), strict=True))
        return [joined(verdict, second.get(i)) for i, verdict in enumerate(first)]

    def _said(self, known_as: str, items: Sequence[Item]) -> list[Verdict]:
        # Of what a judge reads of a prompt its identity does not tell.
        keys = [[Key.of(known_as, item.prompt, item.response, whole=w) for w in (False, True)] for item in items]
        known = self._ledger.get({key for pair in keys for key in pair})
        found = [known.get(a) or known.get(b) for a, b in keys]
        self.kept += sum(verdict is not None for verdict in found)
        return [self._without(item) if v is None else v for item, v in zip(items, found, strict=True)]

    def _without(self, item: Item) -> Verdict:
        reads = self._reasoning or judged_text(item.response, thinking=self._thinking) is not None
        return unscored(NOT_KEPT if reads else UNFINISHED)
