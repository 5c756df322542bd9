"""What a judge's server says, and what is to be done about it: pure functions of its answers."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from lpe_jax.judging.keys import shown
from lpe_jax.judging.request import OPTIONAL

# A server that asks for a longer pause than this, in seconds, is not waited for.
LONGEST_PAUSE = 3600.0
_SHOWN = 300


@dataclasses.dataclass(frozen=True)
class Reply:
    """A completion. text is None where the judge wrote none; tokens are 0 where the server does not say.

    problem says why the text is not to be parsed, if it is not.
    """

    text: str | None
    input_tokens: int = 0
    output_tokens: int = 0
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Again:
    """The call came to nothing, and may not another time.

    Attributes:
      kind: a word for what happened.
      pause: seconds for which nothing is to be sent, if the server says so.
      slow: too much is sent.
      answered: there was an answer, which may have been billed.
    """

    kind: str
    pause: float | None = None
    slow: bool = False
    answered: bool = False
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Change:
    """The server does not take some parameters, in words."""

    names: frozenset[str]
    words: str


@dataclasses.dataclass(frozen=True)
class Rejected:
    """The server takes anything but this item, in words. too_long: because of its length."""

    words: str
    too_long: bool = False


@dataclasses.dataclass(frozen=True)
class Stop:
    """No call can succeed, in words."""

    words: str


Met = Reply | Again | Change | Rejected | Stop

_MONEY = re.compile(r"insufficient[_ ](?:quota|balance|credit|funds)|billing|payment|access_terminated", re.IGNORECASE)
_FLAGGED = re.compile(r"flagged|moderation|content[_ ](?:filter|policy)|safety", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context[_ ](?:length|window|size)|maximum context|reduce the length|too many (?:input )?tokens"
    r"|(?:prompt|input|request|message)s? (?:is |are )?too (?:long|large)|string_above_max_length",
    re.IGNORECASE,
)
_PROTESTS = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|invalid|unexpected|extra|not (?:permitted|allowed|available)"
    r"|deprecated|only the default|too large|at most|must be|instead",
    re.IGNORECASE,
)


def of_status(status: int, headers: Mapping[str, str], body: str) -> Met:
    """What an answer other than 200 calls for."""
    error = _error_of(body)
    words = f"{status}: {shown(error.message) or 'no reason given'}"
    if status == 401 or (status == 403 and not _FLAGGED.search(error.message)):
        return Stop(f"the server refuses the key ({words})")
    # A rate limit is 429 too, and may speak of quotas; what tells them apart is the code.
    if status == 402 or (400 <= status < 500 and _MONEY.search(f"{error.code} {error.kind}")):
        return Stop(f"there is no money left for it ({words})")
    if status in (400, 404, 422, 501) and not _TOO_LONG.search(f"{error.code} {error.message}"):
        if names := _parameters_in(error):
            return Change(names, words)
    if status == 404:
        return Stop(f"the server knows no such model or address ({words})")
    if 300 <= status < 400:
        return Stop(f"the server sends its callers elsewhere ({status}, to {shown(headers.get('location', '?'))})")
    if status == 429 and re.search(r"request too large", error.message, re.IGNORECASE):
        return Rejected(words, too_long=True)
    if status == 429 or status in (408, 409, 425) or status >= 500:
        pause = retry_after(headers)
        if pause is not None and pause > LONGEST_PAUSE:
            return Stop(f"the server asks for a pause of {pause / 3600:.1f} hours ({words})")
        return Again(str(status), pause, slow=status == 429, words=words)
    if status == 413 or _TOO_LONG.search(f"{error.code} {error.message}"):
        return Rejected(words, too_long=True)
    return Rejected(words)


def of_answer(content: bytes | str) -> Met:
    """What a body that came with 200 holds."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        words = content if isinstance(content, str) else content.decode("utf-8", "replace")
        return Again("not JSON", answered=True, words=shown(words))
    return of_completion(body)


def of_completion(body: Any) -> Met:
    """What a chat completion holds, if it is one."""
    if not isinstance(body, dict):
        return Again("not a completion", answered=True)
    choices, usage = body.get("choices"), body.get("usage")
    if not isinstance(choices, list) and isinstance(body.get("error"), dict):
        code = body["error"].get("code")
        status = code if type(code) is int and 300 <= code < 600 else 500
        return of_status(status, {}, json.dumps(body))
    if not isinstance(choices, list) or not choices:
        return Again("no choices", answered=True)
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message, finish = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict) or finish == "error":
        return Again("not a completion", answered=True)
    text = message.get("content")
    tokens = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return Reply(message["refusal"], *tokens, problem="the judge refused")
    if finish == "content_filter":
        return Reply(text if isinstance(text, str) else None, *tokens, problem="the judge's content filter")
    if finish == "length":
        return Reply(text if isinstance(text, str) else None, *tokens, problem="the judge's reply was cut off")
    if not isinstance(text, str):
        return Again("no content" if text is None else "not a completion", answered=True)
    return Reply(text, *tokens)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, from either header, given in seconds or as a date; None if it does not."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            seconds = _seconds_until(value, headers.get("date"))
        if seconds is not None and math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _seconds_until(date: str, now: str | None) -> float | None:
    """By the server's own clock, where it says what that shows."""
    try:
        then = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    try:
        return then - email.utils.parsedate_to_datetime(now or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return then - time.time()


@dataclasses.dataclass(frozen=True)
class _Error:
    message: str
    code: str = ""
    kind: str = ""
    param: str = ""


def _error_of(body: str) -> _Error:
    """An error as OpenAI's servers write it, or as others do."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return _Error(body)
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return _Error(body)
    error = value.get("error", value)
    if not isinstance(error, dict):
        return _Error(str(error))
    message = error.get("message") or error.get("detail") or error.get("msg")
    words = message if isinstance(message, str) else json.dumps(error if message is None else message)
    return _Error(words, *(str(error.get(name) or "") for name in ("code", "type", "param")))


def _parameters_in(error: _Error) -> frozenset[str]:
    """Parameters that a server does not take, by what it says of a request."""
    named = {name for name in OPTIONAL if re.search(rf"\b{name}\b", error.param)}
    if not named and _PROTESTS.search(f"{error.code} {error.message}"):
        # What follows may repeat the request.
        named = {name for name in OPTIONAL if re.search(rf"\b{name}\b", error.message[:_SHOWN])}
    return frozenset(named)


def _count(usage: Any, name: str) -> int:
    """A number of tokens, 0 where it cannot be one."""
    number = usage.get(name) if isinstance(usage, dict) else None
    return number if type(number) is int and 0 <= number < 2**40 else 0
