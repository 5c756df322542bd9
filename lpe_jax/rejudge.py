"""A stored run judged by another judge, without a rollout drawn: its rates anew, how the two judges agree, and how the
new one does on rollouts that a person has labelled.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from lpe_jax.drawing import followed
from lpe_jax.errors import JudgeError, RunError
from lpe_jax.job import Job
from lpe_jax.judging.base import RemoteJudge, unscored
from lpe_jax.judging.cascade import AnyJudge, Cascade
from lpe_jax.judging.desk import Desk, Item
from lpe_jax.judging.labels import Label, read_labels, unlabelled, validation
from lpe_jax.judging.registry import make_judge
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.preemption import Notice
from lpe_jax.progress import Progress
from lpe_jax.recall import Recall
from lpe_jax.records.files import part_files, write_whole
from lpe_jax.records.index import Index
from lpe_jax.records.ledger import NAME, Key, Ledger, spent_in
from lpe_jax.records.run import Run, settings_hash
from lpe_jax.reporting import table
from lpe_jax.reporting.judges import (
    agreement_words,
    cascade_words,
    judging_words,
    validation_words,
    verdict_words,
)
from lpe_jax.reporting.text import printable
from lpe_jax.stored import Stored, Verdicts, estimated, open_stored
from lpe_jax.types import Outcome, Prompt, Request, Verdict

# So many parts are handed to the judge ahead, so that one that is waited for always has something to do.
_AHEAD = 3
# Seconds of waiting for a judge between looks at how it goes, and what all rollouts are counted under.
_PATIENCE, _ALL = 0.5, ""
# Seconds from SIGTERM to the end.
_GRACE = 30.0
# Between looks at what batches have come to.
_POLL_SECONDS = 60.0


def judge_all(
    stored: Stored, desk: Desk, ledger: Ledger, progress: Progress, notice: Notice
) -> tuple[Verdicts, Counter[tuple[Outcome, Outcome]]]:
    """Verdicts on all rollouts.

    Also counts rollouts by what the run's own judge said of them, and what is said now.
    """
    own = Recall(stored.record, ledger)
    verdicts, both = Verdicts(stored.index.total), Counter()
    progress.expect("judging", [_ALL], len(stored.index), exact=True)
    waiting: deque[tuple[np.ndarray, list[Verdict], Future[list[Verdict]]]] = deque()

    def take() -> None:
        places, before, answers = waiting.popleft()
        notice.check()
        while not answers.done():
            notice.check()
            progress.tick()
            concurrent.futures.wait([answers], _PATIENCE)
        now = answers.result()
        verdicts.put(places, now)
        both.update((b.outcome, n.outcome) for b, n in zip(before, now, strict=True))
        for outcome, n in Counter(verdict.outcome for verdict in now).items():
            progress.judged(_ALL, outcome, n)
        progress.tick()

    for places, items in stored.items():
        progress.handed_in(len(items))
        waiting.append((places, own(items), desk.submit(items)))
        if len(waiting) > _AHEAD:
            take()
    while waiting:
        take()
    return verdicts, both


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
    if show.to_label is not None and show.to_label.exists():
        raise JudgeError(f"--to_label={show.to_label} is there already, and may hold labels; name another file")
    if folder is None:
        if any(label.key is not None for label in labels):
            raise JudgeError("--validate names rollouts of a run; give --run, or labels with prompt and response")
        with Desk(make_judge(judge, judge_settings), thinking=False, reasoning=judge_reasoning) as desk:
            desk.open()
            for line in _validated(labels, None, desk, None):
                print(line)
        return None
    stored = open_stored(folder)
    job = stored.job(judge, judge_settings, judge_reasoning)
    new = job.make_judge()
    own = stored.settings["judge"]
    if judge is None and new.identity != own:
        raise JudgeError(
            f"the judge that {folder} was made with is not the same any more (there {own}, now {new.identity}); "
            "name one with --judge"
        )
    _check_labels(labels, stored.index, new.identity)
    with Notice(_GRACE) as notice, _opened(stored) as ledger:
        notice.kept = "what is judged is on disk, and the same command goes on from there"
        if batch:
            new = _in_batches(stored, job, new, ledger)
        with job.desk(new) as desk:
            desk.remember(ledger)
            if desk.remote and (isinstance(new, Cascade) or any(desk.unanswered(items) for _, items in stored.items())):
                desk.open(spent_in(folder))
            if stored.record["status"] != "finished":
                print("note: the run is not finished; this is of what it has drawn so far")
            for note in desk.notes:
                print(note)
            print(
                f"{len(stored.index):,} rollouts of {len(stored.prompts)} prompts, judge {new.identity}\n", flush=True
            )
            out = folder / "judged" / settings_hash({"judge": new.identity, "reasoning": job.judge_reasoning})
            with followed(None, out, desk, job.judge_settings) as progress:
                # From here on Ctrl-C ends it likewise; a judge that is called puts on disk what it said as it goes.
                notice.last = functools.partial(progress.end, "stopped")
                verdicts, both = judge_all(stored, desk, ledger, progress, notice)
            held = _validated(labels, (stored.index, verdicts), desk, new.identity) if labels else []
        results, phases = estimated(stored, job, verdicts)
        table.write_csv(table.estimates_rows(results), out / table.CSV)
        lines = (
            table.terminal_table(results),
            *judging_words(desk, spent_in(folder), job.judge_settings),
            *cascade_words(phases),
            *agreement_words(both, own),
            *verdict_words(results),
            *held,
        )
        text = "".join(f"{line}\n" for line in lines)
        write_whole(out / table.TEXT, text)
        print(text, end="")
        if show.count:
            _show(stored, verdicts, show, new.identity)
    print(f"\nsee {out}")
    return out


@contextlib.contextmanager
def _opened(stored: Stored) -> Iterator[Ledger]:
    """The run's folder, held, and its ledger, which knows what all of its processes judged.

    Raises:
      RunError: it is in use, or damaged.
    """
    folder, path = stored.folder, stored.folder / NAME
    try:
        held = Run(folder, stored.settings, extent=stored.record["extent"], asked=stored.record["asked"])
    except RunError as error:
        raise RunError(str(error).replace("--out=", "")) from None
    with held, contextlib.closing(Ledger(path)) as ledger:
        ledger.learn(other for part, other in part_files(path).items() if part)
        yield ledger


class _Answered:
    """In the place of a judge that was asked in batches: what it said is in the ledger, or is here.

    Attributes:
      without: verdicts of items that it did not score, by prompt's turns and judged text.
    """

    def __init__(self, identity: str):
        self.identity = identity
        self.without: dict[Key, Verdict] = {}

    def __call__(self, items: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        none = unscored("no batch has answered it; the same command sends it again")
        return [self.without.get(Key.of("", prompt, text), none) for prompt, text in items]


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

    answered, items = _Answered(last.identity), {}

    def stand_in() -> AnyJudge:
        # A judge that was closed is not opened again.
        return dataclasses.replace(job.make_judge(), confirm=answered) if isinstance(judge, Cascade) else answered

    with job.desk(stand_in()) as desk:
        desk.remember(ledger)
        if desk.remote:
            desk.open(spent_in(stored.folder))
        for _, some in stored.items():
            items |= desk.unanswered(some)
    if items:
        print(
            f"{len(items):,} responses go out in batches; they may take a day, and the same command goes on", flush=True
        )
        known_as = next(iter(items)).judge
        before = ledger.spent(known_as)
        last.reckon(*spent_in(stored.folder).get(known_as, (0, 0, 0)))

        def keep(verdicts: Mapping[Key, Verdict]) -> None:
            own = last.meter.calls, last.meter.input_tokens, last.meter.output_tokens
            paid = {k: v for k, v in verdicts.items() if v.outcome is not Outcome.UNSCORED or "reply" in v.fields}
            ledger.put(paid, {known_as: tuple(a + b for a, b in zip(before, own, strict=True))})

        found = judge_in_batches(last, items, stored.folder, poll=_POLL_SECONDS, keep=keep)
        keep(found)
        answered.without = {Key.of("", *items[key]): v for key, v in found.items() if v.outcome is Outcome.UNSCORED}
    return stand_in()


def _check_labels(labels: Sequence[Label], index: Index, identity: str) -> None:
    """Before anything is judged, and paid for.

    Raises:
      RunError: a label is of a rollout that is not there.
      JudgeError: some were drawn by this judge's word and others were not: their shares mean two things.
    """
    for label in labels:
        if label.key is not None and index.find([Request(*label.key)])[0] < 0:
            prompt_id, alpha, number = label.key
            raise RunError(
                f"--validate names rollout {number} of {prompt_id!r} at alpha = {alpha:g}, which is not here"
            )
    if len({label.drawn_by == identity for label in labels}) > 1:
        raise JudgeError(
            "--validate mixes labels that were drawn by this judge's word, as --to_label draws them, with others; "
            "validate each kind by itself"
        )


def _validated(
    labels: Sequence[Label], judged: tuple[Index, Verdicts] | None, desk: Desk, identity: str | None
) -> list[str]:
    """How a judge does on labels, in lines.

    Args:
      judged: where rollouts are and what it said of them.
    """
    given = iter(desk([Item(label.prompt, label.response) for label in labels if label.key is None]))
    found = [
        next(given) if label.key is None else judged[1].at(judged[0].find([Request(*label.key)]))[0] for label in labels
    ]
    drawn = {label.drawn_by for label in labels}
    totals = None
    if judged is not None and drawn == {identity}:
        complied, refused = (len(judged[1].which(outcome)) for outcome in (Outcome.COMPLIED, Outcome.REFUSED))
        totals = complied, complied + refused
    return ["", *validation_words(validation(labels, found), totals, other=bool(drawn - {None, identity}))]


def _show(stored: Stored, verdicts: Verdicts, show: Show, identity: str) -> None:
    """Prints some of what was called compliant and refused, and writes it to be labelled."""
    by_id, rng = {prompt.id: prompt for prompt in stored.prompts}, np.random.default_rng(show.seed)
    drawn = []
    for outcome in (Outcome.COMPLIED, Outcome.REFUSED):
        own = verdicts.which(outcome)
        some = stored.index.fetch(own[rng.choice(len(own), min(show.count, len(own)), replace=False)])
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
        write_whole(show.to_label, "".join(lines))
        print(f"\n{len(lines)} responses to be labelled in {show.to_label}: set complied to true or false in each")
