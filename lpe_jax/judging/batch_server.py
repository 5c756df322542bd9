"""The Batch API of a server: files up, batches made and looked at, results down."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from lpe_jax.judging import policy
from lpe_jax.judging.calls import Caller, Patience
from lpe_jax.judging.keys import shown
from lpe_jax.judging.policy import Again, Met

ENDPOINT = "/v1/chat/completions"
# Where a batch says which chunk of items it is.
METADATA = "lpe_jax_chunk"
# Results are kept for about so long; older batches are nobody's any more.
_DAYS = 31
_SECONDS, _FILE_SECONDS = 120.0, 1800.0

Batch = dict[str, Any]


class BatchServer:
    """Every call is made until it succeeds, within patience.batch_outage seconds.

    Raises JudgeError otherwise, or if the server offers no batches, refuses the key or wants money.
    """

    def __init__(self, caller: Caller, patience: Patience, settle: float):
        """settle: seconds after which a batch that was made is listed."""
        self._caller, self._patience, self._settle = caller, patience, settle
        self._random = random.Random(0)

    async def make(self, name: str, content: bytes, chunk: str, known: set[str | None]) -> Batch:
        """A new batch of the requests in content, JSON lines, with its chunk's digest as metadata.

        Args:
          known: ids of other batches, which this one cannot be.
        """
        file = await self._steadily(
            "post",
            "/files",
            has=("id", str),
            seconds=_FILE_SECONDS,
            body={"purpose": "batch"},
            files={"file": (name, content, "application/jsonl")},
            options={"headers": {"Content-Type": "multipart/form-data"}},
        )

        async def made_after_all() -> Batch | None:
            """Asked before another try: the first may have come through, and only its answer not."""
            await asyncio.sleep(self._settle)
            return next((b for b in (await self.listed()).get(chunk, []) if b["id"] not in known), None)

        body = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        body["metadata"] = {METADATA: chunk}
        return await self._steadily("post", "/batches", has=("id", str), instead=made_after_all, body=body)

    async def listed(self) -> dict[str, list[Batch]]:
        """Batches of ours by their chunk's digest, in the server's order."""
        found: dict[str, list[Batch]] = {}
        after, old = None, time.time() - _DAYS * 86400
        while True:
            query = {"limit": 100} | ({} if after is None else {"after": after})
            page = await self._steadily("get", "/batches", has=("data", list), options={"params": query})
            batches = [b for b in page["data"] if isinstance(b, dict) and isinstance(b.get("id"), str)]
            for batch in batches:
                metadata = batch.get("metadata")
                chunk = metadata.get(METADATA) if isinstance(metadata, dict) else None
                if isinstance(chunk, str):
                    found.setdefault(chunk, []).append(batch)
            last = batches[-1]["id"] if batches else None
            aged = all(type(batch.get("created_at")) is int and batch["created_at"] < old for batch in batches)
            if page.get("has_more") is not True or last == after or aged:
                return found
            after = last

    async def look(self, batch: str) -> Batch:
        """What the server says of a batch, by its id."""
        return await self._steadily("get", f"/batches/{quote(batch, safe='')}", has=("status", str), id=batch)

    async def read(self, file: str) -> bytes:
        """A file's content, by its id."""
        path = f"/files/{quote(file, safe='')}/content"
        return await self._steadily("get", path, seconds=_FILE_SECONDS)

    async def _steadily(
        self,
        method: str,
        path: str,
        *,
        has: tuple[str, type] | None = None,
        id: str | None = None,
        instead: Callable[[], Awaitable[Batch | None]] | None = None,
        seconds: float = _SECONDS,
        **what: Any,
    ) -> Any:
        """An answer: the bytes, or the JSON object that has a key of this name and type, and this id.

        Args:
          instead: asked before another try; what it gives, unless None, is taken for the answer.
        """
        import httpx2

        async def send(client: Any) -> Any:
            content = (await getattr(client, method)(path, cast_to=httpx2.Response, **what)).content
            return content if has is None else _object(content, has, id)

        began, wait = time.monotonic(), self._patience.first
        while True:
            met = await self._caller.use(send, seconds)
            if not isinstance(met, Met):
                return met
            words = f"{method.upper()} {path} came to nothing ({shown(met.words)})"
            if not isinstance(met, Again) or time.monotonic() - began > self._patience.batch_outage:
                raise self._caller.stop(words)
            await asyncio.sleep(max(met.pause or 0.0, wait * self._random.uniform(0.5, 1.0)))
            wait = min(2 * wait, self._patience.longest)
            if instead is not None and (answer := await instead()) is not None:
                return answer


def read_results(content: bytes, redact: Callable[[str], str] = str) -> Iterator[tuple[str, Met]]:
    """What the lines of an output or error file say, by the item's id; lines that cannot be read say nothing.

    redact: applied to errors before they are put into words.
    """
    for line in content.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        response = value.get("response") if isinstance(value, dict) else None
        if not isinstance(response, dict) or not isinstance(value.get("custom_id"), str):
            continue
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            yield value["custom_id"], policy.of_completion(body)
        elif type(status) is int:
            yield value["custom_id"], policy.of_status(status, {}, redact(json.dumps(body)))


def too_many_tokens(batch: Mapping[str, Any]) -> bool:
    """Whether a batch failed because too many tokens were waiting already."""
    errors = batch.get("errors")
    data = errors.get("data") if isinstance(errors, dict) else None
    codes = [error.get("code") for error in data or [] if isinstance(error, dict)]
    return batch.get("status") == "failed" and "token_limit_exceeded" in codes


def _object(content: bytes, has: tuple[str, type], id: str | None) -> Batch | Again:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return Again("not JSON", words="the answer is not JSON")
    fits = isinstance(value, dict) and isinstance(value.get(has[0]), has[1]) and (id is None or value.get("id") == id)
    return value if fits else Again("another answer", words="the answer is not what was asked for")
