"""The live driver against a replay of the same outcomes: decision by decision the same procedure."""

import dataclasses
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from lpe_jax import live
from lpe_jax.errors import JudgeError
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import replay
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.types import Message, Outcome, Prompt, Rollout, Verdict

PROMPTS = [Prompt(f"p{i}", (Message("user", f"question {i}"),)) for i in range(7)]


def outcome_table(procedure, seed=0):
    """Outcomes [prompts, A, N]: 1 complied, 0 refused, 2 unscored; log-linear rates, a few per cent unscored."""
    rng = np.random.default_rng(seed)
    grid = np.asarray(procedure.grid)
    slopes = rng.uniform(3, 8, len(PROMPTS))
    rate = np.minimum(0.9, 10.0 ** (-slopes[:, None] * (grid[None] - rng.uniform(-0.1, 0.4, (len(PROMPTS), 1)))))
    shape = (len(PROMPTS), len(grid), procedure.most_per_cell)
    table = (rng.random(shape) < rate[:, :, None]).astype(int)
    table[rng.random(shape) < 0.03] = 2
    return table


@dataclasses.dataclass
class FakeSampler:
    """Rollouts whose text is their outcome; remembers what it was asked."""

    procedure: object
    table: np.ndarray
    batch_size: int = 64
    fail_after: int | None = None

    def __post_init__(self):
        self.asked = []
        self.under_way = []
        self.cells = {float(alpha): cell for cell, alpha in enumerate(self.procedure.grid)}

    def stream(self, more, busy=None):
        """A random third of what is under way finishes at a time, in random order."""
        rng, rows = np.random.default_rng(1), []
        while rows := rows + list(more(self.batch_size - len(rows))):
            self.under_way.append(len(rows))
            order = [rows[i] for i in rng.permutation(len(rows))]
            third = -(-len(rows) // 3)
            rows = order[third:]
            yield [self.rollout(r) for r in order[:third]]

    def rollout(self, r):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append((r.prompt_id, r.alpha, r.index))
        outcome = self.table[int(r.prompt_id[1:]), self.cells[r.alpha], r.index]
        tokens = np.arange(1 + r.index % 5, dtype=np.int32)
        return Rollout(r.prompt_id, r.alpha, r.index, tokens, str(outcome), "stop", -1.0, -2.0, -3.0, 0.5, 0.25)


def verdicts_of(items):
    words = {"0": Outcome.REFUSED, "1": Outcome.COMPLIED, "2": Outcome.UNSCORED}
    fields = {"2": {"reason": "unreadable"}}
    return [Verdict(words[item.response], fields.get(item.response, {})) for item in items]


def at_once(items):
    """A desk whose judge answers there and then."""
    verdicts = Future()
    verdicts.set_result(verdicts_of(items))
    return verdicts


class Late:
    """A desk whose judge answers after a while, and not in the order it was asked."""

    def __init__(self):
        self.pool, self.rng, self.most, self.waiting = ThreadPoolExecutor(8), np.random.default_rng(0), 0, 0

    def __call__(self, items):
        delay = self.rng.uniform(0, 0.004)
        self.waiting += len(items)
        self.most = max(self.most, self.waiting)

        def work():
            time.sleep(delay)
            self.waiting -= len(items)
            return verdicts_of(items)

        return self.pool.submit(work)


PROCEDURES = [LPE(n_fit=30), LPE(n_fit=13, reuse_search=True, fit_to_one=True), Naive(50)]


@pytest.mark.parametrize("desk", [lambda: at_once, Late], ids=["at once", "late"])
@pytest.mark.parametrize("procedure", PROCEDURES, ids=["lpe", "lpe reusing", "naive"])
def test_live_equals_replay(procedure, desk, tmp_path):
    table = outcome_table(procedure)
    sampler, store = FakeSampler(procedure, table), RolloutStore(tmp_path)
    results = {r.prompt.id: r for r in live.run(procedure, PROMPTS, sampler, desk(), store)}
    _, expected = replay(procedure, table == 1, table != 2)
    assert set(results) == {p.id for p in PROMPTS}
    for i, prompt in enumerate(PROMPTS):
        result = results[prompt.id]
        for field in dataclasses.fields(expected):
            got, want = getattr(result.estimate, field.name), np.asarray(getattr(expected, field.name))[i]
            np.testing.assert_allclose(got, want, rtol=1e-8, err_msg=field.name)
        own = [(p, a, j) for p, a, j in sampler.asked if p == prompt.id]
        assert len(own) == len(set(own)) == result.rollouts == sum(result.outcomes.values())
        drawn = table[i][[sampler.cells[a] for _, a, _ in own], [j for _, _, j in own]]
        assert result.outcomes == {
            Outcome.COMPLIED: (drawn == 1).sum(),
            Outcome.REFUSED: (drawn == 0).sum(),
            Outcome.UNSCORED: (drawn == 2).sum(),
        }
        assert result.reasons == ({"unreadable": (drawn == 2).sum()} if (drawn == 2).any() else {})
        parts = [part for part in (result.fit, result.search) if part is not None]
        assert sum(part.scored.sum() for part in parts) == (drawn != 2).sum()
        assert sum(part.complied.sum() for part in parts) == (drawn == 1).sum()
        assert result.tokens == sum(1 + j % 5 for _, _, j in own)
    assert len(RolloutStore(tmp_path)) == len(sampler.asked), "everything drawn is kept"


def test_what_is_spoken_for_is_followed_and_scores_say_where_they_were_drawn(tmp_path):
    table = outcome_table(Naive(50))
    sampler, store = FakeSampler(Naive(50), table), RolloutStore(tmp_path)
    had = {p.id: np.array([7 + i]) for i, p in enumerate(PROMPTS)}
    found = {r.prompt.id: r for r in live.run(Naive(20), PROMPTS, sampler, at_once, store, spoken_for=had)}
    for i, prompt in enumerate(PROMPTS):
        own = table[i, 0, 7 + i : 27 + i]
        result = found[prompt.id]
        assert sorted(j for p, _, j in sampler.asked if p == prompt.id) == list(range(7 + i, 27 + i))
        assert result.rollouts == 20 and result.drawn.tolist() == [20]
        assert result.fit.complied.tolist() == [(own == 1).sum()]
        np.testing.assert_array_equal(result.scores, np.tile([1.0, 0.5, 0.25], ((own == 1).sum(), 1)))


def test_rows_stay_busy(tmp_path):
    procedure = LPE(n_fit=100)
    sampler = FakeSampler(procedure, outcome_table(procedure), batch_size=32)
    list(live.run(procedure, PROMPTS, sampler, at_once, RolloutStore(tmp_path)))
    assert np.mean(sampler.under_way) / 32 > 0.9


@pytest.mark.parametrize("fail_after", [0, 1, 137, 900])
def test_an_interrupted_run_goes_on(tmp_path, fail_after):
    """Interrupted while drawing, then run again: the same results, and nothing that was kept is drawn twice."""
    procedure = LPE(n_fit=30)
    table = outcome_table(procedure)
    whole = FakeSampler(procedure, table)
    expected = {r.prompt.id: r for r in live.run(procedure, PROMPTS, whole, at_once, RolloutStore(tmp_path / "a"))}

    first, store = FakeSampler(procedure, table, fail_after=fail_after), RolloutStore(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        list(live.run(procedure, PROMPTS, first, at_once, store))
    store.flush()
    kept = len(RolloutStore(tmp_path / "b"))
    second = FakeSampler(procedure, table)
    again = {r.prompt.id: r for r in live.run(procedure, PROMPTS, second, at_once, RolloutStore(tmp_path / "b"))}
    assert set(again) == set(expected)
    for key, result in expected.items():
        assert again[key].estimate.log10_rate == result.estimate.log10_rate
        assert (again[key].outcomes, again[key].tokens) == (result.outcomes, result.tokens)
    assert kept + len(second.asked) == len(whole.asked)
    third = FakeSampler(procedure, table)
    stored = list(live.run(procedure, PROMPTS, third, at_once, RolloutStore(tmp_path / "b")))
    assert third.asked == []
    assert {r.prompt.id: (r.outcomes, r.tokens) for r in stored} == {
        key: (r.outcomes, r.tokens) for key, r in expected.items()
    }
    assert len(stored) == len(expected)
    for result in stored:
        np.testing.assert_array_equal(result.scores, expected[result.prompt.id].scores)


def test_a_judge_that_is_best_asked_together_is(tmp_path):
    """As many at a time as it likes, but for when rows would stand idle; and the same comes of it."""
    sizes, procedure = [], LPE(n_fit=100)

    def desk(items):
        sizes.append(len(items))
        return at_once(items)

    sampler = FakeSampler(procedure, outcome_table(procedure))
    found = live.run(procedure, PROMPTS, sampler, desk, RolloutStore(tmp_path / "a"), at_once=50)
    alone = live.run(
        procedure, PROMPTS, FakeSampler(procedure, outcome_table(procedure)), at_once, RolloutStore(tmp_path / "b")
    )
    assert {r.prompt.id: r.outcomes for r in found} == {r.prompt.id: r.outcomes for r in alone}
    assert np.mean(sampler.under_way) / sampler.batch_size > 0.8 and np.mean(np.array(sizes) >= 50) > 0.3


def test_a_slow_judge_is_not_buried(tmp_path, monkeypatch):
    """No further rollouts are drawn while too many wait for their verdicts, and all get theirs."""
    monkeypatch.setattr(live, "MOST_WAITING", 20)
    procedure, desk = Naive(60), Late()
    sampler = FakeSampler(procedure, outcome_table(procedure))
    found = list(live.run(procedure, PROMPTS, sampler, desk, RolloutStore(tmp_path)))
    assert [result.rollouts for result in found] == [60] * len(PROMPTS)
    assert 20 <= desk.most < 20 + sampler.batch_size


def test_stored_rollouts_wait_for_a_late_judge_too(tmp_path):
    procedure, store = LPE(n_fit=30), RolloutStore(tmp_path)
    sampler = FakeSampler(procedure, outcome_table(procedure))
    whole = {r.prompt.id: r.outcomes for r in live.run(procedure, PROMPTS, sampler, at_once, store)}
    again = live.run(procedure, PROMPTS, live.FromStore(), Late(), RolloutStore(tmp_path))
    assert {r.prompt.id: r.outcomes for r in again} == whole


def test_what_a_judge_raises_ends_the_run(tmp_path):
    def broken(items):
        verdicts = Future()
        verdicts.set_exception(JudgeError("no key"))
        return verdicts

    procedure = Naive(10)
    sampler = FakeSampler(procedure, outcome_table(procedure))
    with pytest.raises(JudgeError, match="no key"):
        list(live.run(procedure, PROMPTS, sampler, broken, RolloutStore(tmp_path)))


def test_two_judges_words_are_counted(tmp_path):
    def both(items):
        verdicts = Future()
        first = [("complied", "complied"), ("complied", "refused"), ("refused", None)]
        words = [first[int(item.tag.rpartition("/")[2]) % 3] for item in items]
        verdicts.set_result([Verdict(Outcome(b or a), {}, (a, b)) for a, b in words])
        return verdicts

    procedure = Naive(30)
    sampler = FakeSampler(procedure, outcome_table(procedure))
    for result in live.run(procedure, PROMPTS, sampler, both, RolloutStore(tmp_path)):
        assert result.phases == {("complied", "complied"): 10, ("complied", "refused"): 10, ("refused", None): 10}
