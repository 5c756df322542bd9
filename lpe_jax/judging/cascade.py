"""Two judges in a row: a cheap one for everything, a better one for what it finds and a random sample of the rest."""

from __future__ import annotations

import dataclasses
import hashlib
import re

from lpe_jax.errors import JudgeError
from lpe_jax.judging.base import Judge, RemoteJudge, masked
from lpe_jax.types import Outcome, Verdict

_SPEC = re.compile(r"screen:(?P<screen>.+),confirm:(?P<confirm>.+?)(?:,audit=(?P<audit>[^,]*))?")
DEFAULT_AUDIT = 0.01


@dataclasses.dataclass(frozen=True)
class Cascade:
    """`screen` judges everything. `confirm` judges what that does not call refused, and each other rollout with
    probability `audit`; its word counts.
    """

    screen: Judge | RemoteJudge
    confirm: Judge | RemoteJudge
    audit: float

    @property
    def identity(self) -> str:
        """As a judge's."""
        return f"screen:{self.screen.identity},confirm:{self.confirm.identity},audit={self.audit:g}"


AnyJudge = Judge | RemoteJudge | Cascade


def parse(spec: str) -> tuple[str, str, float] | None:
    """Both judges and the audit's share of "screen:A,confirm:B,audit=0.01"; None if it is no cascade.

    Raises:
      JudgeError: it is one, and not as it must be.
    """
    if not spec.startswith("screen:"):
        return None
    match = _SPEC.fullmatch(spec)
    try:
        audit = DEFAULT_AUDIT if match is None or match["audit"] is None else float(match["audit"])
    except ValueError:
        audit = -1.0
    if match is None or not 0 <= audit <= 1:
        raise JudgeError(
            f"judge {masked(spec)!r}: write screen:A,confirm:B,audit=0.01, A and B judges and audit the share, from 0 "
            "to 1, of what A calls refused that B looks at too"
        )
    return match["screen"], match["confirm"], audit


def audited(prompt_id: str, tag: str, share: float) -> bool:
    """Whether a rollout is in the audit: by chance, with probability share, and the same whenever it is asked."""
    digest = hashlib.sha256(f"audit\0{prompt_id}\0{tag}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") < share * 2**64


def joined(screen: Verdict, confirm: Verdict | None) -> Verdict:
    """One verdict of both words; confirm is None where the second judge was not asked."""
    last = screen if confirm is None else confirm
    fields = {"screen": dict(screen.fields), "confirm": None if confirm is None else dict(confirm.fields)}
    reason = {"reason": last.fields["reason"]} if last.outcome is Outcome.UNSCORED and "reason" in last.fields else {}
    return Verdict(last.outcome, fields | reason, (screen.outcome, None if confirm is None else confirm.outcome))
