"""What is sent to a judge beside its messages, and how that fits what its server takes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

from lpe_jax.judging.rubric import Form, Template, json_schema

# Models that take no temperature other than their own, and count their reasoning as output.
_REASONING = re.compile(r"(?:.*/)?(?:gpt-[5-9]|o\d)", re.IGNORECASE)
# A reply has a hundred or two; what thinks first needs more.
_TOKENS, _REASONING_TOKENS = 2048, 8192
_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclasses.dataclass(frozen=True)
class Request:
    """Which parameters are sent.

    Attributes:
      model: by its server's name.
      forms: how a reply may be asked for, the best first; the first is used.
      limits: names that the largest number of output tokens may go by; the first is used, none is no limit.
      tokens: that number.
      temperature: whether temperature 0 is asked for.
      seed: whether a seed is.
    """

    model: str
    forms: tuple[Form, ...]
    limits: tuple[str, ...]
    tokens: int
    temperature: bool
    seed: bool = True

    @classmethod
    def of(cls, model: str, template: Template, *, at_openai: bool) -> Request:
        """What is tried first."""
        reasons = _REASONING.match(model) is not None
        limits = _LIMITS[::-1] if reasons or at_openai else _LIMITS
        return cls(model, template.forms, limits, _REASONING_TOKENS if reasons else _TOKENS, temperature=not reasons)

    @property
    def form(self) -> Form:
        """How a reply is asked for."""
        return self.forms[0]

    def body(self, messages: list[dict[str, str]], ask: int = 0) -> dict[str, Any]:
        """A chat completion's request. ask: how often the item was asked about before."""
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.form is Form.JSON:
            schema = {"name": "scores", "strict": True, "schema": json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.limits:
            body[self.limits[0]] = self.tokens
        if self.temperature:
            body["temperature"] = 0
        if self.seed:
            # Another one, if a reply could not be parsed: the same would give the same reply.
            body["seed"] = ask
        return body

    def unlimited(self) -> Request:
        """The same without a bound on what the reply may take."""
        return dataclasses.replace(self, limits=())

    def without(self, names: Iterable[str]) -> Request:
        """The same without parameters that the server does not take, or by another name; itself if none is sent."""
        names, changed = set(names), self
        if self.limits and self.limits[0] in names:
            changed = dataclasses.replace(changed, limits=self.limits[1:])
        if self.form is Form.JSON and names & {"response_format", "json_schema"}:
            changed = dataclasses.replace(changed, forms=self.forms[1:])
        if self.temperature and "temperature" in names:
            changed = dataclasses.replace(changed, temperature=False)
        if self.seed and "seed" in names:
            changed = dataclasses.replace(changed, seed=False)
        return changed


# All that a server may be asked to do without.
OPTIONAL = ("response_format", "json_schema", *_LIMITS, "temperature", "seed")


def encoded(body: dict[str, Any]) -> bytes:
    """A request as it is sent."""
    return json.dumps(body).encode()
