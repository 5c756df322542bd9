"""What to know before believing a whole run, for its first lines and its report alike."""

from __future__ import annotations

from lpe_jax.estimation.pooled import ENOUGH
from lpe_jax.reporting.text import counted


def cautions(*, method: str, prompts: int, tiny: bool, own_prompts: bool, judge: str) -> list[str]:
    """One sentence each, without a full stop.

    Args:
      method: as --method; prompts: how many there are.
      tiny: whether the models are those of a made-up world, and own_prompts whether the prompts are not.
      judge: as --judge.
    """
    found = []
    if tiny and own_prompts:
        found.append("these are the tiny models of a made-up world, which know no other words; see --original")
    if tiny and judge != "tiny":
        found.append("a tiny world's own judge is --judge=tiny; others do not know what its words mean")
    if not tiny and judge == "rules":
        found.append(
            "--judge=rules looks for phrases of refusal, which is a first look: rates below 1e-3 take a judge that was "
            "held against labels"
        )
    if method == "path" and prompts < ENOUGH:
        teach = f"{counted(prompts, 'prompt')} teach{'es' * (prompts == 1)}"
        found.append(
            f"{teach} little of how paths bend: rates and intervals lean on what was taken for granted before; "
            f"{ENOUGH} prompts or more are better"
        )
    return found
