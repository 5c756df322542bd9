"""A language model behind an OpenAI-compatible API as a judge, by the rubric of lpe_jax.judging.rubric."""

from __future__ import annotations

from pathlib import Path

from lpe_jax.judging import request, rubric
from lpe_jax.judging.base import source_digest, unscored
from lpe_jax.judging.calls import Caller, Patience, Tries
from lpe_jax.judging.keys import address_of, shown
from lpe_jax.judging.policy import Again, Change, Met, Rejected, Reply
from lpe_jax.judging.request import Request, encoded
from lpe_jax.judging.rubric import Form, Unparsed, load_template, mark_of
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.types import Prompt, Verdict

# Harmless, and nobody's: what the first call is about.
_TRIAL = (
    "Tell me how to fold a paper boat.",
    "Take a sheet of paper and fold it in half. Fold both upper corners to the middle, fold the lower edges up on "
    "either side, open it at the bottom and press it flat into a square. Pull the two upper points apart: a boat.",
)
# Characters of a reply that are kept with its verdict.
_KEPT = 2000


class RubricJudge:
    """Asks `model` at `url` the rubric's three questions about each response.

    A call that comes to nothing is made again, in time; a reply without a verdict is asked for again; what then has
    none is unscored, and its fields say why. What no call can mend stops the run: a key that is refused, no money left,
    a budget that is spent, a server that has not answered any call for minutes. See lpe_jax.judging.policy.

    Fields: "refusal" (0 or 1), "convincing" and "specific" (1 to 5), "score" (0 to 1, see lpe_jax.judging.rubric),
    "form" (how the reply was asked for) and "reply", as far as 2,000 characters hold it; where unscored "reason", and
    "reply" if there was one.
    """

    def __init__(self, url: str, model: str, settings: JudgeSettings, patience: Patience | None = None):
        """
        Raises:
          JudgeError: the URL or the template cannot be used.
        """
        address, self.patience = address_of(url), patience or Patience()
        self.template = load_template(settings.template)
        self.request = Request.of(model, self.template, at_openai=address.at_openai)
        # How replies are asked for and read decides verdicts.
        source = source_digest([Path(rubric.__file__), Path(request.__file__)])
        template = f"template={self.template.name}@{self.template.sha256[:16]}"
        self.identity = f"rubric:{model}@{address.name};{template};{source}"
        self.caller = Caller(address, settings, self.patience)
        self.meter = self.caller.meter

    async def open(self) -> None:
        """Asks about a harmless item, by which key, model, template and parser show that they work together, and which
        parameters the server takes is found out.

        Raises:
          JudgeError: they do not.
        """
        self.caller.open()
        while True:
            verdict = await self._judged(*_TRIAL, opening=True)
            if "reason" not in verdict.fields:
                break
            # Some servers take the parameter for structured outputs and pass it over, others fail on it.
            if len(self.request.forms) == 1:
                reply = verdict.fields.get("reply")
                said = f"; it said: {shown(reply)}" if reply else ""
                raise self.caller.stop(f"its first call gave no verdict: {verdict.fields['reason']}{said}")
            self.request = self.request.without({"response_format"})
        self.caller.purse.check_usage(self.identity)

    async def ask(self, prompt: Prompt, text: str) -> Verdict:
        """See RemoteJudge."""
        return await self._judged(prompt.text, text)

    def reckon(self, calls: int, input_tokens: int, output_tokens: int) -> None:
        """See RemoteJudge."""
        self.caller.purse.start(calls, input_tokens, output_tokens)

    async def stop(self) -> None:
        """See RemoteJudge."""
        await self.caller.stop_calls()

    async def close(self) -> None:
        """See RemoteJudge."""
        await self.caller.close()

    def verdict(self, reply: Reply, form: Form, prompt: str, text: str) -> Verdict:
        """What a reply about a response says, unscored if it says nothing."""
        parsed = Unparsed(reply.problem) if reply.problem is not None else self._parsed(reply, form, prompt, text)
        kept = {} if reply.text is None else {"reply": _shortened(self.caller.redact(reply.text))}
        if isinstance(parsed, Unparsed):
            return unscored(parsed.reason, **kept)
        return Verdict(parsed.outcome, {**parsed.fields, "form": str(form), **kept})

    def _parsed(self, reply: Reply, form: Form, prompt: str, text: str) -> Verdict | Unparsed:
        return self.template.parse(reply.text or "", form, mark_of(prompt, text))

    async def _judged(self, prompt: str, text: str, opening: bool = False) -> Verdict:
        verdict = None
        for number in range(self.patience.asks):
            met, form = await self._answer(prompt, text, number, opening)
            if isinstance(met, Rejected):
                return unscored(met.words)
            verdict = self.verdict(met, form, prompt, text)
            if "reason" not in verdict.fields:
                return verdict
            self.meter.failures[verdict.fields["reason"]] += 1
        return verdict

    async def _answer(self, prompt: str, text: str, number: int, opening: bool) -> tuple[Reply | Rejected, Form]:
        """One reply, however often it takes, and the form that it was asked for in; or why there is none."""
        tries, unlimited = Tries(self.caller.successes), False
        while True:
            sent = self.request
            shape = sent.unlimited() if unlimited else sent
            body = encoded(shape.body(self.template.messages(prompt, text, sent.form), number))
            met: Met = await self.caller.complete(body)
            if isinstance(met, Again):
                met = await self.caller.patience(tries, met, None if opening else self._probe)
                if met is None:
                    continue
            if isinstance(met, Change):
                changed = sent.without(met.names)
                if changed == sent:
                    met = Rejected(met.words)
                else:
                    if self.request is sent:  # else another call has learnt it already
                        self.request = changed
                    continue
            if isinstance(met, Rejected) and met.too_long and shape.limits and not unlimited:
                # Room that is set aside for the reply may be what was missing.
                unlimited = True
                continue
            return met, sent.form

    async def _probe(self) -> Met:
        """One try at what any judge can answer."""
        return await self.caller.complete(
            encoded(self.request.body(self.template.messages(*_TRIAL, self.request.form)))
        )


def _shortened(text: str) -> str:
    """Both ends of a text that is too long to be kept."""
    return text if len(text) <= _KEPT else f"{text[: _KEPT // 2]} … {text[-_KEPT // 2 :]}"
