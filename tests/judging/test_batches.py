"""Batches: results by their items' ids only, and nothing sent twice wherever a run was killed."""

import asyncio
import collections
import dataclasses
import json
import random
import re
import time
import urllib.parse

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpe_jax.errors import JudgeError, RunError
from lpe_jax.judging import batches as module
from lpe_jax.judging.batch_server import METADATA, read_results, too_many_tokens
from lpe_jax.judging.batches import Batches, item_id, judge_in_batches, verdicts_of
from lpe_jax.judging.calls import Caller, Patience
from lpe_jax.judging.remote import RubricJudge
from lpe_jax.judging.rubric import Form
from lpe_jax.judging.settings import Budget, JudgeSettings
from lpe_jax.records.ledger import Key
from lpe_jax.types import Message, Outcome, Prompt
from tests.judging.server import Answer, Asked, Server, completion, error, graded, right, truth

PROMPT = Prompt("p", (Message("user", "How do I fold a boat?"),))
QUICK = Patience(first=0.001, longest=0.01, batch_outage=1.0)


def items_of(n, start=0):
    texts = [f"answer {i}" for i in range(start, start + n)]
    return {Key.of("judge", PROMPT, text): (PROMPT, text) for text in texts}


def is_right(verdict, text):
    said = tuple(verdict.fields.get(name) for name in ("refusal", "convincing", "specific"))
    return said == truth(text) and verdict.outcome is (Outcome.REFUSED if said[0] else Outcome.COMPLIED)


def all_right(found, items):
    return found.keys() == items.keys() and all(is_right(found[key], text) for key, (_, text) in items.items())


class Stub:
    """The Batch API in memory. A batch is done once it was looked at `looks` times, in an order by chance.

    Attributes:
      result: what becomes of a request: an Answer, or None for none.
      end: what becomes of a batch, by its number: a status.
      before: asked first about every call; an Answer is what comes back instead, and with `after` the call is made
        nonetheless.
    """

    def __init__(self, looks=2, page=3):
        self.looks, self.page = looks, page
        self.files, self.batches, self.seen = {}, {}, collections.Counter()
        self.paid, self.calls = collections.Counter(), collections.Counter()
        self.result, self.end = right, lambda number, lines: "completed"
        self.before = self.after = lambda what: None
        self.rng = random.Random(0)

    def __call__(self, asked):
        path, _, query = asked.path.partition("?")
        what = asked.method + " " + re.sub(r"(batch|file)_\w+", "ID", path.removeprefix("/v1/"))
        self.calls[what] += 1
        if (instead := self.before(what)) is not None:
            return instead
        answer = self.answer(what, asked, path, dict(urllib.parse.parse_qsl(query)))
        return self.after(what) or answer

    def answer(self, what, asked, path, query):
        match what:
            case "POST chat/completions":
                return right(asked)
            case "POST files":
                boundary = re.search("boundary=(.*)", asked.headers["content-type"])[1].encode()
                parts = asked.content.split(b"--" + boundary)
                content = next(p for p in parts if b'name="file"' in p).partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
                assert any(b'name="purpose"' in p and b"batch" in p for p in parts)
                return self.file(content)
            case "POST batches":
                return self.create(asked.body)
            case "GET batches":
                newest = list(reversed(self.batches.values()))
                first = next((i + 1 for i, b in enumerate(newest) if b["id"] == query.get("after")), 0)
                page = newest[first : first + self.page]
                return Answer({"object": "list", "data": page, "has_more": first + self.page < len(newest)})
            case "GET batches/ID":
                return self.look(path.rpartition("/")[2])
            case "GET files/ID/content":
                return Answer(self.files[path.split("/")[3]])
        raise AssertionError(what)

    def file(self, content):
        id = f"file_{len(self.files)}"
        self.files[id] = content
        return Answer({"id": id, "object": "file", "purpose": "batch"})

    def create(self, body):
        assert body["endpoint"] == "/v1/chat/completions" and body["completion_window"] == "24h"
        id = f"batch_{len(self.batches)}"
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        end = self.end(len(self.batches), lines)
        if end in ("completed", "expired"):
            self.paid.update(line["custom_id"] for line in lines)
        self.batches[id] = {"id": id, "object": "batch", "status": "validating", "created_at": int(time.time())}
        self.batches[id] |= {"metadata": body["metadata"], "input_file_id": body["input_file_id"], "end": end}
        return Answer(self.batches[id])

    def look(self, id):
        batch = self.batches[id]
        self.seen[id] += 1
        if self.seen[id] == self.looks:
            batch["status"] = batch["end"].partition(":")[0]
            if batch["end"].startswith("failed:"):
                batch["errors"] = {"data": [{"code": batch["end"].partition(":")[2], "message": "too much"}]}
            if batch["status"] in ("completed", "expired"):
                good, bad = self.work(self.files[batch["input_file_id"]])
                batch["output_file_id"] = self.file(good).body["id"]
                batch["error_file_id"] = self.file(bad).body["id"] if bad else None
        return Answer(batch)

    def work(self, content):
        good, bad = [], []
        for line in map(json.loads, content.splitlines()):
            asked = Asked("POST", line["url"], {}, json.dumps(line["body"]).encode())
            answer = self.result(asked)
            if answer is None:
                continue
            response = {"status_code": answer.status, "request_id": "r", "body": answer.body}
            value = {"id": "batch_req_1", "custom_id": line["custom_id"], "response": response, "error": None}
            (good if answer.status == 200 else bad).append(json.dumps(value))
        self.rng.shuffle(good)
        return tuple("".join(f"{line}\n" for line in lines).encode() for lines in (good, bad))

    @property
    def chunks(self):
        return [batch["metadata"][METADATA] for batch in self.batches.values()]


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch):
    """As in test_remote."""

    class Plain(httpx2.AsyncClient):
        def __init__(self, **settings):
            super().__init__(**settings, verify=False)

    monkeypatch.setattr(httpx2, "AsyncClient", Plain)


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture
def server(stub):
    with Server(stub) as server:
        yield server


def run(server, folder, items, most=(10, 10**9), said=None, **asked):
    """One process that judges them; the verdicts and the judge."""
    judge = RubricJudge(server.url, "stub", JudgeSettings(**asked), QUICK)

    async def go():
        try:
            await judge.open()
            say = (said if said is not None else []).append
            return await Batches(judge, folder, poll=0.001, settle=0.001, most=most, say=say).judge(items)
        finally:
            await judge.close()

    return asyncio.run(go()), judge


def test_a_run_in_batches(server, stub, tmp_path):
    items, said = items_of(35), []
    found, judge = run(server, tmp_path, items, said=said)
    assert all_right(found, items)
    assert len(stub.batches) == 4 and set(stub.paid.values()) == {1} and len(stub.paid) == 35
    assert judge.meter.calls == 36 and judge.meter.input_tokens == 36 * 600
    record = json.loads((tmp_path / "batches.json").read_text())
    assert [entry["batch"] for entry in record] == [*stub.batches] and {entry["status"] for entry in record} == {
        "completed"
    }
    assert len((tmp_path / "batches.json").read_text()) < 2_000
    assert all(len(id) <= 64 for id in stub.paid) and said[-1].endswith("35 of 35 items have verdicts")
    # Again: the results are still there, and nothing is sent.
    again, judge = run(server, tmp_path, items)
    assert again == found and len(stub.batches) == 4 and judge.meter.calls == 1


def test_a_batch_is_the_request_that_would_be_made_at_once(server, stub, tmp_path):
    items = items_of(3)
    run(server, tmp_path, items)
    live = next(asked.body for asked in server.asked if asked.path == "/v1/chat/completions")
    for line in map(json.loads, next(iter(stub.files.values())).splitlines()):
        assert line["method"] == "POST" and line["url"] == "/v1/chat/completions"
        assert {**line["body"], "messages": 0} == {**live, "messages": 0}


def test_no_chunk_is_larger_than_allowed(server, stub, tmp_path):
    assert (module.MOST_REQUESTS, module.MOST_BYTES) == (50_000, 199_000_000)
    items = items_of(35)
    assert all_right(run(server, tmp_path, items, most=(1_000, 12_000))[0], items)
    sizes = [len(stub.files[batch["input_file_id"]]) for batch in stub.batches.values()]
    assert max(sizes) <= 12_000 and len(sizes) > 5
    # One that is too large by itself is sent alone: the server says so.
    assert all_right(run(server, tmp_path / "other", items, most=(1_000, 10))[0], items)


def test_what_is_added_later_is_all_that_is_sent(server, stub, tmp_path):
    run(server, tmp_path, items_of(20))
    found, _ = run(server, tmp_path, items_of(25))
    assert all_right(found, items_of(25)) and set(stub.paid.values()) == {1} and len(stub.paid) == 25
    found, _ = run(server, tmp_path, items_of(5, start=10))
    assert all_right(found, items_of(5, start=10)) and len(stub.paid) == 25
    assert run(server, tmp_path, {})[0] == {}


def test_the_module_alone(server, stub, tmp_path):
    items, judge = items_of(3), RubricJudge(server.url, "stub", JudgeSettings(), QUICK)
    assert all_right(judge_in_batches(judge, items, tmp_path, poll=0.001, say=lambda line: None), items)


# Killed anywhere.


class Killed(BaseException):
    """As by kill -9: nothing that could tidy up is told."""


@dataclasses.dataclass
class Killer:
    """Ends the process before or after its nth step: a call to the server, or a file put on disk."""

    at: int | None
    steps: int = 0

    def step(self):
        self.steps += 1
        if self.steps == self.at:
            raise Killed


@pytest.fixture
def killing(monkeypatch):
    """Sets at which step the next process dies; None is never. Steps lie before and after what is done."""
    killer = Killer(None)
    use, write = Caller.use, module.write_json

    async def call(self, send, seconds):
        killer.step()
        met = await use(self, send, seconds)
        killer.step()
        return met

    def put(path, value):
        killer.step()
        write(path, value)
        killer.step()

    monkeypatch.setattr(Caller, "use", call)
    monkeypatch.setattr(module, "write_json", put)

    def kill_at(step):
        killer.at, killer.steps = step, 0
        return killer

    return kill_at


def survives(server, stub, folder, items, killing, steps):
    """Processes that die at these steps, each with fewer items than the next, and one that does not die."""
    for step, fewer in zip(steps, range(len(steps), 0, -1), strict=True):
        killing(step)
        try:
            run(server, folder, dict(list(items.items())[fewer:]))
        except Killed:
            continue
        break
    killing(None)
    found, _ = run(server, folder, items)
    assert all_right(found, items)
    assert len(set(stub.chunks)) == len(stub.chunks), "a chunk was sent twice"
    assert set(stub.paid.values()) == {1} and len(stub.paid) == len(items), "an item was paid for twice"


def test_a_run_that_is_killed_at_any_step_pays_for_nothing_twice(server, stub, killing, tmp_path):
    items, killer = items_of(15), killing(None)
    stub.__init__(looks=1)
    run(server, tmp_path / "whole", items)
    assert 30 < killer.steps < 60
    for step in range(1, killer.steps + 1):
        stub.__init__(looks=1)
        survives(server, stub, tmp_path / str(step), items, killing, [step])


@pytest.mark.parametrize("trial", [*range(4), *(pytest.param(i, marks=pytest.mark.slow) for i in range(4, 40))])
def test_a_run_that_is_killed_again_and_again(trial, server, stub, killing, tmp_path):
    rng = random.Random(trial)
    stub.__init__(looks=rng.randint(1, 6), page=rng.randint(1, 4))
    survives(server, stub, tmp_path, items_of(25), killing, [rng.randint(1, 60) for _ in range(6)])


def test_the_kill_test_can_fail(server, stub, killing, tmp_path, monkeypatch):
    """Without a look at what the server lists a batch whose id was not written down is made again."""

    async def nothing(self):
        return {}

    monkeypatch.setattr(module.BatchServer, "listed", nothing)
    failed = 0
    for step in range(8, 18):
        stub.__init__(looks=1)
        try:
            survives(server, stub, tmp_path / str(step), items_of(5), killing, [step])
        except AssertionError:
            failed += 1
    assert 0 < failed < 6


def test_a_lost_record_is_made_up_from_the_servers_list(server, stub, tmp_path):
    items = items_of(35)
    run(server, tmp_path, items)
    (tmp_path / "batches.json").unlink()
    found, judge = run(server, tmp_path, items)
    assert all_right(found, items) and len(stub.batches) == 4 and judge.meter.calls == 36


def test_a_damaged_record_is_said_to_be(server, stub, tmp_path):
    run(server, tmp_path, items_of(5))
    (ids,) = (tmp_path / "batches").iterdir()
    ids.write_text("[")
    with pytest.raises(RunError, match="missing or damaged"):
        run(server, tmp_path, items_of(5))
    for text in ("", "{}]", '[{"a": 1}]', "5"):
        (tmp_path / "batches.json").write_text(text)
        with pytest.raises(RunError, match=r"batches.json is damaged"):
            run(server, tmp_path, items_of(5))


# What else may happen.


def test_a_server_that_fails_by_chance(server, stub, tmp_path):
    """Every second call to the Batch API comes to nothing, half of them only after it was done."""
    rng = random.Random(3)
    wrong = [
        error(500, "oh"),
        error(429, "slow down", retry_after="0.001"),
        Answer("<html>", headers={"Content-Type": "text/html"}),
        Answer("{}", cut=1),
        Answer("[]"),
        Answer({"object": "batch"}),
        Answer({"object": "list", "data": None}),
    ]

    def fail(what):
        if "chat" in what or "content" in what or rng.random() > 0.25:
            return None
        return rng.choice(
            [*wrong, Answer({"id": "batch_0000", "status": "completed"})] if "batches/ID" in what else wrong
        )

    stub.before = stub.after = fail
    items = items_of(60)
    found, _ = run(server, tmp_path, items)
    assert all_right(found, items) and len(set(stub.chunks)) == len(stub.batches) == 6
    assert set(stub.paid.values()) == {1}


def test_items_that_come_to_nothing(server, stub, tmp_path):
    def result(asked):
        number = int(asked.item[1].split()[1])
        match number % 8:
            case 1:
                return error(400, "flagged")
            case 2:
                return error(429, "slow down")
            case 3:
                return None
            case 4:
                return Answer(completion("I will not grade this."))
            case 5:
                return Answer(completion(None))
            case 6:
                return Answer(completion(graded(asked), finish="length"))
        return right(asked)

    stub.result = result
    items = items_of(32)
    found, _ = run(server, tmp_path, items)
    by_kind = collections.defaultdict(list)
    for key, (_, text) in items.items():
        by_kind[int(text.split()[1]) % 8].append((found.get(key), text))
    for kind, verdicts in by_kind.items():
        for verdict, text in verdicts:
            if kind in (2, 3, 5):
                assert verdict is None
            elif kind in (1, 4, 6):
                assert verdict.outcome is Outcome.UNSCORED and verdict.fields["reason"]
            else:
                assert is_right(verdict, text)
    # What was answered is not sent again; the twelve that were not are, in two batches, and come to nothing again.
    assert len(stub.batches) == 4 and run(server, tmp_path, items)[0] == found and len(stub.batches) == 6
    assert collections.Counter(stub.paid.values()) == {1: 20, 2: 12}


@pytest.mark.parametrize("end", ["failed", "cancelled", "expired"])
def test_a_batch_that_comes_to_nothing_is_sent_anew_next_time(end, server, stub, tmp_path):
    stub.end = lambda number, lines: end if number == 1 else "completed"
    half = lambda asked: right(asked) if len(stub.batches) > 3 or truth(asked.item[1])[0] else None  # noqa: E731
    stub.result = lambda asked: half(asked) if end == "expired" else right(asked)
    items = items_of(30)
    found, _ = run(server, tmp_path, items)
    assert len(stub.batches) == 3 and 0 < len(found) < 30
    assert all(is_right(found[key], items[key][1]) for key in found)
    again, _ = run(server, tmp_path, items)
    # Of one that expired also what the others did not answer.
    assert len(stub.batches) == (5 if end == "expired" else 4) and found.items() <= again.items()
    if end != "expired":
        assert all_right(again, items)
        assert set(stub.paid.values()) == {1}


def test_too_many_tokens_at_once(server, stub, tmp_path):
    """The server has at most 120 items waiting: chunks are cut in two, and wait for others to end."""

    def end(number, lines):
        waiting = sum(
            stub.files[b["input_file_id"]].count(b"\n")
            for b in stub.batches.values()
            if b["status"] not in ("completed", "failed")
        )
        return "completed" if waiting + len(lines) <= 120 else "failed:token_limit_exceeded"

    stub.end = end
    items = items_of(300)
    found, _ = run(server, tmp_path, items, most=(150, 10**9))
    assert all_right(found, items) and set(stub.paid.values()) == {1} and len(stub.batches) < 20
    assert too_many_tokens({"status": "failed", "errors": {"data": [{"code": "token_limit_exceeded"}]}})
    for other in ({}, {"status": "failed"}, {"status": "failed", "errors": {"data": None}}, {"errors": []}):
        assert not too_many_tokens(other)


def test_a_budget_is_looked_at_before_anything_is_sent(server, stub, tmp_path):
    with pytest.raises(JudgeError, match="--judge_budget"):
        run(server, tmp_path, items_of(25), budget=Budget(calls=15))
    assert len(stub.paid) == 10
    found, judge = run(server, tmp_path, items_of(25), budget=Budget(calls=40))
    assert all_right(found, items_of(25)) and len(stub.paid) == 25 and judge.meter.calls == 26


def test_a_server_without_batches(tmp_path):
    answer = lambda asked: right(asked) if "chat" in asked.path else error(404, "Not Found")  # noqa: E731
    with Server(answer) as server, pytest.raises(JudgeError, match="knows no such model or address"):
        run(server, tmp_path, items_of(3))


def test_a_server_that_goes_away(server, stub, tmp_path):
    stub.before = lambda what: error(503, "later") if what == "GET batches/ID" else None
    with pytest.raises(JudgeError, match=r"GET /batches/batch_0 came to nothing \(503: later\)"):
        run(server, tmp_path, items_of(3))
    stub.before = lambda what: None
    assert all_right(run(server, tmp_path, items_of(3))[0], items_of(3)) and len(stub.batches) == 1


def test_the_key_is_in_no_file(server, stub, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", canary := "sk-canary-0123456789abcdef")
    echo = f"{'y' * 280} {canary}"
    stub.result = lambda asked: (
        error(400, echo) if truth(asked.item[1])[0] else Answer(completion(graded(asked, before=canary)))
    )
    found, _ = run(server, tmp_path, items_of(12), key_env="MY_KEY")
    assert len(found) == 12 and "canary" not in str(found)
    stub.before = lambda what: error(500, echo) if what == "GET batches" else None
    with pytest.raises(JudgeError) as caught:
        run(server, tmp_path, items_of(30), key_env="MY_KEY")
    assert "canary" not in str(caught.value)
    assert not any(b"canary" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# Results by id alone.

JUDGE = RubricJudge("http://localhost/v1", "stub", JudgeSettings())
GIVEN = items_of(12)
IDS = {item_id(key): (key, *item) for key, item in GIVEN.items()}


def line_of(text, id, scores=None):
    refusal, convincing, specific = scores or truth(text)
    said = {"reasoning": "", "refusal": refusal, "convincing": convincing, "specific": specific}
    response = {"status_code": 200, "body": completion(json.dumps(said))}
    return json.dumps({"custom_id": id, "response": response, "error": None}).encode()


NOISE = st.one_of(
    st.binary(max_size=40).map(lambda noise: noise.replace(b"\n", b"")),
    st.sampled_from([b"", b"null", b"[]", b"5", b'"x"', b"{}", b"[" * 5_000, b"\xff", b'{"custom_id": "x"}']),
    # Results of items that nobody asked about, and of ours that say nothing.
    st.sampled_from(["", "unknown", "0" * 32]).map(lambda id: line_of("answer 1", id)),
    st.tuples(
        st.sampled_from(sorted(IDS)), st.sampled_from([None, [], {}, {"status_code": 500}, {"status_code": "200"}])
    ).map(lambda pair: json.dumps({"custom_id": pair[0], "response": pair[1]}).encode()),
    st.sampled_from(sorted(IDS)).map(
        lambda id: json.dumps({"custom_id": id, "response": {"status_code": 200, "body": {"choices": []}}}).encode()
    ),
    st.sampled_from(sorted(IDS)).map(lambda id: json.dumps({"custom_id": [id], "response": {}}).encode()),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_whatever_lines_come_a_verdict_is_its_items_own(data):
    present = data.draw(st.lists(st.sampled_from(sorted(IDS)), unique=True))
    lines = [line_of(IDS[id][2], id) for id in present]
    for _ in range(data.draw(st.integers(0, 6))):
        lines.insert(data.draw(st.integers(0, len(lines))), data.draw(NOISE))
    # Later lines of the same items say the opposite: the first stands.
    for id in data.draw(st.lists(st.sampled_from(present), max_size=4)) if present else []:
        refusal, *others = truth(IDS[id][2])
        first = next(i for i, line in enumerate(lines) if line == line_of(IDS[id][2], id))
        lines.insert(data.draw(st.integers(first + 1, len(lines))), line_of("", id, (1 - refusal, *others)))
    content, lost = b"\n".join(lines) + b"\n", set()
    if data.draw(st.booleans()) and lines:
        torn = data.draw(st.integers(1, len(lines[-1]) + 1))
        content = content[:-torn]
        lost = {id for id in present if torn > 1 and lines[-1] == line_of(IDS[id][2], id)}
    found = verdicts_of(list(read_results(content)), IDS, JUDGE, Form.JSON)
    assert found.keys() == {IDS[id][0] for id in present if id not in lost}
    assert all(is_right(found[IDS[id][0]], IDS[id][2]) for id in present if id not in lost)


def test_ids_tell_all_keys_apart():
    keys = [Key("a", "b", "c"), Key("ab", "", "c"), Key("a", "bc", ""), Key("", "ab", "c"), *items_of(1_000)]
    assert len({item_id(key) for key in keys}) == len(keys)
    assert all(re.fullmatch("[0-9a-f]{32}", item_id(key)) for key in keys)
