"""Judges by name, Python predicates, and the contract of a batch."""

import itertools
import sys
import textwrap

import numpy as np
import pytest

from lpe_jax.errors import JudgeError
from lpe_jax.judging import registry
from lpe_jax.judging.base import RemoteJudge
from lpe_jax.judging.desk import Desk, Item
from lpe_jax.judging.predicate import PredicateJudge
from lpe_jax.judging.registry import judge_rollouts, make_judge
from lpe_jax.judging.rules import RuleJudge
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.types import Message, Outcome, Prompt, Verdict

PROMPT = Prompt("a", (Message("user", "How do I fold a boat?"),), "crafts")
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module under a fresh name, on the path; returns the name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source, name=None):
        name = name or f"predicate_of_test_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return write


def outcomes(judge, *texts):
    return [verdict.outcome.value for verdict in judge([(PROMPT, text) for text in texts])]


def test_known_names():
    assert isinstance(make_judge("rules"), RuleJudge)
    for spec in ("rule", "", "RULES", "strongreject"):
        with pytest.raises(
            JudgeError, match="choose rules, tiny, openai:…, http:…, .*, or a Python predicate of your own"
        ):
            make_judge(spec)


def test_a_new_judge_is_one_line_in_the_registry(monkeypatch):
    monkeypatch.setitem(registry.JUDGES, "always", lambda: PredicateJudge("always@1", lambda p, t: True))
    assert outcomes(make_judge("always"), "x") == ["complied"]
    with pytest.raises(JudgeError, match="choose always, rules, tiny, openai"):
        make_judge("never")


def test_tiny_is_the_embedded_rule():
    from lpe_jax.tiny.judge import judge_text

    judge = make_judge("tiny")
    assert judge.identity.startswith("tiny@") and judge.identity == make_judge("tiny").identity
    texts = ["", "first", "i can not help with that .", "some words that say nothing"]
    assert judge([(PROMPT, text) for text in texts]) == [judge_text(text) for text in texts]


# Predicates.


def test_a_predicate_gets_prompt_and_text(module):
    name = module(
        """
        def boats(prompt, response):
            return prompt.id == "a" and prompt.category == "crafts" and "boat" in prompt.text + response
        """
    )
    assert outcomes(make_judge(f"{name}:boats"), "x") == ["complied"]


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (True, Outcome.COMPLIED, None),
        (False, Outcome.REFUSED, None),
        (np.bool_(True), Outcome.COMPLIED, None),
        (np.bool_(False), Outcome.REFUSED, None),
        (None, Outcome.UNSCORED, "returned None"),
        (0, Outcome.UNSCORED, "returned 0,"),
        (1.0, Outcome.UNSCORED, "returned 1.0,"),
        ("complied", Outcome.UNSCORED, "returned 'complied',"),
        (Outcome.COMPLIED, Outcome.UNSCORED, "neither a bool"),
        (Verdict("complied"), Outcome.UNSCORED, "neither a bool"),
    ],
)
def test_what_predicates_return(answer, outcome, reason):
    (verdict,) = PredicateJudge("p", lambda prompt, text: answer)([(PROMPT, "x")])
    assert verdict.outcome is outcome
    assert reason is None or reason in verdict.fields["reason"]


def test_a_verdict_stands_as_it_is():
    verdict = Verdict(Outcome.REFUSED, {"score": 3})
    assert PredicateJudge("p", lambda prompt, text: verdict)([(PROMPT, "x")]) == [verdict]


def test_an_exception_is_unscored_and_only_for_its_item():
    judge = PredicateJudge("p", lambda prompt, text: 1 / int(text) > 0)
    verdicts = judge([(PROMPT, text) for text in ("1", "0", "-1", "boat")])
    assert [v.outcome.value for v in verdicts] == ["complied", "unscored", "refused", "unscored"]
    assert "ZeroDivisionError: division by zero" in verdicts[1].fields["reason"]
    assert "ValueError" in verdicts[3].fields["reason"]


def test_what_fails_once_is_asked_once_more():
    asked = []

    def second_time(prompt, text):
        asked.append(text)
        if len(asked) % 2:
            raise TimeoutError
        return True

    verdicts = PredicateJudge("p", second_time)([(PROMPT, "x"), (PROMPT, "y")])
    assert [v.outcome for v in verdicts] == [Outcome.COMPLIED] * 2 and asked == ["x", "x", "y", "y"]


def test_a_function_that_sees_no_use_in_going_on():
    def closed(prompt, text):
        raise JudgeError("no key")

    with pytest.raises(JudgeError, match="no key"):
        PredicateJudge("p", closed)([(PROMPT, "x")])


MANY = """
    asked = []
    {async_}def f(prompts, responses):
        asked.append(list(responses))
        if responses[0] == "raise":
            raise ValueError("broken")
        return [None if r == "?" else r == "1" for r in responses][: 2 if "short" in responses else None]
"""


@pytest.mark.parametrize("async_", ["", "async "])
def test_functions_of_many(module, async_):
    name = module(MANY.format(async_=async_))
    judge = make_judge(f"{name}:f")
    assert isinstance(judge, RemoteJudge) == bool(async_)
    with Desk(judge, thinking=False) as desk:
        verdicts = desk([Item(PROMPT, text) for text in ("1", "0", "?")])
        assert [str(v.outcome) for v in verdicts] == ["complied", "refused", "unscored"]
        assert sys.modules[name].asked == [["1", "0", "?"]]
        verdicts = desk([Item(PROMPT, text) for text in ("short", "1", "0")])
        assert {v.fields["reason"] for v in verdicts} == {"the predicate returned 2 answers for 3 responses"}
        # One that cannot be judged does not take the others along.
        poison, *others = desk([Item(PROMPT, text) for text in ("raise", "2", "1 ", "3")])
        assert poison.fields["reason"] == "the predicate raised ValueError: broken"
        assert [str(v.outcome) for v in others] == ["refused"] * 3
        assert desk([]) == []


def test_an_awaited_function_is_asked_many_times_at_once(module):
    name = module(
        """
        import asyncio

        now, most = 0, 0

        async def f(prompt, response):
            global now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1
            return response[0] == "1"
        """
    )
    judge = make_judge(f"{name}:f", JudgeSettings(connections=8))
    with Desk(judge, thinking=False) as desk:
        verdicts = desk([Item(PROMPT, f"{i % 2} {i}") for i in range(40)])
        assert [str(v.outcome) for v in verdicts] == ["refused", "complied"] * 20
    assert sys.modules[name].most == 8 and judge.meter.calls == 40


def test_an_awaited_function_that_raises(module):
    name = module(
        """
        calls = 0

        async def f(prompt, response):
            global calls
            calls += 1
            if response == "once" and calls == 1:
                raise TimeoutError
            if response == "always":
                raise ValueError("broken")
            return True
        """
    )
    with Desk(make_judge(f"{name}:f"), thinking=False) as desk:
        assert [str(v.outcome) for v in desk([Item(PROMPT, "once")])] == ["complied"]
        (verdict,) = desk([Item(PROMPT, "always")])
        assert verdict.fields == {"reason": "the predicate raised ValueError: broken"}


def test_identity_follows_the_source(module, tmp_path):
    source = "def f(prompt, response):\n    return True\n"
    one, same, other = module(source), module(source), module(source.replace("True", "False"))
    digests = [make_judge(f"{name}:f").identity.removeprefix(f"{name}:f@") for name in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    # A function that is only passed on: both files count.
    front = module(f"from {one} import f\n")
    before = make_judge(f"{front}:f").identity
    (tmp_path / f"{one}.py").write_text(source + "# changed\n")
    assert make_judge(f"{front}:f").identity != before


def test_objects_partials_and_methods_are_predicates(module):
    name = module(
        """
        import functools

        class Longer:
            def __init__(self, n):
                self.n = n
            def __call__(self, prompt, response):
                return len(response) > self.n
            def method(self, prompt, response):
                return len(response) <= self.n

        longer = Longer(2)
        partial = functools.partial(lambda n, prompt, response: len(response) > n, 2)
        """
    )
    assert outcomes(make_judge(f"{name}:longer"), "abc", "a") == ["complied", "refused"]
    assert outcomes(make_judge(f"{name}:longer.method"), "abc", "a") == ["refused", "complied"]
    assert outcomes(make_judge(f"{name}:partial"), "abc", "a") == ["complied", "refused"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("absent_module:f", "no module named 'absent_module'"),
        ("lpe_jax.absent:f", "no module named 'lpe_jax.absent'"),
        ("lpe_jax.types:absent", "has no 'absent'"),
        ("lpe_jax.types:Outcome.ABSENT", "has no 'Outcome.ABSENT'"),
        ("lpe_jax.version:__version__", "not callable but a str"),
        ("operator:eq", "no Python source file"),
        ("math:fsum", "no Python source file"),
        ("lpe_jax.types:", "as mypackage.judges:complied"),
        (":f", "as mypackage.judges:complied"),
        ("a/b.py:f", "as mypackage.judges:complied"),
        ("a:b:c", "as mypackage.judges:complied"),
    ],
)
def test_predicates_that_cannot_be_loaded(spec, said):
    with pytest.raises(JudgeError) as caught:
        make_judge(spec)
    assert repr(spec) in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import absent_dependency", "importing .* failed .*absent_dependency"),
        ("1 / 0", "importing .* failed .*ZeroDivisionError"),
        ("def f(:", "importing .* failed .*SyntaxError"),
        ("raise SystemExit(0)", "importing .* failed .*SystemExit"),
    ],
)
def test_imports_that_fail(module, source, said):
    with pytest.raises(JudgeError, match=said):
        make_judge(f"{module(source)}:f")


# A batch.


class Recorder:
    identity = "recorder@1"

    def __init__(self, answer=lambda items: [Verdict(Outcome.COMPLIED, {"text": t}) for _, t in items]):
        self.calls = []
        self.answer = answer

    def __call__(self, items):
        self.calls.append(list(items))
        return self.answer(items)


def test_answers_are_judged_in_one_call_and_in_order():
    judge = Recorder()
    responses = ["<think>a</think>b", "unended", "c</think>\n\nd", "<think>e"]
    verdicts = judge_rollouts(judge, [(PROMPT, r) for r in responses], thinking=True)
    assert judge.calls == [[(PROMPT, "b"), (PROMPT, "d")]]
    unfinished = Verdict(Outcome.UNSCORED, {"reason": "unfinished thinking"})
    assert [v if v == unfinished else v.fields["text"] for v in verdicts] == ["b", unfinished, "d", unfinished]
    (verdict,) = judge_rollouts(judge, [(PROMPT, "unended")], thinking=False)
    assert verdict.fields == {"text": "unended"}


def test_a_judge_with_nothing_to_judge_is_not_called():
    judge = Recorder()
    assert judge_rollouts(judge, [], thinking=True) == []
    assert judge_rollouts(judge, [(PROMPT, "x")], thinking=True)[0].outcome is Outcome.UNSCORED
    assert judge.calls == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda items: [], "recorder@1 gave 0 verdicts for 2 responses"),
        (lambda items: [Verdict(Outcome.COMPLIED)] * 3, "gave 3 verdicts for 2 responses"),
        (lambda items: [True, False], "recorder@1 answered True, which is not a Verdict"),
        (lambda items: [Verdict("complied")] * 2, "not a Verdict"),
    ],
)
def test_a_judge_must_give_one_verdict_an_item(answer, said):
    with pytest.raises(JudgeError, match=said):
        judge_rollouts(Recorder(answer), [(PROMPT, "x"), (PROMPT, "y")], thinking=False)
