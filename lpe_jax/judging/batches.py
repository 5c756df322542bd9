"""A stored run judged by the OpenAI Batch API: half the price, within a day.

Items go out in chunks, a batch for each. Two kinds of files in the run folder say what became of them: `batches.json`
has an entry for every chunk, written before it is sent and again as soon as its batch has an id, and
`batches/CHUNK.json` the ids of its items. A batch carries its chunk's digest as metadata, so that one whose id was
never written down is found on the server. However often a run is killed, the next goes on with the batches that are
there, and pays for none twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lpe_jax.errors import RunError
from lpe_jax.judging.base import unscored
from lpe_jax.judging.batch_server import ENDPOINT, Batch, BatchServer, read_results, too_many_tokens
from lpe_jax.judging.policy import Met, Rejected, Reply
from lpe_jax.judging.remote import RubricJudge
from lpe_jax.judging.request import encoded
from lpe_jax.judging.rubric import Form
from lpe_jax.records.files import read_bytes, write_json
from lpe_jax.records.ledger import Key
from lpe_jax.types import Prompt, Verdict

Items = Mapping[Key, tuple[Prompt, str]]

RECORD, FOLDER = "batches.json", "batches"
# What the API takes at most in a batch: 50,000 requests and 200 MB.
MOST_REQUESTS, MOST_BYTES = 50_000, 199_000_000
_CAME_TO_NOTHING = ("failed", "expired", "cancelled")
_ENDED = ("completed", *_CAME_TO_NOTHING)
# Chunks of fewer requests than this are not cut in two for the sake of a limit to tokens that wait.
_SMALL = 100
_POLL, _SETTLE = 60.0, 5.0


@dataclasses.dataclass
class _Sent:
    """A chunk that is, or was to be, a batch.

    Attributes:
      form: how replies were asked for.
      counted: its answers are on the judge's meter.
      seen: what the server last said of it; not written down.
      reserved: calls that are set aside for it; not written down.
    """

    chunk: str
    requests: int
    form: str
    batch: str | None = None
    status: str = "planned"
    counted: bool = False
    seen: Batch = dataclasses.field(default_factory=dict)
    reserved: int = 0

    def as_json(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("seen", "reserved")]
        return {name: getattr(self, name) for name in names}


def judge_in_batches(
    judge: RubricJudge, items: Items, folder: Path, *, poll: float = _POLL, **more: Any
) -> dict[Key, Verdict]:
    """Batches.judge, from opening the judge to closing it; more are further arguments of Batches."""

    async def run() -> dict[Key, Verdict]:
        try:
            await judge.open()
            return await Batches(judge, folder, poll=poll, **more).judge(items)
        finally:
            await judge.close()

    return asyncio.run(run())


class Batches:
    """The batches of one judge in one run folder."""

    def __init__(
        self,
        judge: RubricJudge,
        folder: Path,
        *,
        poll: float = _POLL,
        settle: float = _SETTLE,
        most: tuple[int, int] = (MOST_REQUESTS, MOST_BYTES),
        say: Callable[[str], None] = print,
        keep: Callable[[Mapping[Key, Verdict]], None] = lambda verdicts: None,
    ):
        """
        Args:
          judge: open.
          poll: seconds between looks at what the batches have come to.
          settle: seconds after which a batch that was made is listed.
          most: requests and bytes of a batch.
          say: told in a line what goes on.
          keep: puts the verdicts of a batch on disk, and what the judge's meter shows; then the batch is done with.

        Raises:
          RunError: what the folder says of batches cannot be read.
        """
        self._judge, self._folder = judge, folder
        self._server = BatchServer(judge.caller, judge.patience, settle)
        self._poll, self._settle, self._most, self._say, self._keep = poll, settle, most, say, keep
        self._record = folder / RECORD
        self._sent = _read_record(self._record)

    async def judge(self, items: Items) -> dict[Key, Verdict]:
        """The verdicts on items, as far as batches have any when all of them have ended.

        An item that a batch did not answer is left out. It is sent anew the next time this is called, and no sooner, as
        is what came to nothing as a whole, because its batch failed, expired or was cancelled.

        Args:
          items: prompt and judged text by key.

        Raises:
          JudgeError: the server offers no batches, refuses the key or is gone, or the budget holds no more; what was
            sent is remembered.
        """
        keys = {item_id(key): key for key in items}
        await self._find_lost()
        found, new, running = await self._known(keys, items)
        queue, listed = deque([new] if new else []), await self._server.listed() if new else {}
        # Too many tokens may be waiting already. Then chunks go out one by one, and after others have ended.
        careful, held_back, looked = False, False, time.monotonic()
        while queue or running:
            unsure = careful and any(sent.status in ("planned", "validating") for sent in running)
            ready = bool(queue) and not held_back and not unsure
            if ready:
                sent, rest = await self._send(queue.popleft(), items, listed)
                running.append(sent)
                queue.extendleft([rest] if rest else [])
            if not ready or not queue:
                await asyncio.sleep(self._poll)
            elif time.monotonic() - looked < self._poll:
                continue
            looked = time.monotonic()
            for sent in list(running):
                await self._look(sent)
                if sent.status not in _ENDED:
                    continue
                running.remove(sent)
                self._judge.caller.purse.release(sent.reserved)
                sent.reserved = 0
                held_back = too_many_tokens(sent.seen)
                if held_back:
                    careful = True
                    queue.extendleft(_halves([keys[id] for id in sorted(self._ids(sent) & keys.keys())]))
                found = await self._results(sent, keys, items) | found
                self._say(f"batch {sent.batch}: {sent.status}; {len(found):,} of {len(items):,} items have verdicts")
            held_back = held_back and bool(running)
        return found

    async def _known(self, keys: Mapping[str, Key], items: Items) -> tuple[dict[Key, Verdict], list[Key], list[_Sent]]:
        """What earlier batches say, which items are in none that still counts, and which batches are under way."""
        found: dict[Key, Verdict] = {}
        taken, running = set(), []
        for sent in self._sent:
            ids, before = self._ids(sent) & keys.keys(), sent.status
            if not ids:
                continue
            if before != "failed":
                await self._look(sent)
            if sent.status in _ENDED:
                # What it did not answer is not taken.
                found = await self._results(sent, keys, items) | found
            else:
                running.append(sent)
                sent.reserved = sent.requests
                self._judge.caller.purse.hold(sent.reserved)
                taken |= ids
        return found, [key for id, key in sorted(keys.items()) if id not in taken and key not in found], running

    async def _send(self, keys: list[Key], items: Items, listed: Mapping[str, list[Batch]]) -> tuple[_Sent, list[Key]]:
        """Makes a batch of as many items as it may have; the others are returned."""
        form, lines, size = self._judge.request.form, [], 0
        for key in keys[: self._most[0]]:
            prompt, text = items[key]
            body = self._judge.request.body(self._judge.template.messages(prompt.text, text, form))
            lines.append(encoded({"custom_id": item_id(key), "method": "POST", "url": ENDPOINT, "body": body}) + b"\n")
            size += len(lines[-1])
            if size > self._most[1] and len(lines) > 1:
                lines.pop()
                break
        content, count = b"".join(lines), len(lines)
        self._judge.caller.purse.reserve(count)
        sent = _Sent(hashlib.sha256(content).hexdigest(), count, str(form), reserved=count)
        known = {other.batch for other in self._sent}
        write_json(self._ids_file(sent), [item_id(key) for key in keys[:count]])
        self._sent.append(sent)
        self._write()
        # It may be there, and the record lost.
        there = [batch for batch in listed.get(sent.chunk, []) if batch["id"] not in known]
        batch = next((b for b in there if b.get("status") not in ("failed", "cancelling", "cancelled")), None)
        if batch is None:
            batch = await self._server.make(f"{sent.chunk[:16]}.jsonl", content, sent.chunk, known)
        self._learn(sent, batch)
        self._say(f"batch {sent.batch}: {count:,} items")
        return sent, keys[count:]

    async def _find_lost(self) -> None:
        """Batches that were about to be made when a run ended: they are there, or never were."""
        for wait in (self._settle, 0.0):
            lost = [sent for sent in self._sent if sent.batch is None]
            if not lost:
                return
            listed, known = await self._server.listed(), {sent.batch for sent in self._sent}
            for sent in lost:
                if there := [batch for batch in listed.get(sent.chunk, []) if batch["id"] not in known]:
                    self._learn(sent, there[0])
            if any(sent.batch is None for sent in lost):
                await asyncio.sleep(wait)
        self._sent = [sent for sent in self._sent if sent.batch is not None]
        self._write()

    async def _look(self, sent: _Sent) -> None:
        self._learn(sent, await self._server.look(sent.batch))

    async def _results(self, sent: _Sent, keys: Mapping[str, Key], items: Items) -> dict[Key, Verdict]:
        """The verdicts that an ended batch has on items, some of which may be in other batches."""
        ids, lines = self._ids(sent), []
        for name in ("output_file_id", "error_file_id"):
            if isinstance(file := sent.seen.get(name), str):
                lines += read_results(await self._server.read(file), self._judge.caller.redact)
        asked = {id: (key, *items[key]) for id, key in keys.items() if id in ids}
        found = verdicts_of(lines, asked, self._judge, Form(sent.form))
        if not sent.counted:
            for reply in (met for id, met in lines if id in ids and isinstance(met, Reply)):
                self._judge.meter.add(1, reply.input_tokens, reply.output_tokens)
            self._keep(found)
            sent.counted = True
            self._write()
        return found

    def _learn(self, sent: _Sent, batch: Batch) -> None:
        """What the server says of a batch; written down if it is new."""
        before, status = (sent.batch, sent.status), batch.get("status")
        sent.seen, sent.batch = batch, sent.batch or batch["id"]
        sent.status = status if isinstance(status, str) and status else sent.status
        if before != (sent.batch, sent.status):
            self._write()

    def _ids(self, sent: _Sent) -> set[str]:
        try:
            return set(json.loads(read_bytes(self._ids_file(sent))))
        except (ValueError, TypeError, RecursionError):
            raise RunError(
                f"{self._ids_file(sent)} is missing or damaged; move {self._record} away to start anew"
            ) from None

    def _ids_file(self, sent: _Sent) -> Path:
        return self._folder / FOLDER / f"{sent.chunk[:16]}.json"

    def _write(self) -> None:
        write_json(self._record, [sent.as_json() for sent in self._sent])


def _halves(keys: list[Key]) -> list[list[Key]]:
    """Two chunks in the place of one, unless it is small; the second first."""
    half = len(keys) // 2 if len(keys) >= _SMALL else 0
    return [part for part in (keys[half:], keys[:half]) if part]


def item_id(key: Key) -> str:
    """What an item goes by in a batch: 32 hex digits of sha256 of its key."""
    return hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]


def verdicts_of(
    lines: list[tuple[str, Met]], asked: Mapping[str, tuple[Key, Prompt, str]], judge: RubricJudge, form: Form
) -> dict[Key, Verdict]:
    """Verdicts by key, of results by id: the first that says anything of an item counts, in whatever order they come.

    Args:
      asked: key, prompt and judged text by id; results of other ids are passed over.
    """
    found: dict[Key, Verdict] = {}
    for id, met in lines:
        if id not in asked or asked[id][0] in found:
            continue
        key, prompt, text = asked[id]
        if isinstance(met, Reply):
            found[key] = judge.verdict(met, form, prompt.text, text)
        elif isinstance(met, Rejected):
            found[key] = unscored(met.words)
    return found


def _read_record(path: Path) -> list[_Sent]:
    if not path.exists():
        return []
    try:
        return [_Sent(**entry) for entry in json.loads(read_bytes(path))]
    except (ValueError, TypeError, RecursionError):
        raise RunError(f"{path} is damaged; move it away to send what it tells of anew") from None
