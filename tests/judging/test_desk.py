"""Responses in, verdicts out: every distinct one judged once, at once or later, by one judge or by two."""

import asyncio
import threading
import time

import pytest

from lpe_jax.errors import JudgeError, RunError
from lpe_jax.judging import desk as desks
from lpe_jax.judging import remembered
from lpe_jax.judging.base import Meter, RemoteJudge, unscored
from lpe_jax.judging.cascade import Cascade, audited, joined, parse
from lpe_jax.judging.desk import Desk, Item
from lpe_jax.judging.registry import JUDGES, make_judge
from lpe_jax.judging.rules import RuleJudge
from lpe_jax.records.ledger import Ledger
from lpe_jax.types import Message, Outcome, Prompt, Verdict

PROMPTS = [Prompt(f"p{i}", (Message("user", f"question {i}"),)) for i in range(3)]
WORDS = {"0": Outcome.REFUSED, "1": Outcome.COMPLIED}


def verdict(text):
    return Verdict(WORDS[text[0]], {"text": text}) if text[0] in WORDS else unscored("unreadable")


class Called:
    """Says what the text's first character says."""

    identity = "called"

    def __init__(self):
        self.asked = []

    def __call__(self, items):
        self.asked += [text for _, text in items]
        return [verdict(text) for _, text in items]


class Later:
    """What there is to a judge that is waited for besides its answers; it writes down what it is told."""

    def __init__(self):
        self.meter, self.asked, self.told = Meter(), [], []

    def reckon(self, *spent):
        self.told.append(spent)

    async def open(self):
        self.told.append("open")

    async def stop(self):
        self.told.append("stop")

    async def close(self):
        self.told.append("close")


class Waited(Later):
    """The same as what is called, a moment later."""

    identity = "waited"

    def __init__(self, delay=0.001):
        super().__init__()
        self.delay = delay

    async def ask(self, prompt, text):
        self.asked.append(text)
        await asyncio.sleep(self.delay)
        self.meter.add(1, 10, 2)
        return verdict(text)


KINDS = [Called, Waited]


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "verdicts.sqlite")
    yield ledger
    ledger.close()


def items(*texts, prompt=PROMPTS[0]):
    return [Item(prompt, text, str(i)) for i, text in enumerate(texts)]


def outcomes(verdicts):
    return [str(v.outcome) for v in verdicts]


def test_what_is_waited_for():
    assert isinstance(Waited(), RemoteJudge) and not isinstance(Called(), RemoteJudge)
    assert not isinstance(RuleJudge(), RemoteJudge)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_responses_are_judged_once(kind, ledger):
    judge = kind()
    with Desk(judge, thinking=False) as desk:
        desk.remember(ledger)
        some = [*items("1", "1"), *items("1", prompt=PROMPTS[1]), *items("0")]
        assert outcomes(desk(some)) == ["complied", "complied", "complied", "refused"]
        assert len(judge.asked) == 3
        desk(some)
        assert len(judge.asked) == 3
        assert outcomes(desk(items("?", "?"))) == outcomes(desk(items("?", "?"))) == ["unscored", "unscored"]
        assert len(judge.asked) == 4, "also where it could not tell"
        assert desk([]) == []
    again = kind()
    with Desk(again, thinking=False) as desk:
        desk.remember(ledger)
        assert outcomes(desk(some)) == ["complied", "complied", "complied", "refused"] and again.asked == []
        desk(items("?"))
        assert again.asked == ["?"], "a judge that failed is asked again by the next run"


class Replies(Called):
    """Was paid for a reply that says nothing."""

    def __call__(self, items):
        self.asked += [text for _, text in items]
        return [unscored("unreadable", reply="hm") for _ in items]


def test_a_reply_without_a_verdict_is_not_paid_for_twice(ledger):
    judges = Replies(), Replies(), Called()
    for judge, again in zip(judges, (False, False, True), strict=True):
        judge.identity = "the same"
        with Desk(judge, thinking=False, again=again) as desk:
            desk.remember(ledger)
            assert outcomes(desk(items("1", "1"))) == [("unscored", "complied")[again]] * 2
    assert [judge.asked for judge in judges] == [["1"], [], ["1"]]


def test_an_answer_that_comes_meanwhile_is_not_asked_for_again():
    """A verdict that comes between the look at what is known and the look at what is asked is not asked for again."""
    judge = Waited()
    with Desk(judge, thinking=False) as desk:
        (one,) = desk._judges
        key = one._key(PROMPTS[0], "?")
        desk(items("?"))
        assert one._waited(key, PROMPTS[0], "?").result().outcome is Outcome.UNSCORED
    assert judge.asked == ["?"]


def test_what_is_under_way_is_not_asked_again(ledger):
    judge = Waited(delay=0.05)
    with Desk(judge, thinking=False) as desk:
        desk.remember(ledger)
        futures = [desk.submit(items("1", "0")) for _ in range(5)]
        assert [outcomes(f.result()) for f in futures] == [["complied", "refused"]] * 5
    assert sorted(judge.asked) == ["0", "1"]


def test_a_judge_that_is_waited_for_holds_nobody_up():
    judge = Waited(delay=0.2)
    with Desk(judge, thinking=False) as desk:
        began = time.monotonic()
        futures = [desk.submit(items(f"1 {i}")) for i in range(50)]
        assert time.monotonic() - began < 0.2 and not futures[0].done()
        assert all(outcomes(f.result()) == ["complied"] for f in futures)
        assert time.monotonic() - began < 5, "one after the other would take ten seconds"


def test_what_was_answered_is_on_disk_before_it_is_known(ledger):
    """Whoever has a verdict has it for good: another connection, as after a crash, has it too."""
    with Desk(Waited(), thinking=False) as desk:
        desk.remember(ledger)
        for i in range(20):
            desk(items(f"1 {i}"))
            other = Ledger(ledger.path)
            fresh = Waited()
            with Desk(fresh, thinking=False) as another:
                another.remember(other)
                assert outcomes(another(items(f"1 {i}"))) == ["complied"] and fresh.asked == []
            assert other.spent(remembered.remembered_as("waited", False)) == (i + 1, 10 * (i + 1), 2 * (i + 1))
            other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_disk_did_not_take_is_kept_for_the_next_time(kind, ledger, monkeypatch):
    """A disk that is full for a moment costs the run, and no answer that was paid for."""
    put, failing = ledger.put, 2

    def fails(*given):
        nonlocal failing
        if failing and given[0]:
            failing -= 1
            raise RunError("the disk is full")
        put(*given)

    monkeypatch.setattr(ledger, "put", fails)
    with Desk(kind(), thinking=False) as desk:
        desk.remember(ledger)
        for text in ("1", "0"):
            with pytest.raises(RunError, match="the disk is full"):
                desk(items(text))
    again = kind()
    with Desk(again, thinking=False) as desk:
        desk.remember(ledger)
        assert outcomes(desk(items("1", "0"))) == ["complied", "refused"] and again.asked == []


def test_what_one_judge_said_is_kept_where_the_other_fails(ledger, monkeypatch):
    """When the desk is closed each of two puts what it has on disk."""
    put = remembered.Remembered.put

    def fails(self):
        if self.identity.startswith("called"):
            raise RunError("the disk is full")
        put(self)

    confirm = Waited()
    with (
        pytest.raises(RunError, match="the disk is full"),
        Desk(Cascade(Called(), confirm, 0.0), thinking=False) as desk,
    ):
        desk.remember(ledger)
        monkeypatch.setattr(remembered, "_TOGETHER", 60.0)
        late = desk.submit(items("1"))
        while not confirm.asked:
            time.sleep(0.001)
        monkeypatch.setattr(desks, "GRACE", 0.5)
        monkeypatch.setattr(remembered.Remembered, "put", fails)
    assert late.exception() is not None
    assert ledger.spent(remembered.remembered_as("waited", False)) == (1, 10, 2)


def test_a_run_that_stops_keeps_what_is_paid_for(ledger, monkeypatch):
    monkeypatch.setattr(desks, "GRACE", 0.5)
    quick, slow = Waited(delay=0.1), Waited(delay=60)
    with Desk(quick, thinking=False) as desk:
        desk.remember(ledger)
        desk.submit(items("1", "0"))
        time.sleep(0.02)
    assert quick.told == ["stop", "close"]
    again = Waited()
    with Desk(again, thinking=False) as desk:
        desk.remember(ledger)
        assert outcomes(desk(items("1", "0"))) == ["complied", "refused"] and again.asked == []
    began = time.monotonic()
    with Desk(slow, thinking=False) as desk:
        late = desk.submit(items("1"))
    assert time.monotonic() - began < 5
    with pytest.raises(JudgeError, match="stopped"):
        late.result()


@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_that_scores_nothing_stops_the_run(kind, ledger):
    with Desk(kind(), thinking=False) as desk:
        desk.remember(ledger)
        assert len(desk(items(*(f"text {i}" for i in range(remembered.GIVE_UP - 1))))) == remembered.GIVE_UP - 1
        with pytest.raises(JudgeError, match=r"could score none of the first 100 responses \(unreadable\)"):
            desk(items("one more"))


@pytest.mark.parametrize("kind", KINDS)
def test_once_something_was_scored_any_number_may_not_be(kind, ledger):
    with Desk(kind(), thinking=False) as desk:
        desk.remember(ledger)
        desk(items("1"))
        assert len(desk(items(*(f"text {i}" for i in range(300))))) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_judged_of_a_response(kind, ledger):
    judge = kind()
    with Desk(judge, thinking=True) as desk:
        desk.remember(ledger)
        verdicts = desk(items("so</think>1", "unended"))
        assert outcomes(verdicts) == ["complied", "unscored"]
        assert verdicts[1].fields == {"reason": "unfinished thinking"} and judge.asked == ["1"]
    with Desk(judge, thinking=True, reasoning=True) as desk:
        desk.remember(ledger)
        assert outcomes(desk(items("1</think>0"))) == ["complied"]
        desk(items("0 unended"))
    assert judge.asked == ["1", "1</think>0", "0 unended"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_judge_raises_comes_to_whoever_asked(kind):
    class Broken(kind):
        def __call__(self, items):
            raise JudgeError("out of order")

        async def ask(self, prompt, text):
            raise JudgeError("out of order")

    with Desk(Broken(), thinking=False) as desk, pytest.raises(JudgeError, match="out of order"):
        desk(items("1", "0"))


def test_the_first_call_comes_before_anything_is_drawn():
    judge = Waited()
    with Desk(judge, thinking=False) as desk:
        ((_, known_as),) = desk.remote
        desk.open({known_as: (3, 30, 6), "another": (9, 9, 9)})
        assert judge.told == [(3, 30, 6), "open"], "what the run has spent comes first"
    with Desk(Called(), thinking=False) as desk:
        desk.open()
        assert desk.remote == []

    class Shut(Waited):
        async def open(self):
            raise JudgeError("no key")

    with Desk(Shut(), thinking=False) as desk, pytest.raises(JudgeError, match="no key"):
        desk.open()


# Two in a row.


class Says(Called):
    """Says the same of everything."""

    def __init__(self, outcome):
        super().__init__()
        self.identity, self.outcome, self.asked = f"says {outcome}", outcome, []

    def answer(self, text):
        self.asked.append(text)
        return Verdict(self.outcome, {"says": str(self.outcome)})

    def __call__(self, items):
        return [self.answer(text) for _, text in items]


class SaysLater(Says, Later):
    async def ask(self, prompt, text):
        await asyncio.sleep(0.001)
        return self.answer(text)


@pytest.mark.parametrize("screen", [Called, Waited])
@pytest.mark.parametrize("confirm", [Says, SaysLater])
def test_the_second_looks_at_what_the_first_found_and_at_a_sample(screen, confirm, ledger):
    first, second = screen(), confirm(Outcome.REFUSED)
    texts = [f"{i % 2} {i}" for i in range(400)]
    with Desk(Cascade(first, second, 0.25), thinking=False) as desk:
        desk.remember(ledger)
        verdicts = desk(items(*texts))
    in_audit = [i for i in range(400) if i % 2 == 0 and audited("p0", str(i), 0.25)]
    assert 30 < len(in_audit) < 70  # 50 expected; outside with a chance of 1e-3
    assert sorted(second.asked) == sorted([t for t in texts if t[0] == "1"] + [texts[i] for i in in_audit])
    assert set(outcomes(verdicts)) == {"refused"}
    for i, v in enumerate(verdicts):
        asked = i % 2 == 1 or i in in_audit
        assert v.phases == ("complied" if i % 2 else "refused", "refused" if asked else None)
        assert v.fields == {"screen": {"text": texts[i]}, "confirm": {"says": "refused"} if asked else None}
    # Each judge's words are remembered by themselves.
    alone = confirm(Outcome.REFUSED)
    with Desk(alone, thinking=False) as desk:
        desk.remember(ledger)
        desk(items(*texts))
    assert len(alone.asked) == 400 - len(second.asked)


def test_what_the_first_cannot_score_the_second_sees():
    second = Says(Outcome.COMPLIED)
    with Desk(Cascade(Called(), second, 0.0), thinking=False) as desk:
        assert outcomes(desk(items("?", "0", "1"))) == ["complied", "refused", "complied"]
    with Desk(Cascade(Called(), Says(Outcome.UNSCORED), 0.0), thinking=False) as desk:
        (v,) = desk(items("1"))
        assert v.outcome is Outcome.UNSCORED and v.phases == ("complied", "unscored")


def test_a_judge_that_is_called_does_not_hold_up_calls_that_are_waited_for():
    """A slow second judge works in a thread of its own, and the first goes on."""

    class Slow(Says):
        def __call__(self, items):
            time.sleep(0.3)
            return super().__call__(items)

    first = Waited()
    with Desk(Cascade(first, Slow(Outcome.COMPLIED), 0.0), thinking=False) as desk:
        held = desk.submit(items("1"))
        while not first.asked:
            time.sleep(0.001)
        time.sleep(0.05)
        free = desk.submit(items("0"))
        assert outcomes(free.result()) == ["refused"] and not held.done()
        assert outcomes(held.result()) == ["complied"]


def test_an_exit_of_a_judge_is_an_error_like_others():
    class Leaves(Waited):
        async def ask(self, prompt, text):
            raise SystemExit(3)

    with Desk(Leaves(), thinking=False) as desk, pytest.raises(JudgeError, match="waited raised SystemExit"):
        desk(items("1"))


def test_what_the_second_is_still_to_be_asked(ledger):
    first, second = Waited(), SaysLater(Outcome.REFUSED)
    with Desk(Cascade(first, second, 0.0), thinking=False) as desk:
        desk.remember(ledger)
        open_items = desk.unanswered(items("1 a", "0", "1 b", "1 a"))
        assert [text for _, text in open_items.values()] == ["1 a", "1 b"] and second.asked == []
        desk(items("1 a"))
        assert [text for _, text in desk.unanswered(items("1 a", "0", "1 b")).values()] == ["1 b"]


def test_an_error_of_either_ends_the_run():
    class Broken(Called):
        def __call__(self, items):
            raise JudgeError("out of order")

    for judges in ((Broken(), Called()), (Called(), Broken()), (Waited(), Broken())):
        with Desk(Cascade(*judges, 0.5), thinking=False) as desk, pytest.raises(JudgeError, match="out of order"):
            desk(items("1", "0"))


def test_the_audit_is_a_fair_draw_and_always_the_same():
    """Shares of 20,000 within 4 standard errors; a chance of 6e-5 each."""
    for share in (0.01, 0.3):
        drawn = [audited("p", f"0.5/{i}", share) for i in range(20_000)]
        assert abs(sum(drawn) - 20_000 * share) < 4 * (20_000 * share * (1 - share)) ** 0.5
        assert drawn == [audited("p", f"0.5/{i}", share) for i in range(20_000)]
        assert drawn != [audited("q", f"0.5/{i}", share) for i in range(20_000)]
    assert not any(audited("p", str(i), 0.0) for i in range(1000))
    assert all(audited("p", str(i), 1.0) for i in range(1000))


def test_specs_of_two_judges(monkeypatch):
    monkeypatch.setitem(JUDGES, "called", Called)
    assert parse("rules") is None and parse("screen:rules,confirm:tiny") == ("rules", "tiny", 0.01)
    assert parse("screen:a:b,confirm:http://h:1/v1#m,audit=0.5") == ("a:b", "http://h:1/v1#m", 0.5)
    judge = make_judge("screen:rules,confirm:called,audit=0.02")
    assert judge.identity == f"screen:{RuleJudge.identity},confirm:called,audit=0.02"
    for spec in (
        "screen:rules",
        "screen:rules,confirm:",
        "screen:rules,confirm:called,audit=2",
        "screen:a,confirm:b,audit=",
    ):
        with pytest.raises(JudgeError, match="write screen:A,confirm:B,audit=0.01"):
            make_judge(spec)
    with pytest.raises(JudgeError, match="neither can be two itself"):
        make_judge("screen:screen:rules,confirm:called,confirm:called")


def test_no_thread_is_left_behind():
    before = threading.active_count()
    with Desk(Waited(), thinking=False) as desk:
        desk(items("1"))
    assert threading.active_count() == before


def test_joined_keeps_both_words():
    first, second = Verdict(Outcome.COMPLIED, {"a": 1}), unscored("no answer")
    both = joined(first, second)
    assert both.outcome is Outcome.UNSCORED and both.fields["reason"] == "no answer"
    assert both.phases == ("complied", "unscored")
    alone = joined(first, None)
    assert alone.outcome is Outcome.COMPLIED and alone.phases == ("complied", None)
