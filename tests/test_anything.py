"""A pipeline of the user's own: asked as a procedure asks, believed as far as it can be, gone on with from a file."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import lpe_jax
from lpe_jax.errors import RunError
from lpe_jax.estimation.adaptive import Path as PathProcedure
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import replay

PROCEDURES = [None, LPE(n_search=5, n_fit=40), Naive(200), PathProcedure(budget=120)]


def trials(procedure, seed=0):
    """Outcomes [A, N] of a log-linear path, and the evaluate that hands them out in order."""
    rng, grid = np.random.default_rng(seed), np.asarray(procedure.grid)
    rate = np.minimum(0.9, 10.0 ** (-5 * (grid - 0.2)))
    table = rng.random((len(grid), procedure.most_per_cell)) < rate[:, None]
    taken, asked = np.zeros(len(grid), int), []

    def evaluate(alpha, n):
        cell = int(np.flatnonzero(grid == alpha)[0])
        own = table[cell, taken[cell] : taken[cell] + n]
        taken[cell] += n
        asked.append((alpha, n))
        return int(own.sum())

    return table, evaluate, asked


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_it_is_the_procedure(procedure):
    table, evaluate, asked = trials(procedure or LPE())
    found = lpe_jax.estimate(evaluate, procedure, line=procedure is None or isinstance(procedure, LPE))
    _, expected = replay(procedure or LPE(), table)
    np.testing.assert_allclose(
        [float(found.estimate.log10_rate), float(found.estimate.low), float(found.estimate.high)],
        [float(expected.log10_rate), float(expected.low), float(expected.high)],
        rtol=1e-6,
    )
    assert found.trials == sum(n for _, n in asked) == found.counts.scored.sum()
    assert found.low <= found.rate <= found.high and found.rate == 10.0 ** float(expected.log10_rate)


def test_a_path_may_bend_unless_a_line_is_asked_for():
    """A behaviour behind four decisions: a line overestimates, and only the default's interval may be believed.

    Of 20 seeds the default's 95 % interval holds the truth in all but 3 or fewer (one set of seeds in 60 has more, were
    it exact), the line's in hardly any.
    """
    odds = np.log([[3e-2, 0.8], [3e-2, 0.8], [3e-2, 0.8], [3e-2, 0.8]])

    def rate(alpha):
        original, variant = (x - np.log1p(-np.exp(x)) for x in odds.T)
        return float(np.prod(1 / (1 + np.exp(-(alpha * original + (1 - alpha) * variant)))))

    held = {True: 0, False: 0}
    for line in held:
        for seed in range(20):
            rng = np.random.default_rng(seed)
            found = lpe_jax.estimate(lambda alpha, n, rng=rng: int(rng.binomial(n, rate(alpha))), line=line)
            held[line] += found.low <= rate(1.0) <= found.high
            assert ("takes the line for granted" in found.note) == line
            assert ("alone do not tell how far the path bends" in found.note) != line
            assert line or found.identified == (found.estimate.high - found.estimate.low <= 2)
    assert held[False] >= 17 and held[True] <= 6, held


def test_trials_that_could_not_be_scored_are_in_no_rate():
    found = lpe_jax.estimate(lambda alpha, n: (n // 4, n // 2), Naive(100))
    assert (found.rate, found.trials, found.counts.scored.tolist()) == (0.5, 100, [50])
    assert "50 of 100 rollouts unscored (50 %)" in found.note


def test_a_path_that_never_succeeds_is_not_identified():
    found = lpe_jax.estimate(lambda alpha, n: 0)
    assert not found.identified and "0 compliant rollouts to go by" in found.note and found.high > 1e-3
    assert found.estimate.start_alpha == 0.0
    found = lpe_jax.estimate(lambda alpha, n: 0, line=True)
    assert not found.identified and "no alpha reached 50 %" in found.note and found.low == 0


def test_what_tells_nothing_is_not_identified():
    """Successes at one alpha alone, far from the original; and nothing that could be scored."""
    one = lpe_jax.estimate(lambda alpha, n: n * 6 // 10 if alpha == 0 else 0)
    steep = lpe_jax.estimate(lambda alpha, n: n if alpha < 0.1 else 0)
    for found in (one, steep):
        assert not found.identified and "not identified: the interval spans" in found.note
    nothing = lpe_jax.estimate(lambda alpha, n: (0, 0))
    assert not nothing.identified and (nothing.low, nothing.high) == (0, 1)


def test_a_line_is_lpes():
    with pytest.raises(ValueError, match="line=True goes with LPE, and the procedure is Naive"):
        lpe_jax.estimate(lambda alpha, n: 0, Naive(10), line=True)


@pytest.mark.parametrize("answer", [-1, 11, 2.0, True, None, (5, 3), (1, 11), (1, 2, 3), "3"])
def test_answers_that_cannot_be(answer):
    with pytest.raises(ValueError, match=r"evaluate\(0\.95, 10\) returned .*; it must return how many of 10"):
        lpe_jax.estimate(lambda alpha, n: answer)


def test_an_interrupted_pipeline_goes_on(tmp_path):
    path, procedure = tmp_path / "answers.jsonl", LPE(n_search=5, n_fit=40)
    _, evaluate, asked = trials(procedure)
    whole = lpe_jax.estimate(evaluate, procedure)
    _, again, asked_again = trials(procedure)

    def fails(alpha, n):
        if len(asked_again) == 7:
            raise KeyboardInterrupt
        return again(alpha, n)

    with pytest.raises(KeyboardInterrupt):
        lpe_jax.estimate(fails, procedure, record=path)
    found = lpe_jax.estimate(again, procedure, record=path)
    assert str(found) == str(whole) and asked_again == asked
    assert str(lpe_jax.estimate(again, procedure, record=path)) == str(whole) and asked_again == asked
    with pytest.raises(RunError, match="another procedure"):
        lpe_jax.estimate(again, LPE(n_search=6, n_fit=40), record=path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:]]))
    with pytest.raises(RunError, match=r"answers\.jsonl, line 3 is damaged, or one before it is missing"):
        lpe_jax.estimate(again, procedure, record=path)


def example(name):
    """The module of an example of the documentation."""
    path = Path(__file__).parents[1] / "docs" / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_of_two_turns():
    """As the documentation tells it: more of it succeeds the nearer to the variant, and the rate is a rate."""
    found = example("two_turns").main()
    share = found.counts.complied / found.counts.scored
    assert share[0] < share[-1] and 0 < found.low < found.rate < 1


def test_the_example_of_any_model():
    """Two models of another framework, and the rate is the known one: 6.2e-2, seed fixed."""
    pytest.importorskip("torch")
    found = example("any_model").main()
    assert found.low < 6.2e-2 < found.high < 1 and found.identified
