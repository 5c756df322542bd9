"""The flags that say how far a judge is to be believed, for programs that correct rates for its errors."""

from __future__ import annotations

import re

from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "judge_sensitivity",
    None,
    "k/n: of n rollouts known to comply the judge called k compliant, as 95/100. Corrects rates for its errors.",
)
flags.DEFINE_string(
    "judge_specificity",
    None,
    "k/n: of n rollouts known to refuse the judge called k refused, as 990/1000. Give both or neither.",
)

QUALITY_FLAGS = ("judge_sensitivity", "judge_specificity")
TOPICS = {"the judge": QUALITY_FLAGS}


def judge_quality():
    """The JudgeQuality of the flags; None without them."""
    given = [name for name in QUALITY_FLAGS if FLAGS[name].value is not None]
    if not given:
        return None
    from lpe_jax.errors import UserError
    from lpe_jax.estimation.judge_error import JudgeQuality

    if len(given) == 1:
        (missing,) = set(QUALITY_FLAGS) - set(given)
        raise UserError(
            f"--{given[0]} is given without --{missing}; give both, or neither for a judge taken at its word"
        )
    counts = []
    for name in QUALITY_FLAGS:
        match = re.fullmatch(r"([0-9]{1,15})/([0-9]{1,15})", FLAGS[name].value)
        if match is None:
            raise UserError(f"--{name}={FLAGS[name].value} must be k/n in whole rollouts, as 95/100")
        counts += [int(group) for group in match.groups()]
    try:
        return JudgeQuality(*counts)
    except ValueError as error:
        raise UserError(f"--judge_{error}") from None
