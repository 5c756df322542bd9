"""A server that speaks as OpenAI's does, or fails to, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

_ANSWER = re.compile(r"answer ([0-9a-f]{16}) begins -----\n(.*)\n----- answer \1 ends", re.DOTALL)
_USAGE = (600, 80)


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes

    @functools.cached_property
    def body(self) -> dict[str, Any]:
        return json.loads(self.content)

    @property
    def question(self) -> str:
        return self.body["messages"][-1]["content"]

    @property
    def item(self) -> tuple[str, str]:
        """The mark and the response of our own template."""
        return _ANSWER.search(self.question).groups()

    @property
    def trial(self) -> bool:
        return "paper boat" in self.question


@dataclasses.dataclass(frozen=True)
class Answer:
    """What comes back: after `delay` seconds; of the body only `cut` bytes, should it be cut off."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None

    @property
    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


class Server:
    """Answers with answer(asked), called in the server's thread; what it was asked is in `asked`."""

    def __init__(self, answer: Callable[[Asked], Answer]):
        self.answer, self.asked = answer, []
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._over.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while (asked := await _read(reader)) is not None:
                self.asked.append(asked)
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    answer = self.answer(asked)
                    if answer.delay:
                        await asyncio.sleep(answer.delay)
                finally:
                    self.at_once -= 1
                content = answer.content
                head = {"Content-Type": "application/json", **answer.headers, "Content-Length": str(len(content))}
                lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
                writer.write(f"HTTP/1.1 {answer.status} X\r\n{lines}\r\n".encode() + content[: answer.cut])
                await writer.drain()
                if answer.cut is not None:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, content)


def completion(content: Any, *, finish: str = "stop", refusal: str | None = None, usage: Any = _USAGE) -> dict:
    """A chat completion with this reply."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if isinstance(usage, tuple) else usage
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": counts,
    }


def truth(response: str) -> tuple[int, int, int]:
    """What the stub says of a response: any of the 50 verdicts, by its digest."""
    digest = hashlib.sha256(response.encode()).digest()
    return digest[0] % 2, 1 + digest[1] % 5, 1 + digest[2] % 5


def graded(asked: Asked, scores: tuple[Any, Any, Any] | None = None, before: str = "", after: str = "") -> str:
    """A reply in the form that was asked for, by our own template; what else it says before and after."""
    mark, response = asked.item
    refusal, convincing, specific = truth(response) if scores is None else scores
    if "response_format" in asked.body:
        said = {"reasoning": f"Seen.{before}", "refusal": refusal, "convincing": convincing, "specific": specific}
        return json.dumps(said) + after
    return f"Seen.{before}\n#scores {mark}\n1.b {refusal}\n2.b {convincing}\n3.b {specific}{after}"


def right(asked: Asked) -> Answer:
    """The reply that it should be."""
    return Answer(completion(graded(asked)))


def error(status: int, message: str, code: Any = None, param: str | None = None, **headers: str) -> Answer:
    """An error as OpenAI writes it."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return Answer(body, status, {name.replace("_", "-"): value for name, value in headers.items()})
