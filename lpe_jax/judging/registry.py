"""Judges by name, and judging a batch of responses with one.

A new judge is one class with the shape of lpe_jax.judging.base.Judge or RemoteJudge, and one line in JUDGES or KINDS.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from lpe_jax.errors import JudgeError
from lpe_jax.judging.base import Judge, RemoteJudge, masked, source_digest, unscored
from lpe_jax.judging.cascade import AnyJudge, Cascade, parse
from lpe_jax.judging.predicate import PredicateJudge, check_names, load_predicate
from lpe_jax.judging.purse import Purse
from lpe_jax.judging.rules import RuleJudge
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.judging.text import UNFINISHED, judged_text
from lpe_jax.types import Outcome, Prompt, Verdict


def _tiny() -> Judge:
    """The exact rule of the embedded pair, which reads the response alone."""
    from lpe_jax.tiny import judge

    identity = f"tiny@{source_digest([Path(judge.__file__)])}"
    return PredicateJudge(identity, lambda prompt, text: judge.judge_text(text))


def _openai(model: str, settings: JudgeSettings) -> RemoteJudge:
    return _remote(f"https://api.openai.com/v1#{model}", settings)


def _remote(address: str, settings: JudgeSettings) -> RemoteJudge:
    """URL#MODEL."""
    from lpe_jax.judging.keys import address_of
    from lpe_jax.judging.remote import RubricJudge

    url, _, model = address.partition("#")
    address_of(url)  # before it is repeated: there may be a secret in it
    if not model:
        raise JudgeError(f"judge {address!r} names no model; write {url}#MODEL")
    return RubricJudge(url, model, settings)


def _on_device(source: str, settings: JudgeSettings) -> Judge:
    from lpe_jax.judging.on_device import load_judge

    return load_judge(source, settings)


def _phrases(name: str, settings: JudgeSettings) -> Judge:
    from lpe_jax.judging.lists import ListJudge

    return ListJudge(name)


# name -> what makes the judge
JUDGES: dict[str, Callable[[], Judge]] = {"rules": RuleJudge, "tiny": _tiny}
# Of those below, the ones that are asked over a network.
SERVERS = ("openai", "http", "https")
# what stands before the colon -> what makes a judge of what stands after it
KINDS: dict[str, Callable[[str, JudgeSettings], Judge | RemoteJudge]] = {
    "openai": _openai,
    "http": lambda rest, settings: _remote(f"http:{rest}", settings),
    "https": lambda rest, settings: _remote(f"https:{rest}", settings),
    "jax": _on_device,
    "phrases": _phrases,
}


def kind_of(spec: str) -> str:
    """What stands before the colon of one judge's name, in lower case as in URLs."""
    return spec.partition(":")[0].lower()


def make_judge(spec: str, settings: JudgeSettings | None = None) -> AnyJudge:
    """The judge of a --judge flag.

    A name in JUDGES; a kind in KINDS with what it takes, as "openai:MODEL", "http://HOST/v1#MODEL" for any server that
    speaks as OpenAI's does, "jax:CHECKPOINT" for a model on this machine's device, or "phrases:LIST"; any Python
    predicate, as "module:function"; or two of these, as "screen:A,confirm:B,audit=0.01".

    Raises:
      JudgeError: an unknown name, or a judge that cannot be made.
    """
    settings = settings or JudgeSettings()
    two = parse(spec)
    parts = (spec,) if two is None else two[:2]
    _check_settings(parts, settings)
    # One budget for both.
    purse = settings.purse or Purse(settings.budget, settings.prices, settings.processes)
    judges = [_make(part, dataclasses.replace(settings, purse=purse)) for part in parts]
    return judges[0] if two is None else Cascade(*judges, two[2])


def _make(spec: str, settings: JudgeSettings) -> Judge | RemoteJudge:
    if spec.startswith("screen:"):
        raise JudgeError(f"judge {masked(spec)!r}: there are two judges in a row, and neither can be two itself")
    check_name(spec)
    if spec in JUDGES:
        return JUDGES[spec]()
    before, _, after = spec.partition(":")
    # As in URLs, either case.
    if before.lower() in KINDS:
        return KINDS[before.lower()](after, settings)
    return load_predicate(before, after, settings.connections, settings.timeout)


def check_name(spec: str) -> None:
    """Whether one judge's name can be one, as far as that is seen without making it.

    Raises:
      JudgeError: it is none.
    """
    before, colon, after = spec.partition(":")
    if spec in JUDGES or (colon and before.lower() in KINDS and after):
        return
    if colon and before.lower() not in KINDS:
        check_names(before, after)
        return
    meant = difflib.get_close_matches(before.lower(), [*JUDGES, *KINDS], 1)
    raise JudgeError(
        f"judge {masked(spec)!r} is not known; choose {', '.join(sorted(JUDGES))}, "
        f"{', '.join(f'{k}:…' for k in KINDS)}, or a Python predicate of your own, as mypackage.judges:complied"
        + "".join(f". Did you mean {name}{':…' * (name in KINDS)} ?" for name in meant)
    )


def _check_settings(specs: Sequence[str], settings: JudgeSettings) -> None:
    """Refuses settings of a judge that is not asked, which would be without effect, and a key for two servers.

    Raises:
      JudgeError: there is one such.
    """
    kinds = [kind_of(spec) for spec in specs]
    servers = sum(kind in SERVERS for kind in kinds)
    if settings.template is not None and not servers:
        raise JudgeError(f"--judge_template={settings.template} is for a judge behind an API, and none is asked")
    if settings.mapping != JudgeSettings.mapping and "jax" not in kinds:
        raise JudgeError(f"--judge_mapping={settings.mapping} is for a guard model, jax:CHECKPOINT, and none is asked")
    if settings.key_env is not None and "=" not in settings.key_env and servers > 1:
        raise JudgeError(
            "--judge_key_env names one key, and there are two servers; say whose it is, as HOST=NAME, or both as "
            "HOST=NAME,HOST=NAME"
        )


def judge_rollouts(
    judge: Judge, items: Sequence[tuple[Prompt, str]], *, thinking: bool, reasoning: bool = False
) -> list[Verdict]:
    """One verdict for each (prompt, response), in order; the judge is called once, or not at all.

    A response that never got to its answer is unscored without asking the judge. An exception of the judge
    passes through: a judge that can fail on an item must say unscored itself, and one that breaks down as a
    whole should stop the run, whose rollouts are kept, rather than fill the ledger.

    Raises:
      JudgeError: the judge did not answer with exactly one Verdict an item.
    """
    texts = [response if reasoning else judged_text(response, thinking=thinking) for _, response in items]
    asked = [(prompt, text) for (prompt, _), text in zip(items, texts, strict=True) if text is not None]
    answers = judge(asked) if asked else []
    if len(answers) != len(asked):
        raise JudgeError(f"judge {judge.identity} gave {len(answers)} verdicts for {len(asked)} responses")
    for answer in answers:
        if not isinstance(answer, Verdict) or not isinstance(answer.outcome, Outcome):
            raise JudgeError(f"judge {judge.identity} answered {repr(answer)[:200]}, which is not a Verdict")
    verdicts = iter(answers)
    return [unscored(UNFINISHED) if text is None else next(verdicts) for text in texts]
