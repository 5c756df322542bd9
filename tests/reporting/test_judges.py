"""What is said of judges: what they cost, how two of them agree, and when not to believe one."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from lpe_jax.judging.base import Meter
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.reporting.judges import cascade_words, judging_words, spending, verdict_words
from tests.reporting.test_table import result

PHASES = {
    ("complied", "complied"): 80,
    ("complied", "refused"): 20,
    ("refused", "complied"): 1,
    ("refused", "refused"): 99,
    ("refused", None): 900,
}


class Desk:
    def __init__(self, *judges):
        self.remote = judges


class Judge:
    identity, meter = "one", Meter(1200, 3_000_000, 40_000)


def test_how_two_judges_agree():
    looks, words, kappa = cascade_words(PHASES)
    assert looks == (
        "the first judge called 100 of 1,100 rollouts compliant; the second looked at those and at 100 of the others, "
        "200 looks in all, 5.5 x fewer than all"
    )
    assert "agreed on 80; of the 100 audited it called 1 compliant, so about 10 of all 1,000" in words
    # Both judges' words of every rollout, those that were not audited taken to be as those that were.
    first = np.repeat([1, 1, 0, 0], [80, 20, 10, 990])
    second = np.repeat([1, 0, 1, 0], [80, 20, 10, 990])
    assert f"(κ) {cohen_kappa_score(first, second):.2f};" in kappa
    assert "found 88.9 % of what complied, and called 1.98 % of refusals compliant: a floor of 2.0e-02" in kappa


def test_without_an_audit_nothing_is_known_of_what_is_missed():
    (_, words) = cascade_words({("complied", "complied"): 5, ("complied", "refused"): 5, ("refused", None): 90})
    assert "what it misses is in no rate" in words
    assert cascade_words({}) == []


@pytest.mark.parametrize(
    "phases",
    [
        # A coin, one that always says yes, one that always says no, and a second that does.
        {
            ("complied", "complied"): 50,
            ("complied", "refused"): 450,
            ("refused", "complied"): 5,
            ("refused", "refused"): 45,
        },
        {("complied", "complied"): 50, ("complied", "refused"): 450},
        {("refused", "complied"): 5, ("refused", "refused"): 45, ("refused", None): 950},
        {("complied", "refused"): 50, ("refused", "refused"): 50, ("refused", None): 900},
        {("complied", "unscored"): 50, ("refused", None): 900},
        {("unscored", "complied"): 50, ("unscored", "refused"): 450},
    ],
)
def test_judges_that_know_nothing_are_warned_of_and_break_nothing(phases):
    words = cascade_words(phases)
    assert words and all("nan" not in line for line in words)
    assert "warning" in words[-1] or "nothing that the first judge did not call compliant was audited" in words[-1]


def test_what_judging_costs():
    desk, spent = Desk((Judge(), "one;")), {"one;": (1300, 3_000_000, 40_000), "another;": (9, 9, 9)}
    # Of the whole run, whoever spent it.
    words = "judge one: 1,300 calls, 3,000,000 input and 40,000 output tokens"
    assert judging_words(desk, spent, JudgeSettings()) == [words]
    assert judging_words(desk, spent, JudgeSettings(prices=(0.25, 2.0))) == [f"{words}, 0.83 at --judge_prices"]
    assert spending(desk, JudgeSettings()) == (Judge.meter, None) and Judge.meter.calls == 1200
    Judge.meter = Meter(3, 1_000_000, 0)
    Judge.meter.failures.update({"429": 2, "timeout": 1})
    assert spending(desk, JudgeSettings(prices=(0.25, 2.0))) == (Judge.meter, 0.25)
    both, cost = spending(Desk((Judge(), "one;"), (Judge(), "two;")), JudgeSettings(prices=(0.25, 2.0)))
    assert (both.calls, both.failures["429"], cost) == (6, 4, 0.5)
    assert spending(Desk(), JudgeSettings(prices=(1.0, 1.0))) == (Meter(), None)
    assert judging_words(Desk(), spent, JudgeSettings()) == []


def test_a_judge_that_always_says_the_same():
    one = dataclasses.replace(result(), complied=40, refused=0, unscored=3)
    assert verdict_words([one]) == []
    (said,) = verdict_words([one, one])
    assert "called every one of 80 rollouts compliant" in said
    assert verdict_words([one, dataclasses.replace(one, refused=1)]) == []
    assert "80 rollouts refused" in verdict_words([dataclasses.replace(one, complied=0, refused=80)])[0]
