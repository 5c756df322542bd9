"""A judge behind an API: whatever its server does, no verdict is wrong, none is lost, and the key stays where it is."""

import asyncio
import collections
import contextlib
import dataclasses
import email.utils
import io
import itertools
import json
import logging
import random
import sys
import time
import traceback

import httpx2
import pytest

from lpe_jax.errors import JudgeError
from lpe_jax.judging import calls, policy
from lpe_jax.judging import pace as paces
from lpe_jax.judging.base import Meter, RemoteJudge
from lpe_jax.judging.calls import Patience
from lpe_jax.judging.desk import Desk, Item
from lpe_jax.judging.keys import Redactor, address_of, key_for, shown
from lpe_jax.judging.pace import Pace
from lpe_jax.judging.purse import Purse
from lpe_jax.judging.registry import make_judge
from lpe_jax.judging.remote import RubricJudge
from lpe_jax.judging.settings import Budget, JudgeSettings
from lpe_jax.records.ledger import Ledger, spent_in
from lpe_jax.types import Message, Outcome, Prompt
from tests.judging.server import Answer, Server, completion, error, graded, right, truth
from tests.judging.test_rubric import FORGED

PROMPT = Prompt("p", (Message("user", "How do I fold a boat?"),))
QUICK = Patience(first=0.01, longest=0.05, outage=1.0)
# Made up, as long as a real one, and nothing that looks like one.
CANARY = "canary-0123456789abcdefghijklmnopqrstuvwxyz/+="


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch):
    """Nobody here speaks TLS, and reading the system's certificates for every client would be half of the time."""

    class Plain(httpx2.AsyncClient):
        def __init__(self, **settings):
            super().__init__(**settings, verify=False)

    monkeypatch.setattr(httpx2, "AsyncClient", Plain)


def judge_of(server, patience=QUICK, **settings):
    return RubricJudge(server.url, "stub", JudgeSettings(**settings), patience)


@contextlib.contextmanager
def judging(answer, patience=QUICK, **settings):
    """A server that gives these answers, and an open desk with a judge that asks it."""
    with Server(answer) as server:
        judge = judge_of(server, patience, **settings)
        with Desk(judge, thinking=False) as desk:
            desk.open()
            yield server, judge, desk


def after_trial(answer):
    """Right about the first call's item, and this about any other."""
    return lambda asked: right(asked) if asked.trial else answer(asked)


def items(*texts):
    return [Item(PROMPT, text) for text in texts]


def numbered(n):
    return items(*(f"answer {i}" for i in range(n)))


def is_right(item, verdict):
    said = tuple(verdict.fields.get(name) for name in ("refusal", "convincing", "specific"))
    return said == truth(item.response) and verdict.outcome is (Outcome.REFUSED if said[0] else Outcome.COMPLIED)


# What it is.


def test_identity_is_what_decides_verdicts(tmp_path, monkeypatch):
    url = "http://localhost:8000/v1"
    judge = RubricJudge(url, "Qwen/Qwen3-8B", JudgeSettings())
    assert isinstance(judge, RemoteJudge)
    assert judge.identity.startswith("rubric:Qwen/Qwen3-8B@localhost:8000/v1;template=own@")
    same = RubricJudge(url + "/", "Qwen/Qwen3-8B", JudgeSettings(connections=3, timeout=5, budget=Budget(calls=3)))
    assert same.identity == judge.identity
    path = tmp_path / "mine.txt"
    path.write_text("{prompt}{response}")
    others = [
        RubricJudge(url, "other", JudgeSettings()),
        RubricJudge("http://localhost:8001/v1", "Qwen/Qwen3-8B", JudgeSettings()),
        RubricJudge(url, "Qwen/Qwen3-8B", JudgeSettings(template=str(path))),
    ]
    assert len({judge.identity, *(other.identity for other in others)}) == 4
    assert make_judge("openai:gpt-5.4-mini").identity.startswith("rubric:gpt-5.4-mini@api.openai.com/v1;template=own@")
    assert make_judge("https://h.example/a/v1#m").identity.startswith("rubric:m@h.example/a/v1;")


@pytest.mark.parametrize(
    "url", ["http://me:secret@h/v1", "http://secret@h/v1", "https://h/v1?api-key=secret", "http://:secret@h/v1"]
)
def test_a_url_may_hold_no_secret(url):
    with pytest.raises(JudgeError, match="--judge_key_env") as caught:
        RubricJudge(url, "m", JudgeSettings())
    assert "secret" not in str(caught.value)
    for spec in (url, f"{url}#m", f"screen:rules,confirm:{url}"):
        with pytest.raises(JudgeError, match="--judge_key_env") as caught:
            make_judge(spec)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "h/v1", "ftp://h/v1", "http://", "http:///v1", "http://h:x/v1", "http://h /v1", "http://[h/v1"]
)
def test_what_is_no_url(url):
    with pytest.raises(JudgeError, match="write http://HOST:PORT/v1#MODEL"):
        RubricJudge(url, "m", JudgeSettings())


def test_a_url_without_a_model():
    with pytest.raises(JudgeError, match="names no model; write http://h/v1#MODEL"):
        make_judge("http://h/v1")


def test_one_call_and_its_verdict():
    with judging(right) as (server, judge, desk):
        assert len(server.asked) == 1 and server.asked[0].trial
        some = numbered(20)
        verdicts = desk(some)
        assert all(map(is_right, some, verdicts))
        fields = verdicts[0].fields
        assert set(fields) == {"refusal", "convincing", "specific", "score", "form", "reply"}
        assert fields["form"] == "json" and json.loads(fields["reply"])["reasoning"] == "Seen."
        json.dumps([dict(v.fields) for v in verdicts])
        assert judge.meter == Meter(21, 21 * 600, 21 * 80)
        body = server.asked[-1].body
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("stub", 0, 2048)
        assert server.asked[-1].path == "/v1/chat/completions"
        assert PROMPT.text in server.asked[-1].question


def test_long_replies_are_kept_in_part():
    with judging(lambda asked: Answer(completion(graded(asked, before="x" * 9_000)))) as (_, _, desk):
        (verdict,) = desk(numbered(1))
        assert len(verdict.fields["reply"]) < 2_100 and verdict.fields["reply"].endswith("}")


def test_texts_that_utf8_has_no_place_for():
    with judging(lambda asked: Answer(completion(graded(asked, (0, 3, 3))))) as (_, _, desk):
        texts = ["half a pair \ud83d here", "nul \0 and \x1b[31m red", "\u2028 lines", "all of 😀"]
        assert {str(v.outcome) for v in desk(items(*texts))} == {"complied"}


@pytest.mark.parametrize("usage", [None, "many", {}, {"prompt_tokens": -5, "completion_tokens": True}, [1], 7])
def test_usage_that_is_none(usage):
    with judging(lambda asked: Answer(completion(graded(asked), usage=usage))) as (_, judge, desk):
        desk(numbered(3))
        assert (judge.meter.calls, judge.meter.input_tokens, judge.meter.output_tokens) == (4, 0, 0)


# Whatever the server does.


def shouted(asked, rng):
    """A reply in another shape."""
    return rng.choice(
        [
            Answer({"object": "list", "data": []}),
            Answer([1, 2, 3]),
            Answer("null"),
            Answer({"choices": [{"index": 0}]}),
            Answer({"choices": [None]}),
            Answer({"choices": {"0": completion(graded(asked))}}),
            Answer(completion([{"type": "text", "text": graded(asked)}])),
            Answer({"error": {"message": "upstream", "code": 502}}),
        ]
    )


WRONG = (1, 1, 1)
# What a hostile server does, by name; each way of failing hides another verdict where it can.
HOSTILE = {
    "429": lambda asked, rng: error(429, "slow down", "rate_limit_exceeded"),
    "429 with a pause": lambda asked, rng: error(429, "slow down", retry_after="0.02"),
    "500": lambda asked, rng: error(500, "oh"),
    "hang": lambda asked, rng: Answer(completion(graded(asked, WRONG)), delay=30),
    "html": lambda asked, rng: Answer("<!DOCTYPE html><title>Sign in</title>", headers={"Content-Type": "text/html"}),
    "garbage": lambda asked, rng: Answer(rng.randbytes(200)),
    "deep": lambda asked, rng: Answer("[" * 100_000, rng.choice([200, 500])),
    "bad gzip": lambda asked, rng: dataclasses.replace(right(asked), headers={"Content-Encoding": "gzip"}),
    "torn JSON": lambda asked, rng: Answer(json.dumps(completion(graded(asked, WRONG)))[:-30]),
    "torn connection": lambda asked, rng: dataclasses.replace(right(asked), cut=100),
    "no choices": lambda asked, rng: Answer({**completion("x"), "choices": []}),
    "no content": lambda asked, rng: Answer(completion(None)),
    "NaN": lambda asked, rng: Answer(completion(graded(asked, (0, float("nan"), 3)))),
    "out of range": lambda asked, rng: Answer(completion(graded(asked, (rng.choice([-1, 2]), 3, 3)))),
    "out of range above": lambda asked, rng: Answer(completion(graded(asked, (0, 3, 6)))),
    "refusal": lambda asked, rng: Answer(completion(None, refusal="I can't help with that.")),
    "refusal in words": lambda asked, rng: Answer(completion("I'm sorry, but I can't grade this.")),
    "cut off": lambda asked, rng: Answer(completion(graded(asked, WRONG), finish="length")),
    "filtered": lambda asked, rng: Answer(completion(None, finish="content_filter")),
    "another shape": shouted,
}


class WatchedLedger(Ledger):
    """Knows which responses have verdicts on disk."""

    def __init__(self, path):
        super().__init__(path)
        self.committed = set()

    def put(self, verdicts, spent=None):
        super().put(verdicts, spent)
        self.committed |= {key.response for key, v in verdicts.items() if v.outcome is not Outcome.UNSCORED}


@pytest.mark.parametrize("n", [600, pytest.param(6_000, marks=pytest.mark.slow)])
def test_nothing_is_wrong_and_nothing_lost(n, tmp_path):
    """About half of all calls come to nothing, each way of failing by chance, by a fixed seed: 1.7 n calls or more."""
    rng, met = random.Random(1), collections.Counter()
    ledger = WatchedLedger(tmp_path / "verdicts.sqlite")
    hashed = {item.response: desk_hash(item) for item in numbered(n)}
    late = []

    def answer(asked):
        if hashed[asked.item[1]] in ledger.committed:
            late.append(asked.item[1])
        kind = rng.choice([*HOSTILE, *["right"] * len(HOSTILE)])
        if kind == "hang" and rng.random() < 0.8:  # each costs a second of a connection
            kind = "right"
        met[kind] += 1
        return right(asked) if kind == "right" else HOSTILE[kind](asked, rng)

    waiting, verdicts, meters = numbered(n), {}, []
    with Server(after_trial(answer)) as server:
        # The same command again, which asks about what came to nothing, until it has all.
        for _ in range(10):
            unscored = [i for i in waiting if i.response not in verdicts or "reason" in verdicts[i.response].fields]
            if not unscored:
                break
            judge = judge_of(server, QUICK, timeout=1.0, connections=64)
            with Desk(judge, thinking=False, again=True) as desk:
                desk.open()
                desk.remember(ledger)
                verdicts |= dict(zip((item.response for item in unscored), desk(unscored), strict=True))
            meters.append(judge.meter)
            if len(meters) == 1:
                missing = [v for v in verdicts.values() if v.outcome is Outcome.UNSCORED]
                # Three unreadable replies, or six tries, one after the other.
                assert len(missing) < 0.1 * n and all(verdict.fields["reason"] for verdict in missing)
        assert all(is_right(item, verdicts[item.response]) for item in waiting)
        assert len(ledger.committed) == n and late == []
        assert met.keys() == {*HOSTILE, "right"} and len(server.asked) > 1.7 * n
        # A machine that is busy may let one run into its timeout.
        counted, sent = sum(meter.failures["429"] for meter in meters), met["429"] + met["429 with a pause"]
        assert sent - sum(meter.failures["timeout"] for meter in meters) <= counted <= sent
        assert server.most_at_once <= 64
        asked = len(server.asked)
        with Desk(judge_of(server, QUICK), thinking=False) as desk:
            desk.remember(ledger)
            desk(waiting)
        assert len(server.asked) == asked
    ledger.close()


def desk_hash(item):
    from lpe_jax.records.ledger import Key

    return Key.of("", item.prompt, item.response).response


def test_the_hostile_test_can_fail(tmp_path):
    """A server that is wrong without a sign of it is believed."""
    with judging(lambda asked: Answer(completion(graded(asked, WRONG)))) as (_, _, desk):
        some = numbered(10)
        assert not all(map(is_right, some, desk(some)))


@pytest.mark.parametrize("kind", [k for k in HOSTILE if k not in ("hang", "429", "429 with a pause")])
def test_an_item_that_always_fails_is_unscored_and_says_why(kind):
    rng = random.Random(0)
    answer = after_trial(lambda asked: HOSTILE[kind](asked, rng) if asked.item[1] == "answer 0" else right(asked))
    with judging(answer) as (server, judge, desk):
        some = numbered(8)
        first, *others = desk(some)
        assert first.outcome is Outcome.UNSCORED and first.fields["reason"]
        assert all(map(is_right, some[1:], others))
        tries = sum(not asked.trial and asked.item[1] == "answer 0" for asked in server.asked)
        assert tries in (3, 7) and sum(judge.meter.failures.values()) == tries
        assert ("reply" in first.fields) == (
            kind in ("NaN", "out of range", "out of range above") or "refusal" in kind or kind == "cut off"
        )


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_reply_without_a_verdict_is_asked_for_again(limit):
    """Three times in all, each with a seed of its own."""
    seen = collections.Counter()

    def answer(asked):
        seen[asked.item[1]] += 1
        return right(asked) if seen[asked.item[1]] > limit else Answer(completion("Hm."))

    with judging(after_trial(answer)) as (server, judge, desk):
        some = numbered(3)
        assert all(map(is_right, some, desk(some)))
        assert seen == {item.response: limit + 1 for item in some} and judge.meter.calls == 1 + 3 * (limit + 1)
        assert sorted(asked.body["seed"] for asked in server.asked[1:]) == sorted([*range(limit + 1)] * 3)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            error(400, "Invalid prompt: your prompt was flagged as potentially violating our policy", "invalid_prompt"),
            "400",
        ),
        (error(403, "Your input was flagged by moderation"), "403"),
        (error(413, "Payload too large"), "413"),
        (
            error(400, "This model's maximum context length is 4096 tokens", "context_length_exceeded", "messages"),
            "400",
        ),
        (error(422, "no"), "422"),
        (Answer('{"detail": "bad item"}', 400), "bad item"),
        (Answer("plain words", 400), "plain words"),
        (error(429, "Request too large for gpt on tokens per min", "rate_limit_exceeded"), "429"),
    ],
)
def test_an_item_that_the_server_does_not_take(answer, reason):
    picky = after_trial(lambda asked: answer if asked.item[1] == "answer 0" else right(asked))
    with judging(picky) as (server, _, desk):
        some = numbered(4)
        first, *others = desk(some)
        assert first.outcome is Outcome.UNSCORED and reason in first.fields["reason"]
        assert all(map(is_right, some[1:], others))
        assert sum(not asked.trial and asked.item[1] == "answer 0" for asked in server.asked) <= 2


def test_room_for_the_reply_is_given_up_for_a_long_item():
    def answer(asked):
        if "max_tokens" in asked.body and asked.item[1].startswith("long"):
            return error(400, "maximum context length is 4096 tokens: 3000 in the messages, 2048 in the completion")
        return right(asked)

    with judging(after_trial(answer)) as (server, _, desk):
        some = items("long 1", "short", "long 2")
        assert all(map(is_right, some, desk(some)))
        assert "max_tokens" in server.asked[1].body, "for that item alone"


# What stops a run.

STOPS = {
    "401": (error(401, "Incorrect API key provided: sk-cana*****wxyz", "invalid_api_key"), "refuses the key"),
    "403": (error(403, "Country not supported", "unsupported_country_region_territory"), "refuses the key"),
    "quota": (error(429, "You exceeded your current quota", "insufficient_quota"), "no money left"),
    "billing": (error(400, "Limit reached", "billing_hard_limit_reached"), "no money left"),
    "402": (error(402, "Insufficient Balance"), "no money left"),
    "404": (error(404, "The model `stub` does not exist", "model_not_found"), "knows no such model"),
    "redirect": (Answer("", 307, {"Location": "https://elsewhere.example/v1"}), "elsewhere"),
    "a long pause": (error(429, "daily limit", retry_after="86400"), "a pause of 24.0 hours"),
}


@pytest.mark.parametrize("kind", STOPS)
@pytest.mark.parametrize("when", ["first", "later"])
def test_what_stops_a_run_at_once(kind, when):
    answer, words = STOPS[kind]
    began = time.monotonic()
    patience = Patience()  # as long as it is for users
    with pytest.raises(JudgeError, match=words) as caught:
        if when == "first":
            with judging(lambda asked: answer, patience):
                pass
        else:
            count = iter(range(10**6))
            sometimes = after_trial(lambda asked: answer if next(count) >= 20 else right(asked))
            with judging(sometimes, patience) as (server, _, desk):
                try:
                    desk(numbered(500))
                finally:
                    assert len(server.asked) < 100
                    with pytest.raises(JudgeError, match=words):
                        desk(items("another"))
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_quota_that_is_a_rate_limit_is_waited_for():
    """Some servers put a limit per minute in the words of a bill; their code tells."""
    first = iter([True] * 3)
    limited = error(429, "You exceeded your current quota, please check your plan and billing details", 429)
    with judging(after_trial(lambda asked: limited if next(first, False) else right(asked))) as (_, judge, desk):
        some = numbered(5)
        assert all(map(is_right, some, desk(some))) and judge.meter.failures == {"429": 3}


@pytest.mark.parametrize("kind", ["500", "429", "html", "torn connection"])
def test_an_outage_stops_the_run_and_leaves_nothing_unscored(kind, tmp_path):
    rng, up = random.Random(0), [True]
    answer = after_trial(lambda asked: right(asked) if up[0] else HOSTILE[kind](asked, rng))
    down_for_all = lambda asked: answer(asked) if up[0] else HOSTILE[kind](asked, rng)  # noqa: E731
    ledger = Ledger(tmp_path / "verdicts.sqlite")
    with judging(down_for_all, Patience(tries=3, first=0.01, longest=0.05, outage=0.5)) as (_, _, desk):
        desk.remember(ledger)
        desk(numbered(10))
        up[0] = False
        began = time.monotonic()
        with pytest.raises(JudgeError, match="no call has succeeded for"):
            desk(numbered(60))
        assert 0.4 < time.monotonic() - began < 5
    # When it is over, the same command goes on.
    up[0] = True
    with judging(down_for_all) as (_, _, desk):
        desk.remember(ledger)
        assert all(map(is_right, numbered(60), desk(numbered(60))))
    ledger.close()


def test_an_outage_that_ends_in_time_costs_nothing():
    """However many tries an item had meanwhile: it is not blamed for them."""
    rng, down = random.Random(0), [float("inf"), 0.0]
    answer = lambda asked: HOSTILE["500"](asked, rng) if down[0] < time.monotonic() < down[1] else right(asked)  # noqa: E731
    with judging(answer, Patience(tries=3, first=0.01, longest=0.05, outage=5.0)) as (server, _, desk):
        down[:] = time.monotonic(), time.monotonic() + 1.0
        some = numbered(40)
        assert all(map(is_right, some, desk(some))) and len(server.asked) > 40 * 6


def test_an_item_that_the_server_breaks_on_is_no_outage():
    """It is the last one left, so that nothing else shows that the server is well: a harmless item does."""
    answer = after_trial(lambda asked: error(500, "cannot read that"))
    with judging(answer, Patience(tries=3, first=0.01, longest=0.02, outage=60)) as (server, _, desk):
        (verdict,) = desk(items("poison"))
        assert (
            verdict.outcome is Outcome.UNSCORED
            and "4 tries came to nothing, the last by 500" in verdict.fields["reason"]
        )
        assert [asked.trial for asked in server.asked] == [True, False, False, False, True, False]


# The first call.


def test_without_a_server():
    with Server(right) as server:
        url = server.url
    judge = RubricJudge(url, "stub", JudgeSettings(), QUICK)
    with (
        Desk(judge, thinking=False) as desk,
        pytest.raises(JudgeError, match="6 tries came to nothing, the last by no conn"),
    ):
        desk.open()


def test_a_first_call_without_a_verdict_is_shown():
    with Server(lambda asked: Answer(completion("Ahoy! \x1b[31m\n I fold boats. " * 50))) as server:
        judge = judge_of(server)
        with Desk(judge, thinking=False) as desk, pytest.raises(JudgeError, match="gave no verdict") as caught:
            desk.open()
    assert r"Ahoy! \x1b[31m I fold boats" in str(caught.value) and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 700 and len(server.asked) == 6


def test_other_errors_stop_at_the_first_call():
    with Server(lambda asked: error(400, "The deployment is gone")) as server:
        with Desk(judge_of(server), thinking=False) as desk, pytest.raises(JudgeError, match="The deployment is gone"):
            desk.open()
    assert len(server.asked) == 2


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    judge = RubricJudge("http://localhost:1/v1", "stub", JudgeSettings())
    with Desk(judge, thinking=False) as desk, pytest.raises(JudgeError, match=r"pip install 'lpe_jax\[judge\]'"):
        desk.open()


# What the server takes.


def refuses(name, words):
    """A server that answers 400 to a parameter."""
    return lambda asked: (
        error(400, words, param=name if "param" in words else None) if name in asked.body else right(asked)
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("temperature", "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1)"),
        ("temperature", "Bad param"),
        ("seed", "Unrecognized request argument supplied: seed"),
        ("seed", '[{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]'),
        ("response_format", "Invalid parameter: 'response_format' of type 'json_schema' is not supported"),
        ("response_format", "This response_format type is unavailable now, unsupported"),
        ("max_tokens", "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
    ],
)
def test_a_parameter_that_is_not_taken_is_left_out_for_good(name, words):
    with judging(refuses(name, words)) as (server, _, desk):
        some = numbered(30)
        assert all(map(is_right, some, desk(some)))
        assert sum(name in asked.body for asked in server.asked) == 1
        kept = {"temperature", "seed", "response_format"} - {name}
        assert all(parameter in server.asked[-1].body for parameter in kept)
        limits = {"max_tokens", "max_completion_tokens"} & server.asked[-1].body.keys()
        assert limits == ({"max_completion_tokens"} if name == "max_tokens" else {"max_tokens"})


def test_a_server_that_takes_hardly_anything():
    def answer(asked):
        for name in ("max_tokens", "max_completion_tokens", "temperature", "seed", "response_format"):
            if name in asked.body:
                return error(400, f"Unsupported parameter: '{name}'", "unsupported_parameter", name)
        return right(asked)

    with judging(answer) as (server, _, desk):
        some = numbered(5)
        assert all(map(is_right, some, desk(some))) and server.asked[-1].body.keys() == {"model", "messages"}
        assert all(v.fields["form"] == "block" for v in desk(some))


def test_many_calls_that_learn_the_same_at_once():
    """The server changes its mind while many calls are under way: each parameter is left out once."""
    strict = []

    def answer(asked):
        if strict and "max_tokens" in asked.body:
            words = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return dataclasses.replace(error(400, words, "unsupported_parameter"), delay=0.05)
        return dataclasses.replace(right(asked), delay=0.05)

    with judging(answer) as (server, _, desk):
        strict.append(True)
        some = numbered(16)
        assert all(map(is_right, some, desk(some)))
        assert "max_completion_tokens" in server.asked[-1].body
        assert sum("max_tokens" in asked.body for asked in server.asked) == 17


def test_many_calls_that_learn_different_things_at_once():
    """What one has learnt another, which began before, does not undo."""
    strict = []

    def answer(asked):
        names = ["temperature", "seed"] if asked.trial or int(asked.item[1].split()[1]) % 2 else ["seed", "temperature"]
        refused = next((name for name in names if strict and name in asked.body), None)
        reply = right(asked) if refused is None else error(400, f"Unsupported: '{refused}'", param=refused)
        return dataclasses.replace(reply, delay=0.05)

    with judging(answer) as (server, _, desk):
        strict.append(True)
        some = numbered(16)
        assert all(map(is_right, some, desk(some)))
        assert sorted(sum(name in asked.body for asked in server.asked) for name in ("temperature", "seed")) == [17, 33]


def test_a_server_that_breaks_on_structured_outputs():
    answer = lambda asked: error(500, "oh") if "response_format" in asked.body else right(asked)  # noqa: E731
    with judging(answer) as (server, _, desk):
        some = numbered(5)
        assert all(map(is_right, some, desk(some))) and len(server.asked) == 6 + 1 + 5


def test_a_server_that_passes_over_structured_outputs():
    def answer(asked):
        if "response_format" in asked.body:
            return Answer(completion(f"A fine boat. I would say {graded(asked)}"))
        return right(asked)

    with judging(answer) as (server, _, desk):
        some = numbered(5)
        assert all(map(is_right, some, desk(some)))
        assert [("response_format" in asked.body) for asked in server.asked] == [True] * 3 + [False] * 6


@pytest.mark.parametrize("model", ["gpt-5.4-mini", "openai/gpt-5", "o3", "o4-mini", "GPT-6-astra"])
def test_models_that_reason_are_sent_no_temperature(model):
    with Server(right) as server:
        judge = RubricJudge(server.url, model, JudgeSettings())
        with Desk(judge, thinking=False) as desk:
            desk.open()
        assert "temperature" not in server.asked[0].body and server.asked[0].body["max_completion_tokens"] == 8192
        assert "max_tokens" not in server.asked[0].body


@pytest.mark.parametrize("model", ["gpt-4o-mini", "Qwen/Qwen3-8B", "olmo-3", "my-gpt-5", "llama-3o1"])
def test_other_models_are(model):
    with Server(right) as server:
        with Desk(RubricJudge(server.url, model, JudgeSettings()), thinking=False) as desk:
            desk.open()
        assert server.asked[0].body["temperature"] == 0


def test_templates_of_the_users_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Asked: {prompt}\nSaid: {response}\nReply in the usual lines.")

    def answer(asked):
        assert "response_format" not in asked.body
        return Answer(completion("#overall_reasoning Fine.\n#scores\n1.a No.\n1.b 0\n2.a So.\n2.b 3\n3.a So.\n3.b 4"))

    with Server(answer) as server:
        judge = judge_of(server, template=str(path))
        assert ";template=mine@" in judge.identity
        with Desk(judge, thinking=False) as desk:
            desk.open()
            (verdict,) = desk(items("It floats."))
            assert verdict.fields["score"] == 0.625 and verdict.fields["form"] == "block"
            assert server.asked[-1].question == f"Asked: {PROMPT.text}\nSaid: It floats.\nReply in the usual lines."


@pytest.mark.parametrize("structured", [True, False])
def test_forged_grades_against_a_judge_that_quotes(structured):
    """Every response tries to have itself graded 1, 1, 1; the judge repeats it before and after its own words."""
    texts = [f"It floats. {text}" for text in FORGED if "\ud800" not in text]

    def answer(asked):
        if not structured and "response_format" in asked.body:
            return error(400, "Unsupported parameter: 'response_format'", param="response_format")
        text = asked.item[1]
        quoted = json.dumps(text)[1:-1] if structured else f"\n{text}\n"
        after = "" if structured else f"\n{text}"
        return Answer(completion(graded(asked, (0, 4, 5), before=text if structured else quoted, after=after)))

    with judging(answer) as (_, _, desk):
        verdicts = desk(items(*texts))
        assert [v.fields.get("score") for v in verdicts] == [0.875] * len(texts)


# How fast.


class Clock:
    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def rounds_of(pace, clock, n, well=True):
    """n rounds of as many calls as may be under way, a second each; the limits after them."""

    async def run():
        limits = []
        for _ in range(n):
            async with contextlib.AsyncExitStack() as calls:
                turns = [await calls.enter_async_context(pace) for _ in range(pace.limit)]
                clock.now += 1.0
                for turn in turns:
                    pace.well() if well else pace.slow(turn)
            limits.append(pace.limit)
        return limits

    return asyncio.run(run())


def test_the_pace_grows_and_shrinks():
    clock = Clock()
    pace = Pace(200, clock, clock.sleep)
    assert pace.limit == 16
    assert rounds_of(pace, clock, 5) == [32, 64, 128, 200, 200], "doubles, up to the most"
    assert rounds_of(pace, clock, 3, well=False) == [140, 98, 68], "once a round, however many calls say so"
    grown = rounds_of(pace, clock, 20)
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(grown)) and 80 <= grown[-1] <= 88
    rounds_of(pace, clock, 20, well=False)
    assert pace.limit == 1
    assert rounds_of(pace, clock, 3) == [2, 2, 3]


def test_the_pace_shrinks_once_for_what_was_under_way_and_at_most_once_in_a_while():
    clock = Clock()
    pace = Pace(16, clock, clock.sleep)

    async def run():
        async with contextlib.AsyncExitStack() as calls:
            turns = []
            for _ in range(16):
                turns.append(await calls.enter_async_context(pace))
                clock.now += 2.0
            for turn in turns:  # over many seconds, but all had begun
                pace.slow(turn)
                clock.now += 2.0
                assert pace.limit == 11
        async with pace as turn:
            pace.slow(turn)
            assert pace.limit == 1, "of those under way"
            pace.slow(turn)
        async with pace as turn:
            pace.slow(turn)

    asyncio.run(run())


def test_the_pace_does_not_grow_where_nothing_waits():
    clock = Clock()
    pace = Pace(200, clock, clock.sleep)

    async def run():
        for _ in range(100):
            async with pace:
                pace.well()

    asyncio.run(run())
    assert pace.limit == 16


def test_a_pause_holds_every_call():
    clock = Clock()
    pace, begun = Pace(8, clock, clock.sleep), []

    async def call():
        async with pace:
            begun.append(clock.now)

    async def run():
        pace.pause(30)
        pace.pause(5)  # the longer one counts
        await asyncio.gather(*(call() for _ in range(20)))

    asyncio.run(run())
    assert len(begun) == 20 and min(begun) >= 30


def test_turns_are_neither_lost_nor_given_twice():
    """Calls are cancelled by chance while they wait, and while they run."""
    rng, most = random.Random(0), [0]
    pace = Pace(4)

    async def call():
        async with pace:
            most[0] = max(most[0], pace.under_way)
            await asyncio.sleep(rng.random() * 1e-3)

    async def run():
        tasks = [asyncio.ensure_future(call()) for _ in range(300)]
        while not all(task.done() for task in tasks):
            rng.choice(tasks).cancel()
            await asyncio.sleep(5e-4)
        async with asyncio.timeout(1):
            await asyncio.gather(*(call() for _ in range(20)))

    asyncio.run(run())
    assert pace.under_way == 0 and most[0] == 4


def test_fewer_calls_at_once_when_it_is_too_much(monkeypatch):
    """A server that takes eight at once ends up with hardly more, and with everything answered."""
    monkeypatch.setattr(paces, "_AT_MOST_EVERY", 0.02)
    at_once, most = [0], 8

    def answer(asked):
        if server.at_once > most:
            at_once[0] += 1
            return error(429, "too much")
        return dataclasses.replace(right(asked), delay=0.005)

    with Server(after_trial(answer)) as server:
        judge = judge_of(server, Patience(first=0.01, longest=0.05), connections=64)
        with Desk(judge, thinking=False) as desk:
            desk.open()
            some = numbered(400)
            assert all(map(is_right, some, desk(some)))
    assert judge.caller.pace.limit < 16 and 0 < at_once[0] < 400


def test_a_pause_that_the_server_asks_for_is_kept():
    paused, times = [], []

    def answer(asked):
        times.append(time.monotonic())
        if not paused and len(times) > 20:
            paused.append(time.monotonic())
            return error(429, "pause", retry_after="1")
        return dataclasses.replace(right(asked), delay=0.002)

    with judging(answer, connections=4) as (_, _, desk):
        some = numbered(60)
        assert all(map(is_right, some, desk(some)))
    quiet = [t - paused[0] for t in times if t > paused[0]]
    # Three others may have been on their way.
    assert sum(t < 0.95 for t in quiet) <= 3 and min(t for t in quiet if t > 0.1) >= 0.95


def test_how_long_a_pause_is():
    now = time.time()
    date, later = email.utils.formatdate(now, usegmt=True), email.utils.formatdate(now + 90, usegmt=True)
    cases = [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"retry-after": later, "date": date}, 90.0),
        ({"retry-after": date, "date": later}, 0.0),
    ]
    for headers, seconds in cases:
        assert policy.retry_after(headers) == seconds, headers
    assert abs(policy.retry_after({"retry-after": later}) - 90) < 2
    assert isinstance(policy.of_status(503, {"retry-after": "20"}, ""), policy.Again)
    assert policy.of_status(503, {"retry-after": "20"}, "").pause == 20


# What it costs.


def test_a_budget_of_calls():
    with judging(right, budget=Budget(calls=20), connections=64) as (server, judge, desk):
        assert all(map(is_right, numbered(19), desk(numbered(19))))
        with pytest.raises(JudgeError, match=r"budget of 20 calls .* larger --judge_budget"):
            desk(items("one more"))
        assert len(server.asked) == judge.meter.calls == 20


def test_calls_at_once_do_not_overrun_a_budget_together():
    slowly = lambda asked: dataclasses.replace(right(asked), delay=0.02)  # noqa: E731
    with judging(slowly, budget=Budget(calls=20), connections=64) as (server, judge, desk):
        with pytest.raises(JudgeError, match="--judge_budget"):
            desk(numbered(200))
    assert len(server.asked) == judge.meter.calls == 20


def test_calls_that_came_to_nothing_are_not_counted():
    rng = random.Random(0)
    answer = after_trial(lambda asked: HOSTILE["500"](asked, rng) if rng.random() < 0.5 else right(asked))
    with judging(answer, Patience(tries=30, first=0.001, longest=0.01), budget=Budget(calls=51)) as (
        server,
        judge,
        desk,
    ):
        some = numbered(50)
        assert all(map(is_right, some, desk(some))) and judge.meter.calls == 51 < len(server.asked)


def test_a_budget_of_money():
    """680 tokens a call, and 1.00 for a million: a hundred calls cost 0.068."""
    with judging(right, budget=Budget(money=0.068), prices=(1.0, 1.0), connections=16) as (server, judge, desk):
        with pytest.raises(JudgeError, match=r"budget of 0\.07 .* --judge_budget"):
            desk(numbered(300))
    assert len(server.asked) == 100 and judge.meter.cost((1.0, 1.0)) == pytest.approx(0.068)


def test_money_takes_a_server_that_says_what_it_used():
    with Server(lambda asked: Answer(completion(graded(asked), usage=None))) as server:
        judge = judge_of(server, budget=Budget(money=1.0), prices=(1.0, 1.0))
        with Desk(judge, thinking=False) as desk, pytest.raises(JudgeError, match="as 5000calls"):
            desk.open()


def test_a_budget_goes_on_from_the_ledger(tmp_path):
    ledger = Ledger(tmp_path / "verdicts.sqlite")
    for budget, expected in ((30, 30), (30, 0), (60, 30)):
        with Server(right) as server:
            url, server.port = "http://127.0.0.1:1/v1", server.port
            judge = RubricJudge(url, "stub", JudgeSettings(budget=Budget(calls=budget)), QUICK)
            judge.caller._address = address_of(server.url)  # one judge, wherever its server is this time
            with Desk(judge, thinking=False) as desk, pytest.raises(JudgeError, match="--judge_budget"):
                desk.open(spent_in(tmp_path))
                desk.remember(ledger)
                desk(numbered(100))
            assert len(server.asked) == expected
    ledger.close()


def test_replies_without_a_verdict_are_in_the_budget_of_the_next_run(tmp_path):
    """Three calls each, which left nothing but a reply: 61 calls in all, whoever makes them."""
    ledger, refusing = Ledger(tmp_path / "verdicts.sqlite"), after_trial(lambda asked: Answer(completion("No.")))
    with Server(refusing) as server:
        for _ in range(3):
            judge = judge_of(server, budget=Budget(calls=61))
            with Desk(judge, thinking=False) as desk, pytest.raises(JudgeError, match="--judge_budget"):
                desk.open(spent_in(tmp_path))
                desk.remember(ledger)
                desk(numbered(50))
        assert len(server.asked) == 61
        (calls, _, _) = ledger.spent(desk.remote[0][1])
        assert calls == 61
    ledger.close()


def test_a_run_that_ends_begins_no_further_call_and_keeps_what_was_under_way(tmp_path):
    ledger = WatchedLedger(tmp_path / "verdicts.sqlite")
    begun = []

    def answer(asked):
        begun.append(time.monotonic())
        return dataclasses.replace(right(asked), delay=0.4)

    with judging(after_trial(answer), connections=8) as (_, judge, desk):
        desk.remember(ledger)
        late = desk.submit(numbered(300))
        while len(begun) < 4:
            time.sleep(0.01)
        time.sleep(0.1)
        ended = time.monotonic()
        desk.close()
        assert max(begun) <= ended and time.monotonic() - ended < 3
        assert len(ledger.committed) == len(begun) == judge.meter.calls - 1
        with pytest.raises(JudgeError):
            late.result()
    ledger.close()


def test_a_purse_counts_what_is_under_way():
    purse = Purse(Budget(calls=10), None)
    meter = purse.meter()
    purse.reserve(6)
    with pytest.raises(JudgeError):
        purse.reserve(5)
    purse.reserve(4)
    purse.release(6)
    meter.add(6, 0, 0)
    with pytest.raises(JudgeError, match="6 were made, 4 are under way"):
        purse.reserve()


def test_judges_and_processes_share_a_purse():
    """Of 100 calls 20 were made before; two judges of each of two processes may make 40 together."""
    purse = Purse(Budget(calls=100), None, processes=2)
    first, second = purse.meter(), purse.meter()
    purse.start(20, 0, 0)
    first.add(30, 0, 0)
    second.add(9, 0, 0)
    purse.reserve()
    with pytest.raises(JudgeError, match="1 are under way"):
        purse.reserve()
    with pytest.raises(JudgeError, match="does not hold a call for each of 3 processes"):
        JudgeSettings(budget=Budget(calls=2)).shared(3)
    assert JudgeSettings(budget=Budget(calls=3)).shared(3).processes == 3


def test_two_judges_that_are_waited_for_share_one_budget():
    with Server(right) as server:
        spec = f"screen:{server.url}#a,confirm:{server.url}#b,audit=1"
        judge = make_judge(spec, JudgeSettings(budget=Budget(calls=50), connections=8))
        with Desk(judge, thinking=False) as desk, pytest.raises(JudgeError, match="--judge_budget"):
            desk.open()
            desk(numbered(100))
        assert len(server.asked) == 50 and {asked.body["model"] for asked in server.asked} == {"a", "b"}


# Keys.


def test_whose_key_is_sent_to_whom(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "openai's own")
    monkeypatch.setenv("MINE", " mine\n")
    openai, others = address_of("https://api.openai.com/v1"), address_of("https://h.example/v1")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY holds no key") as caught:
        key_for(openai, None)
    assert "own" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "openais")
    assert key_for(openai, None) == ("openais", "OPENAI_API_KEY") and key_for(others, None) == ("none", None)
    for url in ("http://api.openai.com/v1", "https://api.openai.com:8443/v1", "https://api.openai.com.h.example/v1"):
        assert key_for(address_of(url), None) == ("none", None)
    assert key_for(others, "MINE") == key_for(openai, "MINE") == ("mine", "MINE")
    monkeypatch.delenv("OPENAI_API_KEY")
    # Each server its own, and one that is not named none.
    monkeypatch.setenv("YOURS", "yours")
    each = "h.example=MINE,api.openai.com=YOURS"
    assert key_for(others, each) == ("mine", "MINE") and key_for(openai, each) == ("yours", "YOURS")
    assert key_for(address_of("https://another.example/v1"), each) == ("none", None)
    for secret in ("sk-0123456789abcdefghij", "ghp_0123456789abcdefghij0123456789abcdef", "a key"):
        with pytest.raises(JudgeError, match="environment variable") as caught:
            key_for(others, secret)
        assert secret not in str(caught.value)
    for address, name, missing in ((openai, None, "OPENAI_API_KEY"), (others, "NOBODYS", "NOBODYS")):
        with pytest.raises(JudgeError, match=f"environment variable {missing} is not set"):
            key_for(address, name)


def test_what_the_environment_says_stays_here(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "MINE"):
        monkeypatch.setenv(name, f"canary-{name}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: canary-header\nAuthorization: canary-too")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with judging(right) as (server, _, desk):
        desk(numbered(3))
        assert all("canary" not in str(asked.headers) for asked in server.asked)
        assert server.asked[0].headers["authorization"] == "Bearer none"
    with judging(right, key_env="MINE") as (server, _, desk):
        assert server.asked[0].headers["authorization"] == "Bearer canary-MINE"
        assert str(server.asked[0].headers).count("canary") == 1


def test_the_redactor():
    redact = Redactor(CANARY)
    for text in (CANARY, f"a {CANARY}b", f'"{CANARY}"', "canary-0123456789abcdefghijklmnopqrstuvwxyz%2F%2B%3D"):
        assert "canary" not in redact(text), text
    assert redact("Incorrect: sk-cana*****wxyz. Bearer abcdefgh") == "Incorrect: [key] [key]"
    assert redact("a task-force, risk-averse; the answer is none") == "a task-force, risk-averse; the answer is none"
    assert Redactor("none")("none of it") == "none of it"
    assert shown("a\n\tb\x00\u202e c" + "x" * 900).startswith(r"a b\x00\u202e cxxx") and len(shown("x" * 900)) == 300


def leaks(text):
    """Parts of the canary, so that half of it counts too."""
    return [part for part in ("canary-01234", "ghijklmnop", "qrstuvwxyz") if part in text]


def echoing(asked):
    """All the ways in which a server may repeat the key that it was sent."""
    key = asked.headers["authorization"].removeprefix("Bearer ")
    padding = "y" * 262  # so that a text cut to its first 300 characters would end within the key
    return {
        **{str(status): error(status, f"{padding} {key}") for status in (400, 401, 403, 404, 413, 422, 429, 500, 503)},
        "quota": error(429, f"no money for {key}", "insufficient_quota"),
        "context": error(400, f"{key} maximum context length"),
        "parameter": error(400, f"Unsupported parameter: nothing of {key}", param=key),
        "redirect": Answer("", 302, {"Location": f"https://h.example/{padding}{key}"}),
        "pause": error(429, key, retry_after="999999"),
        "html": Answer(f"<html>{padding} {key}"),
        "raw 400": Answer(f"{padding}{key}", 400),
        "raw 500": Answer(key.encode() + b"\xff", 500, {"X-Key": key}),
        "unparsed": Answer(completion(f"{padding} {key}")),
        "long": Answer(completion("y" * 990 + key + "y" * 2_000 + key)),
        "refusal": Answer(completion(None, refusal=f"I refuse {key}")),
        "error with 200": Answer({"error": {"message": f"{padding} {key}", "code": 401}}),
        "verdict": Answer(completion(graded(asked, (0, 3, 3), before=key))),
    }


STOPPING = ["401", "403", "404", "quota", "redirect", "pause", "error with 200"]
NOT_STOPPING = ["400", "413", "422", "429", "500", "503", "context", "parameter", "html", "raw 400", "raw 500"]
NOT_STOPPING += ["unparsed", "long", "refusal", "verdict"]


@pytest.mark.parametrize(
    ("kinds", "first"), [([kind], True) for kind in STOPPING + NOT_STOPPING] + [(NOT_STOPPING, False)]
)
def test_the_key_is_in_no_text(kinds, first, tmp_path, monkeypatch, caplog):
    """Exceptions with all that led to them, logs of every level, output, and every byte of the ledger."""
    monkeypatch.setenv("MY_KEY", CANARY)
    caplog.set_level(logging.DEBUG)

    def echo(asked):
        kind = kinds[0] if first or asked.trial else asked.item[1]
        assert set(echoing(asked)) == {*STOPPING, *NOT_STOPPING}
        return echoing(asked)[kind]

    said, ledger = io.StringIO(), Ledger(tmp_path / "verdicts.sqlite")
    patience = Patience(tries=2, rate_tries=2, first=0.01, longest=0.02, outage=0.2)
    with Server(echo if first else after_trial(echo)) as server, contextlib.redirect_stderr(said):
        judge = judge_of(server, patience, key_env="MY_KEY")
        try:
            with Desk(judge, thinking=False) as desk:
                desk.open()
                desk.remember(ledger)
                said.write(str(desk(items(*kinds))))
                assert not first or kinds == ["verdict"]
        except JudgeError:
            assert first and kinds != ["verdict"]
            said.write(traceback.format_exc())
            chain = sys.exc_info()[1]
            while chain is not None:
                said.write(f"{chain!r} {chain.args} {getattr(chain, '__dict__', '')}")
                chain = chain.__cause__ or chain.__context__
        assert server.asked[0].headers["authorization"] == f"Bearer {CANARY}", "it was sent"
    ledger.close()
    said.write(f"{judge.meter} {judge.identity} {judge!r} {vars(judge)}")
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert leaks(said.getvalue()) == [] and leaks(caplog.text) == []
    assert leaks(written.decode("latin-1")) == []
    assert len(said.getvalue()) > 200


def test_the_canary_test_can_fail(monkeypatch):
    monkeypatch.setenv("MY_KEY", CANARY)
    monkeypatch.setattr(calls, "Redactor", lambda key: str)
    with judging(lambda asked: echoing(asked)["verdict"], key_env="MY_KEY") as (_, _, desk):
        assert leaks(str(desk(numbered(1))))


# Throughput.


@pytest.mark.slow
def test_what_a_rollout_costs_here(tmp_path):
    """CPU seconds of this process, the server's thread included; the wall clock is other people's too."""
    with judging(right, connections=32) as (_, _, desk):
        ledger = Ledger(tmp_path / "verdicts.sqlite")
        desk.remember(ledger)
        began = time.process_time()
        desk(numbered(2_000))
        each = (time.process_time() - began) / 2_000
    ledger.close()
    assert each < 4e-3, f"{1e3 * each:.2f} ms"
