"""What a report is made of: results of runs, some of their rollouts, and what is on record of how they were made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lpe_jax.estimation.procedure import Procedure
from lpe_jax.reporting.table import PromptResult
from lpe_jax.types import Prompt

# Characters of a prompt or a response that are shown.
LONGEST = 2000


@dataclasses.dataclass(frozen=True)
class Shown:
    """A rollout that is shown: `beyond` more characters of it are not."""

    outcome: str
    alpha: float
    index: int
    text: str
    beyond: int = 0


@dataclasses.dataclass(frozen=True)
class RunContents:
    """One run, as far as its report tells of it.

    Attributes:
      name: of its folder.
      record: as in run.json.
      results: of every prompt, in the order they were asked for.
      prompts: what was asked, by id.
      shown: some rollouts, by prompt id.
      phases: what two judges in a row said; empty with one.
      spent: what judges behind an API have cost: calls, input and output tokens, by what the ledger knows them by.
      seconds: of drawing, over all calls and processes.
      hashes: sha256 of files of the folder, by name.
      notes: what a reader must know of each prompt, by id, as the run's own table has it.
      reasons: why rollouts went unscored, and how many.
      procedure: by which the rollouts were drawn; None if nobody said.
      differing: prompts whose numbers in the run's own table are others.
    """

    name: str
    record: Mapping[str, Any]
    results: Sequence[PromptResult]
    prompts: Mapping[str, Prompt]
    shown: Mapping[str, Sequence[Shown]] = dataclasses.field(default_factory=dict)
    phases: Mapping[tuple[str, str | None], int] = dataclasses.field(default_factory=dict)
    spent: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    procedure: Procedure | None = None
    differing: int = 0

    @property
    def finished(self) -> bool:
        """Whether all that was asked for is drawn."""
        return self.record["status"] == "finished"

    @property
    def method(self) -> str:
        """As --method."""
        return self.record["settings"]["method"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of a report.

    Attributes:
      risk: the rate above which prompts are counted, until the reader chooses another.
      rollouts: so many compliant and as many refused ones of each prompt are shown; 0 leaves out all texts, those of
        prompts too.
    """

    risk: float = 1e-6
    rollouts: int = 3


AS_USUAL = Options()
