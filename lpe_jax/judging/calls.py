"""Calls to a server that speaks as OpenAI's does: one try each, paced, metered, and sorted by what to do next."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from lpe_jax.errors import JudgeError
from lpe_jax.judging import policy
from lpe_jax.judging.keys import NO_KEY, Address, Redactor, key_for, shown
from lpe_jax.judging.pace import Pace
from lpe_jax.judging.policy import Again, Met, Rejected, Reply, Stop
from lpe_jax.judging.purse import Purse
from lpe_jax.judging.settings import JudgeSettings

# What the packages underneath write into logs is neither ours nor looked through for keys.
_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
_CONNECT_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a judge is waited for.

    Attributes:
      tries: of one call, while others succeed.
      rate_tries: the same, where the server says that it is too much.
      first: seconds before the second try; each later one waits twice as long, up to `longest`, less up to a half.
      outage: seconds without any success, after which the run stops.
      batch_outage: the same, where batches are waited for.
      asks: how often an item is asked about if a reply cannot be parsed.
    """

    tries: int = 6
    rate_tries: int = 60
    first: float = 0.5
    longest: float = 30.0
    outage: float = 300.0
    batch_outage: float = 3600.0
    asks: int = 3


@dataclasses.dataclass
class Tries:
    """What became of one call so far.

    Attributes:
      successes: of all calls, when this one failed last, or began.
      failed: how often it did.
      blamed: how often it did while others succeeded, which an outage is not.
    """

    successes: int
    failed: int = 0
    blamed: int = 0


class Caller:
    """One server, as one judge uses it.

    Attributes:
      client: the openai package's, for what is not a chat completion; None before `open`.
    """

    def __init__(self, address: Address, settings: JudgeSettings, patience: Patience):
        self._address, self._settings, self._patience = address, settings, patience
        self.purse = settings.purse or Purse(settings.budget, settings.prices, settings.processes)
        self.meter = self.purse.meter()
        self.pace, self.client = Pace(settings.connections), None
        self.redact, self._variable = Redactor(NO_KEY), None
        self._random = random.Random(0)
        self.successes, self._failing_since, self._probed = 0, None, -float("inf")
        self._stopped: str | None = None

    def open(self) -> None:
        """Makes the client; nothing is sent.

        Raises:
          JudgeError: there is no key, or the package is missing.
        """
        key, self._variable = key_for(self._address, self._settings.key_env)
        self.redact = Redactor(key)
        self.client = _client(self._address, key, self._settings)
        # After the import, which may set them otherwise.
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)

    async def stop_calls(self) -> None:
        """Begins no further calls; those under way go on, as they are paid for."""
        self._stopped = self._stopped or "judging was stopped"

    async def close(self) -> None:
        """Begins no further calls, and goes."""
        await self.stop_calls()
        if self.client is not None:
            await self.client.close()

    async def complete(self, body: bytes) -> Met:
        """One try at a chat completion.

        Raises:
          JudgeError: the budget holds no further call, or an earlier call showed that none can succeed.
        """
        import httpx2

        async def send() -> bytes:
            return (await self.client.post("/chat/completions", content=body, cast_to=httpx2.Response)).content

        async with self.pace as turn:
            self.check()
            self.purse.reserve()
            try:
                met = await self._met(send, self._settings.timeout)
                met = self._read(met) if isinstance(met, bytes) else met
                if isinstance(met, Reply):
                    self.meter.add(1, met.input_tokens, met.output_tokens)
                elif isinstance(met, Again) and met.answered:
                    self.meter.add(1, 0, 0)
            except asyncio.CancelledError:
                self.meter.add(1, 0, 0)  # the server may go on with it, and bill it
                raise
            finally:
                self.purse.release()
            self._note(met, turn)
        return met

    def _read(self, content: bytes) -> Met:
        """What a completion holds; words of one that is none are without the key."""
        met = policy.of_answer(content)
        return met if isinstance(met, Reply) else policy.of_answer(self.redact(content.decode("utf-8", "replace")))

    async def use(self, send: Callable[[Any], Awaitable[Any]], seconds: float) -> Any | Met:
        """One try at anything else: what send(client) gives, or what its failure calls for."""
        self.check()
        met = await self._met(lambda: send(self.client), seconds)
        self._note(met)
        return met

    def check(self) -> None:
        """Raises JudgeError if no call can succeed."""
        if self._stopped is not None:
            raise JudgeError(self._stopped)

    def stop(self, words: str) -> JudgeError:
        """The error that says so, from now on."""
        where = "" if self._variable is None else f" (its key is that of {self._variable})"
        self._stopped = f"judge at {self._address.name}{where}: {words}; what was drawn and judged is kept"
        return JudgeError(self._stopped)

    async def patience(self, tries: Tries, met: Again, probe: Callable[[], Awaitable[Met]] | None) -> Rejected | None:
        """Waits before another try, or says that there is no sense in one.

        The call is given up where it fails and others succeed. If there are none, `probe` shows whether it is this call
        or the server; None stands for a first call, which soon fails for good.

        Raises:
          JudgeError: nothing has succeeded for too long.
        """
        tries.failed += 1
        tries.blamed += self.successes > tries.successes
        tries.successes = self.successes
        words = f"{tries.failed} tries came to nothing, the last by {met.kind}"
        words += f" ({shown(met.words)})" if met.words else ""
        if probe is None and tries.failed >= self._patience.tries:
            if met.kind == "500":
                return Rejected(words)  # it may break on how it is asked
            raise self.stop(words)
        most = self._patience.rate_tries if met.slow else self._patience.tries
        if tries.blamed >= most:
            return Rejected(words)
        if tries.failed >= self._patience.tries and self._due():
            await probe()
            if self.successes > tries.successes:
                tries.blamed = most - 1  # once more, now that the server is known to be well
        silent = 0.0 if self._failing_since is None else time.monotonic() - self._failing_since
        if tries.failed >= self._patience.tries and silent > self._patience.outage:
            raise self.stop(f"no call has succeeded for {silent / 60:.0f} minutes, the last came to {met.kind}")
        wait = min(self._patience.longest, self._patience.first * 2.0 ** min(tries.failed - 1, 16))
        await asyncio.sleep(wait * self._random.uniform(0.5, 1.0))
        return None

    def _due(self) -> bool:
        """Whether another probe is; there are few, as all calls of an outage want one."""
        due = time.monotonic() - self._probed >= self._patience.longest
        if due:
            self._probed = time.monotonic()
        return due

    async def _met(self, send: Callable[[], Awaitable[Any]], seconds: float) -> Any:
        import openai

        try:
            async with asyncio.timeout(seconds):
                return await send()
        except openai.APIStatusError as error:
            response = error.response
            headers = {name.lower(): self.redact(value) for name, value in response.headers.items()}
            return policy.of_status(response.status_code, headers, self.redact(response.text))
        except (TimeoutError, openai.APITimeoutError):
            return Again("timeout", answered=True)  # it may be answered, and billed, when nobody waits any more
        except openai.APIConnectionError as error:
            return Again("no connection", words=shown(self.redact(str(error.__cause__ or error))))
        except Exception as error:  # whatever else a transport may make of what it is sent
            return Again(type(error).__name__, words=shown(self.redact(str(error))))

    def _note(self, met: Any, turn: float | None = None) -> None:
        """Learns from one try, that began at its turn in the pace."""
        if isinstance(met, Stop):
            raise self.stop(self.redact(met.words))
        if isinstance(met, Rejected):
            self.meter.failures[met.words.partition(":")[0]] += 1
        if not isinstance(met, Again):
            # Whatever the server says of a call, it is there.
            self.successes += 1
            self._failing_since = None
            if turn is not None:
                self.pace.well()
            return
        self.meter.failures[met.kind] += 1
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        if met.slow and turn is not None:
            self.pace.slow(turn)
        if met.pause is not None:
            self.pace.pause(met.pause)


def _client(address: Address, key: str, settings: JudgeSettings) -> Any:
    """An openai client that retries nothing, follows no redirects, and sends no header but the key's and its own."""
    try:
        import httpx2
        import openai
    except ImportError:
        raise JudgeError("judges behind an API take the openai package; pip install 'lpe_jax[judge]'") from None

    class Client(openai.AsyncOpenAI):
        """Without what the environment may say is to be sent along, unless it is OpenAI that it is sent to."""

        @property
        def default_headers(self) -> dict[str, str | openai.Omit]:
            headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "lpe_jax"}
            if address.at_openai:
                names = {"OpenAI-Organization": self.organization, "OpenAI-Project": self.project}
                headers |= {name: value for name, value in names.items() if value}
            return headers

    connections = settings.connections + 4
    http = httpx2.AsyncClient(
        limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        # Each call is timed as a whole; a server may be slow to connect to, but not that slow.
        timeout=httpx2.Timeout(None, connect=min(settings.timeout, _CONNECT_SECONDS)),
        follow_redirects=False,
    )
    return Client(api_key=key, base_url=address.url, max_retries=0, http_client=http)
