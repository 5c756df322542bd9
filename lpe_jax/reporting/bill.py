"""What is still to be paid for: rollouts, tokens, hours, calls, money and disk, in words."""

from __future__ import annotations

import dataclasses

from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.reporting.text import counted, duration

# Bytes on disk: of a rollout and of each of its tokens with its text, of a verdict that is remembered, of a row of a
# bank and of each alpha in it. Measured with text like English; docs/reliability.md has the first three.
ROLLOUT_BYTES, TOKEN_BYTES, VERDICT_BYTES, ROW_BYTES, ALPHA_BYTES = 32, 5, 440, 60, 4
# Characters of English in a token of the usual tokenizers, about.
CHARACTERS = 4
EXPECTED = "if paths are as the default prior of --method=path has them"


@dataclasses.dataclass(frozen=True)
class Work:
    """What a run has still to draw.

    Attributes:
      prompts, open: how many there are, and how many of them are not finished.
      stored: rollouts that are there.
      most: rollouts, at most; expected: about; the same where nothing depends on what comes.
      tokens: of a response, at most.
      prompt_bytes: of what the prompts say.
      expected_hits: about how many of the expected ones comply; None where nothing is known of it.
    """

    prompts: int
    open: int
    stored: int
    most: int
    expected: int
    tokens: int
    prompt_bytes: int
    expected_hits: int | None = None


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast rollouts are taken to come.

    Attributes:
      tokens: a second, of all devices together.
      said: where that is from.
      devices: how many; None where nobody has said.
    """

    tokens: float
    said: str
    devices: int | None = None


@dataclasses.dataclass(frozen=True)
class Calls:
    """What a judge behind an API is asked.

    Attributes:
      judge: as it is named.
      most: calls with a reply that can be read; expected: about, None where nothing is known.
      exact: whether there will be as many as the most.
      input_tokens: of all of the most calls, about.
      output_tokens: of a reply, at most.
      measured: input and output tokens of a call so far, on average; None where there is none yet.
      why: of what the number depends on.
    """

    judge: str
    most: int
    exact: bool
    expected: int | None
    input_tokens: int
    output_tokens: int
    measured: tuple[float, float] | None = None
    why: str = ""


def work_words(work: Work, speed: Pace | None, advice: str) -> list[str]:
    """Rollouts, tokens and hours, a line each.

    Args:
      speed: None where nobody has said, or measured, any.
      advice: how to find it out.
    """
    lines = []
    if work.stored or work.open < work.prompts:
        done = work.prompts - work.open
        lines.append(f"there: {counted(work.stored, 'rollout')}; {done:,} of {work.prompts:,} prompts are done")
    if work.most == work.expected:
        lines.append(f"rollouts: {work.most:,}, of {counted(work.open, 'prompt')}")
    else:
        lines.append(
            f"rollouts: about {work.expected:,}, at most {work.most:,}, of {counted(work.open, 'prompt')} (about: "
            f"{EXPECTED})"
        )
    most = work.most * work.tokens
    lines.append(
        f"tokens: at most {most:,}, {work.tokens:,} a rollout, and at most {work.prompt_bytes:,} of prompts beside "
        "what the chat template adds, read once for all rollouts side by side"
    )
    if speed is None:
        lines.append(f"time: unknown; {advice}")
    else:
        at_most, expected = most / speed.tokens, work.expected * work.tokens / speed.tokens
        about = "" if work.most == work.expected else f", about {duration(expected)} expected"
        hours = "device-hours are that times the devices"
        if speed.devices is not None:
            about_hours = "" if not about else f", about {expected * speed.devices / 3600:,.3g} expected"
            hours = f"device-hours: at most {at_most * speed.devices / 3600:,.3g}{about_hours}"
        lines.append(
            f"time: at most {duration(at_most)}{about} at {speed.tokens:,.0f} tokens/s of all devices ({speed.said}); "
            f"{hours}"
        )
    return lines


def disk_words(size: int) -> str:
    """Bytes in words."""
    power, unit = next((p, u) for p, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if size >= p or p == 1)
    amount = size / power
    return f"disk: at most about {f'{amount:.3g}' if amount < 100 else f'{amount:,.0f}'} {unit}"


def call_words(calls: Calls, settings: JudgeSettings) -> list[str]:
    """Calls and money of one judge."""
    if not calls.most:
        return [f"judge {calls.judge}: no calls"]
    bound = "" if calls.exact else "at most "
    number = f"{bound}{counted(calls.most, 'call')}"
    if calls.expected is not None:
        number = f"about {counted(calls.expected, 'call')}, {bound}{calls.most:,}"
    found = [
        f"judge {calls.judge}: {number}{calls.why}. Beside them: 1 call that tries whether it answers, and up to 2 "
        "more where a reply holds no verdict"
    ]
    each = calls.input_tokens / calls.most
    if settings.prices is None:
        found.append(
            f"money: unknown; give --judge_prices=INPUT,OUTPUT, the prices of a million tokens (a call has about "
            f"{each:,.0f} input tokens and at most {calls.output_tokens:,} output tokens)"
        )
        return found
    given, answer = (price / 1e6 for price in settings.prices)
    low, high = each * given, each * given + calls.output_tokens * answer
    if calls.measured is not None:
        cost = calls.measured[0] * given + calls.measured[1] * answer
        about = "" if calls.expected is None else f"about {calls.expected * cost:,.2f}, "
        found.append(f"money: {about}at most {calls.most * cost:,.2f} in the currency of --judge_prices, at "
                     f"{cost:.3g} a call, as it was so far")  # fmt: skip
        return found
    rows = [(f"{bound}{counted(calls.most, 'call')}", calls.most)]
    if calls.expected is not None:
        rows.insert(0, (f"about {counted(calls.expected, 'call')}", calls.expected))
    found += [
        f"money for {words}: {n * low:,.2f} for what is sent, up to {n * high:,.2f} with what is answered"
        for words, n in rows
    ]
    found.append(
        f"  (in the currency of --judge_prices; a call sends about {each:,.0f} tokens, and an answer may have "
        f"{calls.output_tokens:,}; --judge_budget stops a run before a sum)"
    )
    return found
