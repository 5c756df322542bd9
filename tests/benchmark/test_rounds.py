"""Turns and what is said of them, with a clock of our own."""

import pytest

from lpe_jax.benchmark.rounds import Contestant, Turn, Work, fastest, standings, take_turns


def contestant(name, *log):
    return Contestant(name, "kind", lambda number: [entry.append((name, number)) for entry in log] and Work(4, 10))


def turn(name, number, seconds, rollouts=4, tokens=10):
    return Turn(name, number, seconds, rollouts, tokens)


def test_every_contestant_runs_in_every_round_and_another_begins_each():
    log = []
    take_turns([contestant(name, log) for name in "abc"], 4)
    assert log == [(name, i) for i, order in enumerate(("abc", "bca", "cab", "abc")) for name in order]


def test_seconds_are_of_the_run_alone():
    now = iter([0.0, 3.0, 10.0, 14.0])
    turns = take_turns([contestant("a", []), contestant("b", [])], 1, clock=lambda: next(now))
    assert [t.seconds for t in turns] == [3.0, 4.0]
    assert turns[0].rate("tokens") == pytest.approx(10 / 3) and turns[0].rate("rollouts") == pytest.approx(4 / 3)


def test_ratios_are_taken_within_a_round():
    """The machine slows tenfold in the second round; the ratio of medians would mislead."""
    turns = [turn("a", 0, 1.0), turn("b", 0, 2.0), turn("a", 1, 10.0), turn("b", 1, 30.0), turn("a", 2, 1.0)]
    turns += [turn("b", 2, 2.0)]
    a, b = standings([contestant("a", []), contestant("b", [])], turns, "b", "tokens")
    assert a.ratios == pytest.approx((2.0, 3.0, 2.0)) and a.ratio == 2.0
    assert b.ratio == 1.0 and (b.seconds, b.fastest, b.slowest) == (2.0, 2.0, 30.0)


def test_rates_count_tokens_or_rollouts():
    turns = [turn("a", 0, 1.0, rollouts=1, tokens=50), turn("b", 0, 1.0, rollouts=2, tokens=10)]
    assert fastest(turns, ["a", "b"], "tokens") == "a" and fastest(turns, ["a", "b"], "rollouts") == "b"
    of = {
        unit: standings([contestant("a", []), contestant("b", [])], turns, "b", unit)[0]
        for unit in ("tokens", "rollouts")
    }
    assert (of["tokens"].ratio, of["rollouts"].ratio) == (5.0, 0.5)
    assert of["tokens"].tokens_per_rollout == 50


def test_the_fastest_has_the_best_median():
    turns = [turn("a", i, s) for i, s in enumerate((1.0, 9.0, 9.0))] + [turn("b", i, 5.0) for i in range(3)]
    assert fastest(turns, ["a", "b"], "tokens") == "b"
