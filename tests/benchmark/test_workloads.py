"""Workloads: models that differ as an abliterated one does, lengths as they are said to be."""

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from lpe_jax.benchmark import ceiling, engine, run, workloads
from lpe_jax.benchmark.rounds import Turn
from lpe_jax.errors import UserError
from lpe_jax.models.weights import leaves_from_module


@pytest.fixture(scope="module")
def smoke():
    return workloads.build("real60-eos", quick=True)


def test_the_stop_probability_gives_the_mean():
    for mean, longest in ((2.0, 6), (16.0, 48), (1.0, 9)):
        p = workloads.stop_probability(mean, longest)
        lengths = np.minimum(np.random.default_rng(0).geometric(min(p, 1.0), 200_000), longest)
        assert lengths.mean() == pytest.approx(mean, rel=0.01)


def test_the_variant_differs_as_an_ablated_model(smoke):
    ours, theirs = leaves_from_module(smoke.original), leaves_from_module(smoke.variant)
    differing = {name.split(".")[-1] for name in ours if not np.array_equal(ours[name], theirs[name])}
    assert differing == {"embed_tokens", "o_proj", "down_proj"}


def test_rounds_draw_other_rollouts(smoke):
    first, second = smoke.requests(0), smoke.requests(1)
    assert len(set(first)) == len(first) == len(second) and not set(first) & set(second)


def test_lengths_come_from_the_models_own_stopping(smoke):
    sampler = engine.sampler_of(smoke, engine.pair_of(smoke, "shared"))
    work = [engine.draw(sampler, smoke, i) for i in range(20)]
    rollouts = sum(w.rollouts for w in work)
    assert rollouts == 20 * len(smoke.requests(0))
    assert sum(w.tokens for w in work) / rollouts == pytest.approx(2.0, abs=0.25)


@pytest.mark.slow
def test_a_program_without_peers_compares_modes_and_the_original_alone():
    options = run.Options(rounds=2, modes=("shared", "copies"), peers=False, quick=True)
    found = run.measure("dual", options)
    names = ["our engine, original alone", "our engine, shared", "our engine, copies"]
    assert [s.name for s in found.standings] == names and found.reference == names[0]
    assert len(found.turns) == 6 and {t.tokens for t in found.turns} == {2 * 8 * 6}


@pytest.mark.slow
def test_trees_and_rows_of_the_naive_reference_draw_what_they_say():
    found = run.measure("naive", run.Options(rounds=1, peers=False, quick=True))
    rows, tree, decided = found.turns
    assert (rows.rollouts, tree.rollouts, decided.rollouts) == (64, 2000, 2000)
    # Same distribution, so about the same length; what stops once decided is no longer.
    assert tree.tokens / 2000 == pytest.approx(rows.tokens / 64, rel=0.2)
    assert decided.tokens <= tree.tokens


def test_other_weights_are_not_timed(smoke):
    class Peers:
        def logits(self, tokens):
            return engine.logits(engine.pair_of(smoke, "shared"), tokens) + 0.01

    with pytest.raises(UserError, match=r"our logits \(copies\) and transformers' differ by 0.01; no timing"):
        run._parity(smoke, {"copies": engine.pair_of(smoke, "copies")}, Peers())


def test_what_takes_too_long_or_fails_is_said():
    with run.limited(1) as ran:
        while True:
            pass
    assert ran.failed == "did not compile within 1 s"
    with run.limited(9) as ran:
        raise KeyError("x")
    assert ran.failed == "failed: KeyError"
    with run.limited(9) as ran:
        pass
    assert ran.failed is None


def test_a_process_that_is_ended_is_said(monkeypatch):
    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, mp_context):
            super().__init__(workers)

        def submit(self, call, *arguments):
            return super().submit(self.ended)

        def ended(self):
            raise BrokenProcessPool

    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match="real512: its process was ended from outside, most likely as memory ran out"):
        run.measure_apart("real512", run.Options())


def test_a_gpu_is_asked_for_by_name():
    with pytest.raises(UserError, match="--workloads=qwen3-4b-32 takes a GPU"):
        workloads.build("qwen3-4b-32")


def test_least_bytes_and_operations_of_a_decode():
    """10 tokens a second by 5 rows are 2 steps, which read all weights; 2 operations per weight and model."""
    turns = [Turn("a", 0, 2.0, 1, 20), Turn("a", 1, 1.0, 1, 10), Turn("a", 2, 9.0, 1, 9)]
    assert ceiling.work_per_second(turns, weights=1000, parameters=300, rows=5) == (2000, 12_000)
