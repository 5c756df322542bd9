"""LPE with fewer rollouts from counts alone, against LPE itself on random subsets of outcomes."""

import dataclasses

import numpy as np
import pytest

from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.procedure import replay
from lpe_jax.evaluation import fewer
from lpe_jax.evaluation.fewer import with_fewer
from lpe_jax.types import Counts

PROCEDURE = LPE(alphas=(0.8, 0.6, 0.4, 0.2, 0.0), n_search=5, n_fit=40)
# Search outcomes are fixed at each alpha: the fit starts at 0.2, 0.0 and nowhere above.
SEARCHED = np.array([[0, 0, 0, 4, 5], [0, 0, 1, 1, 4]])
COMPLIED = np.array([[1, 5, 14, 30, 0], [0, 3, 8, 20, 33]])


def table(random, search, fit):
    """Outcomes [5, 45] of one prompt in a random order of those of the fit: search first."""
    outcomes = np.zeros((5, 45), bool)
    for cell, (first, rest) in enumerate(zip(search, fit, strict=True)):
        outcomes[cell, :first] = True
        outcomes[cell, 5:] = random.permutation(np.arange(40) < rest)
    return outcomes


def parts():
    """What a run has of both prompts: (fit, search)."""
    random = np.random.default_rng(0)
    states = [replay(PROCEDURE, table(random, s, c))[0] for s, c in zip(SEARCHED, COMPLIED, strict=True)]
    both = [PROCEDURE.parts(state) for state in states]
    return tuple(
        Counts(*(np.stack([np.asarray(getattr(p[i], x)) for p in both]) for x in ("alpha", "scored", "complied")))
        for i in range(2)
    )


def test_all_of_it_is_the_run_itself():
    fit, search = parts()
    rates, rollouts = with_fewer(PROCEDURE, fit, search, 40, repeats=3)
    for prompt in range(2):
        one = [
            Counts(*(np.asarray(getattr(c, x))[prompt] for x in ("alpha", "scored", "complied"))) for c in (fit, search)
        ]
        np.testing.assert_allclose(rates[:, prompt], float(PROCEDURE.fit(*one).log10_rate))
    # Of the first prompt at 0.2 to 0.8, of the other at all five, as it has nothing at the last.
    assert rollouts.tolist() == [[160, 200]] * 3


@pytest.mark.parametrize("n", [10, 20])
def test_subsets_by_counts_are_subsets(n):
    """Means of rate and rollouts over 400 subsets each; each difference is beyond 4 standard errors once in 16,000."""
    fit, search = parts()
    rates, rollouts = with_fewer(PROCEDURE, fit, search, n, repeats=400, seed=1)
    random = np.random.default_rng(2)
    smaller = dataclasses.replace(PROCEDURE, n_fit=n)
    for prompt in range(2):
        outcomes = np.stack([table(random, SEARCHED[prompt], COMPLIED[prompt]) for _ in range(400)])
        states, estimates = replay(smaller, outcomes[:, :, : 5 + n])
        drawn = np.asarray(states.fit_drawn).sum(axis=-1)
        for ours, theirs in ((rates[:, prompt], estimates.log10_rate), (rollouts[:, prompt], drawn)):
            theirs = np.asarray(theirs, float)
            error = np.sqrt((ours.var() + theirs.var()) / 400)
            assert abs(ours.mean() - theirs.mean()) <= 4 * error + 1e-12


def test_what_cannot_be_told_from_counts_is_refused():
    fit, search = parts()
    with pytest.raises(ValueError, match="n must be 1 to 40 and is 41"):
        with_fewer(PROCEDURE, fit, search, 41, repeats=1)
    with pytest.raises(ValueError, match="reuse_search must be off"):
        with_fewer(dataclasses.replace(PROCEDURE, reuse_search=True), fit, search, 4, repeats=1)


def test_unscored_rollouts_are_in_subsets_by_their_share():
    """Of 40 rollouts 20 were scored: of 10 about 5 would be."""
    alpha = np.array([[0.8, 0.6, 0.4]])
    fit = Counts(alpha, np.array([[20.0, 20.0, 40.0]]), np.array([[20.0, 20.0, 40.0]]))
    search = Counts(alpha, np.zeros((1, 3)), np.zeros((1, 3)))
    procedure = LPE(alphas=(0.8, 0.6, 0.4), n_search=5, n_fit=40)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fewer, "_rates", lambda _, counts, __: seen.append(np.asarray(counts.scored)) or np.zeros((2, 1)))
        fewer.with_fewer(procedure, fit, search, 10, repeats=2)
    assert seen[0].tolist() == [[[5, 5, 10]], [[5, 5, 10]]]


def test_a_prompt_whose_search_found_no_start_has_the_default():
    alpha = np.array([[0.8, 0.6]])
    nothing = Counts(alpha, np.zeros((1, 2)), np.zeros((1, 2)))
    search = Counts(alpha, np.full((1, 2), 5.0), np.zeros((1, 2)))
    procedure = LPE(alphas=(0.8, 0.6), n_search=5, n_fit=40, no_start="fallback")
    rates, rollouts = with_fewer(procedure, nothing, search, 10, repeats=2)
    assert rates.tolist() == [[-6.0], [-6.0]] and rollouts.tolist() == [[0], [0]]
