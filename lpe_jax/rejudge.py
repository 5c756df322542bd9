"""A stored run judged by another judge, without a rollout drawn: its rates anew, how the two judges agree, and how the
new one does on rollouts that a person has labelled.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lpe_jax import live
from lpe_jax.errors import JudgeError, RunError
from lpe_jax.job import TABLE, Job
from lpe_jax.judging.base import RemoteJudge, unscored
from lpe_jax.judging.cascade import AnyJudge, Cascade
from lpe_jax.judging.desk import Desk, Item, remembered_as
from lpe_jax.judging.labels import Label, read_labels, unlabelled, validation
from lpe_jax.judging.registry import make_judge
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.records.files import write_whole
from lpe_jax.records.ledger import Key, Ledger
from lpe_jax.records.run import Run, settings_hash
from lpe_jax.reporting import table
from lpe_jax.reporting.judges import (
    agreement_words,
    cascade_words,
    judging_words,
    spent_words,
    validation_words,
    verdict_words,
)
from lpe_jax.reporting.text import printable
from lpe_jax.stored import Stored, Verdicts, estimated, open_stored
from lpe_jax.types import Outcome, Prompt, Verdict

# Handed to the judge at a time, so that the progress moves.
_AT_ONCE = 256
# So many such parts ahead, so that a judge that is waited for always has something to do.
_AHEAD = 8
# Between looks at what batches have come to.
_POLL_SECONDS = 60.0


def judge_all(stored: Stored, desk: Desk, settings: JudgeSettings) -> Verdicts:
    """Verdicts on all rollouts; a bar shows how it goes."""
    items, verdicts = stored.items(), {}
    with tqdm(total=len(items), unit=" rollouts", disable=None, leave=False) as bar:
        waiting: deque[tuple[list[Item], Future[list[Verdict]]]] = deque()

        def take() -> None:
            part, answers = waiting.popleft()
            verdicts.update({(i.prompt.id, i.tag): v for i, v in zip(part, answers.result(), strict=True)})
            bar.update(len(part))
            bar.set_postfix_str(spent_words(desk, settings))

        for begin in range(0, len(items), _AT_ONCE):
            part = items[begin : begin + _AT_ONCE]
            waiting.append((part, desk.submit(part)))
            if len(waiting) > _AHEAD:
                take()
        while waiting:
            take()
    return verdicts


@dataclasses.dataclass(frozen=True)
class Show:
    """What is shown of a judge's work, for a person to check.

    Attributes:
      count: responses called compliant, and as many called refused; 0 shows nothing.
      texts: with what was said.
      to_label: file for the same, to be labelled.
    """

    count: int = 0
    seed: int = 0
    texts: bool = True
    to_label: Path | None = None


def run(
    folder: Path | None,
    *,
    judge: str | None,
    validate: Path | None = None,
    show: Show = Show(),
    batch: bool = False,
    judge_settings: JudgeSettings,
    judge_reasoning: bool = False,
) -> Path | None:
    """Judges a stored run and estimates its rates anew; prints and writes what it finds.

    Args:
      folder: the run's; None holds a judge against whole responses in `validate` alone.
      judge: as --judge; None is the judge that the run was made with.
      validate: labels to hold the judge against.
      batch: have the judge, or the second of two, asked by the OpenAI Batch API.

    Returns:
      The folder inside the run's that holds the new table; None without a run.

    Raises:
      RunError, JudgeError: the run, the judge or the labels cannot be used.
    """
    labels = [] if validate is None else read_labels(validate)
    if folder is None:
        with Desk(make_judge(judge, judge_settings), thinking=False, reasoning=judge_reasoning) as desk:
            desk.open()
            _validated(labels, {}, desk, None)
        return None
    stored = open_stored(folder)
    job = stored.job(judge, judge_settings, judge_reasoning)
    new = job.make_judge()
    with (
        Run(folder, stored.settings, extent=stored.record["extent"], asked=stored.record["asked"]),
        contextlib.closing(Ledger(folder / "verdicts.sqlite")) as ledger,
        contextlib.ExitStack() as stack,
    ):
        if batch:
            new = _in_batches(stored, job, new, ledger)
        desk = stack.enter_context(job.desk(new))
        desk.open()
        desk.remember(ledger)
        if stored.record["status"] != "finished":
            print("note: the run is not finished; this is of what it has drawn so far")
        for note in desk.notes:
            print(note)
        print(f"{len(stored.rollouts):,} rollouts of {len(stored.prompts)} prompts, judge {new.identity}\n", flush=True)
        verdicts = judge_all(stored, desk, job.judge_settings)
        results, phases = estimated(stored, job, verdicts)
        before = _before(stored, ledger)
        out = folder / "judged" / settings_hash({"judge": new.identity, "reasoning": job.judge_reasoning})
        text = table.terminal_table(results) + "\n"
        table.write_csv(table.estimates_rows(results), out / "estimates.csv")
        write_whole(out / TABLE, lambda p: p.write_text(text, encoding="utf-8"))
        print(text, end="")
        outcomes = {key: verdict.outcome for key, verdict in verdicts.items()}
        for line in (
            *judging_words(desk, job.judge_settings),
            *cascade_words(phases),
            *agreement_words(before, outcomes, stored.settings["judge"]),
            *verdict_words(results),
        ):
            print(line)
        if labels:
            _validated(labels, verdicts, desk, new.identity)
        if show.count:
            _show(stored, outcomes, show, new.identity)
    print(f"\nsee {out}")
    return out


@dataclasses.dataclass(frozen=True)
class _Answered:
    """In the place of a judge whose answers are in the ledger: it is not asked for any more."""

    identity: str

    def __call__(self, items: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        return [unscored("no batch has answered it; the same command sends it again") for _ in items]


def _in_batches(stored: Stored, job: Job, judge: AnyJudge, ledger: Ledger) -> AnyJudge:
    """Has answers to all that is not answered yet put into the ledger; the judge to go on with.

    Raises:
      JudgeError: the judge is not one that takes batches, or they cannot be had.
    """
    last = judge.confirm if isinstance(judge, Cascade) else judge
    if not isinstance(last, RemoteJudge) or not last.identity.startswith("rubric:"):
        raise JudgeError(
            f"--judge_batch takes a judge behind an API, openai:MODEL or http://HOST/v1#MODEL, and not {last.identity}"
        )
    from lpe_jax.judging.batches import judge_in_batches

    with job.desk(judge) as desk:
        desk.remember(ledger)
        items = desk.unanswered(stored.items())
    if items:
        print(
            f"{len(items):,} responses go out in batches; they may take a day, and the same command goes on", flush=True
        )
        found = judge_in_batches(last, items, stored.folder, poll=_POLL_SECONDS)
        meter, known_as = last.meter, next(iter(items)).judge
        spent = {known_as: (meter.calls, meter.input_tokens, meter.output_tokens)}
        ledger.put({key: v for key, v in found.items() if v.outcome is not Outcome.UNSCORED}, spent)
    answered = _Answered(last.identity)
    return dataclasses.replace(judge, confirm=answered) if isinstance(judge, Cascade) else answered


def _validated(labels: Sequence[Label], verdicts: Verdicts, desk: Desk, identity: str | None) -> None:
    """Prints how a judge does on labels.

    Raises:
      RunError: a label is of a rollout that is not there.
    """
    found = []
    whole = desk([Item(label.prompt, label.response) for label in labels if label.key is None])
    given = iter(whole)
    for label in labels:
        if label.key is None:
            found.append(next(given))
            continue
        prompt_id, alpha, index = label.key
        if (verdict := verdicts.get((prompt_id, live.tag(alpha, index)))) is None:
            raise RunError(f"--validate names rollout {index} of {prompt_id!r} at alpha = {alpha:g}, which is not here")
        found.append(verdict)
    drawn = {label.drawn_by for label in labels}
    totals = None
    if identity is not None and drawn == {identity}:
        scored = Counter(verdict.outcome for verdict in verdicts.values())
        totals = scored[Outcome.COMPLIED], scored[Outcome.COMPLIED] + scored[Outcome.REFUSED]
    print()
    for line in validation_words(validation(labels, found), totals, other=bool(drawn - {None, identity})):
        print(line)


def _show(stored: Stored, outcomes: Mapping[tuple[str, str], Outcome], show: Show, identity: str) -> None:
    """Prints some of what was called compliant and refused, and writes it to be labelled."""
    by_id, rng = {prompt.id: prompt for prompt in stored.prompts}, np.random.default_rng(show.seed)
    drawn = []
    for outcome in (Outcome.COMPLIED, Outcome.REFUSED):
        own = [r for r in stored.rollouts if outcomes[r.prompt_id, live.tag_of(r)] is outcome]
        some = [own[i] for i in rng.choice(len(own), min(show.count, len(own)), replace=False)]
        drawn += some
        print(f"\n{len(some)} of {len(own):,} responses called {outcome}:")
        for rollout in some:
            print(f"\n  {printable(rollout.prompt_id)}, alpha = {rollout.alpha:g}, rollout {rollout.index}")
            if show.texts:
                print(f"    asked: {printable(by_id[rollout.prompt_id].text)}")
                print(f"    said:  {printable(rollout.text)}")
    if show.to_label is not None:
        # In no order, so that whoever labels them is not told what the judge said.
        lines = [unlabelled(drawn[i], by_id[drawn[i].prompt_id], identity) for i in rng.permutation(len(drawn))]
        write_whole(show.to_label, lambda path: path.write_text("".join(lines), encoding="utf-8"))
        print(f"\n{len(lines)} responses to be labelled in {show.to_label}: set complied to true or false in each")


def _before(stored: Stored, ledger: Ledger) -> dict[tuple[str, str], Outcome]:
    """What the run's own judge said, where its ledger still has it."""
    reasoning = stored.settings.get("judge_reasoning", False)
    known_as = remembered_as(stored.settings["judge"], stored.settings["thinking"], reasoning)
    items = stored.items()
    keys = [Key.of(known_as, item.prompt, item.response) for item in items]
    known = ledger.get(set(keys))
    pairs = zip(items, keys, strict=True)
    return {(item.prompt.id, item.tag): known[key].outcome for item, key in pairs if key in known}
