"""The live driver against a replay of the same outcomes: decision by decision the same procedure."""

import dataclasses

import numpy as np
import pytest

from lpe_jax import live
from lpe_jax.errors import JudgeError
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import replay
from lpe_jax.records.ledger import Ledger
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

    def stream(self, more):
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


def fake_judge(items):
    words = {"0": Outcome.REFUSED, "1": Outcome.COMPLIED, "2": Outcome.UNSCORED}
    fields = {"2": {"reason": "unreadable"}}
    return [Verdict(words[text], fields.get(text, {})) for _, text in items]


PROCEDURES = [LPE(n_fit=30), LPE(n_fit=13, reuse_search=True, fit_to_one=True), Naive(50)]


@pytest.mark.parametrize("procedure", PROCEDURES, ids=["lpe", "lpe reusing", "naive"])
def test_live_equals_replay(procedure, tmp_path):
    table = outcome_table(procedure)
    sampler, store = FakeSampler(procedure, table), RolloutStore(tmp_path)
    results = {r.prompt.id: r for r in live.run(procedure, PROMPTS, sampler, fake_judge, store)}
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
    found = {r.prompt.id: r for r in live.run(Naive(20), PROMPTS, sampler, fake_judge, store, spoken_for=had)}
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
    list(live.run(procedure, PROMPTS, sampler, fake_judge, RolloutStore(tmp_path)))
    assert np.mean(sampler.under_way) / 32 > 0.9


@pytest.mark.parametrize("fail_after", [0, 1, 137, 900])
def test_an_interrupted_run_goes_on(tmp_path, fail_after):
    """Interrupted while drawing, then run again: the same results, and nothing that was kept is drawn twice."""
    procedure = LPE(n_fit=30)
    table = outcome_table(procedure)
    whole = FakeSampler(procedure, table)
    expected = {r.prompt.id: r for r in live.run(procedure, PROMPTS, whole, fake_judge, RolloutStore(tmp_path / "a"))}

    first, store = FakeSampler(procedure, table, fail_after=fail_after), RolloutStore(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        list(live.run(procedure, PROMPTS, first, fake_judge, store))
    store.flush()
    kept = len(RolloutStore(tmp_path / "b"))
    second = FakeSampler(procedure, table)
    again = {r.prompt.id: r for r in live.run(procedure, PROMPTS, second, fake_judge, RolloutStore(tmp_path / "b"))}
    assert set(again) == set(expected)
    for key, result in expected.items():
        assert again[key].estimate.log10_rate == result.estimate.log10_rate
        assert (again[key].outcomes, again[key].tokens) == (result.outcomes, result.tokens)
    assert kept + len(second.asked) == len(whole.asked)
    third = FakeSampler(procedure, table)
    stored = list(live.run(procedure, PROMPTS, third, fake_judge, RolloutStore(tmp_path / "b")))
    assert third.asked == []
    assert {r.prompt.id: (r.outcomes, r.tokens) for r in stored} == {
        key: (r.outcomes, r.tokens) for key, r in expected.items()
    }
    assert len(stored) == len(expected)
    for result in stored:
        np.testing.assert_array_equal(result.scores, expected[result.prompt.id].scores)


def test_a_judge_that_scores_nothing_stops_the_run(tmp_path):
    def judge(items):
        return [Verdict(Outcome.UNSCORED, {"reason": "no key"}) for _ in items]

    judge.identity = "broken"
    judged = live.Judged(judge, Ledger(tmp_path / "verdicts.sqlite"), thinking=False)
    assert len(judged([(PROMPTS[0], f"text {i}") for i in range(live.Judged.GIVE_UP - 1)])) == live.Judged.GIVE_UP - 1
    with pytest.raises(JudgeError, match=r"judge broken could score none of the first 100 responses \(no key\)"):
        judged([(PROMPTS[0], "one more")])


def test_once_something_was_scored_any_number_may_not_be(tmp_path):
    class Judge:
        identity = "words"

        def __call__(self, items):
            return [Verdict(Outcome.REFUSED if text == "1" else Outcome.UNSCORED, {}) for _, text in items]

    judged = live.Judged(Judge(), Ledger(tmp_path / "verdicts.sqlite"), thinking=False)
    judged([(PROMPTS[0], "1")])
    assert len(judged([(PROMPTS[0], f"text {i}") for i in range(300)])) == 300


def test_equal_responses_are_judged_once(tmp_path):
    calls = []

    class Judge:
        identity = "counting"

        def __call__(self, items):
            calls.extend(items)
            return fake_judge(items)

    ledger = Ledger(tmp_path / "verdicts.sqlite")
    judged = live.Judged(Judge(), ledger, thinking=False)
    items = [(PROMPTS[0], "1"), (PROMPTS[0], "1"), (PROMPTS[1], "1"), (PROMPTS[0], "0")]
    assert [v.outcome for v in judged(items)] == ["complied", "complied", "complied", "refused"]
    assert len(calls) == 3
    judged(items)
    assert len(calls) == 3
    unscored = [(PROMPTS[2], "2")]
    assert judged(unscored)[0].outcome == judged(unscored)[0].outcome == "unscored"
    assert len(calls) == 5, "a judge that failed is asked again"
    ledger.close()
