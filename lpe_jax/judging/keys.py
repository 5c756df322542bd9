"""Keys of remote judges: where they come from, to whom they may be sent, and how they stay out of everything else."""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import NamedTuple

from lpe_jax.errors import JudgeError

OPENAI_HOST = "api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"
# For servers that want none: the client insists on one.
NO_KEY = "none"

_HIDDEN = "[key]"
# What keys look like, for those that are not ours; servers show a few letters of a wrong one.
_LOOKS_LIKE_KEY = r"\b(?:sk|gsk|xai|pk|rk)-[\w*.-]{6,}|\bBearer\s+[\w*.~+/=-]{6,}"
_SHOWN = 300


class Address(NamedTuple):
    """Where a server is: url is what follows scheme://, host with port, and path."""

    url: str
    name: str
    at_openai: bool


def address_of(url: str) -> Address:
    """Looks at a base URL.

    Raises:
      JudgeError: it is none, or holds what could be a secret; it is not repeated then.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise JudgeError("the judge's URL cannot be read; write http://HOST:PORT/v1#MODEL") from None
    if parts.username is not None or parts.password is not None or parts.query:
        raise JudgeError(
            "the judge's URL holds a user, a password or a query, which are recorded with the run; put the key in an "
            "environment variable and name that with --judge_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", url):
        raise JudgeError(f"the judge's URL {shown(url)!r} is none; write http://HOST:PORT/v1#MODEL")
    url = url.rstrip("/")
    host = parts.hostname.lower() + (f":{port}" if port is not None else "")
    at_openai = parts.scheme == "https" and parts.hostname.lower() == OPENAI_HOST and port in (None, 443)
    return Address(url, (host + parts.path).rstrip("/"), at_openai)


def key_for(address: Address, variable: str | None) -> tuple[str, str | None]:
    """The key to send to a server, and the environment variable it is from: OpenAI's own goes to OpenAI alone.

    Args:
      variable: as named by the user: NAME, or HOST=NAME of each server, separated by commas.

    Raises:
      JudgeError: the variable holds no key, or is no name of a variable, which is not repeated: it may be a key.
    """
    name = _named(address, variable) or (OPENAI_KEY if address.at_openai else None)
    if name is None:
        return NO_KEY, None
    if not re.fullmatch(r"[A-Za-z_]\w{0,99}", name) or re.match(_LOOKS_LIKE_KEY, name):
        raise JudgeError(
            "--judge_key_env takes the name of an environment variable that holds the key, as MY_KEY, and not the key"
        )
    key = os.environ.get(name, "").strip()
    if not key:
        # What is not spelt as such names are may be a key all the same.
        shown_as = name if name.isupper() else "that --judge_key_env names"
        raise JudgeError(
            f"the environment variable {shown_as} is not set, and is to hold the judge's key; set it, or name another "
            "with --judge_key_env"
        )
    # A header that cannot be sent would be shown in the error.
    if not re.fullmatch(r"[!-~]+", key):
        raise JudgeError(f"the environment variable {name} holds no key: there is a blank or a special character in it")
    return key, name


def _named(address: Address, variable: str | None) -> str | None:
    """The variable that is named for a server."""
    if variable is None or "=" not in variable:
        return variable
    by_host = dict(part.partition("=")[::2] for part in variable.split(","))
    host = address.name.partition("/")[0]
    return by_host.get(host, by_host.get(host.partition(":")[0]))


class Redactor:
    """Takes a key out of texts that come from elsewhere."""

    def __init__(self, key: str):
        spellings = {key, urllib.parse.quote(key, safe=""), key.replace("/", r"\/")} if key != NO_KEY else set()
        ours = [re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True)]
        self._pattern = re.compile("|".join([*ours, _LOOKS_LIKE_KEY]))

    def __call__(self, text: str) -> str:
        """The text without it."""
        return self._pattern.sub(_HIDDEN, text)


def shown(text: str, most: int = _SHOWN) -> str:
    """A text from elsewhere on one line of a terminal: no control characters, and not too long."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= most else line[: most - 1] + "…"
