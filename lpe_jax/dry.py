"""What a run would take, from its flags and its folder alone: no model is loaded, nobody is asked, nothing is written.

Counts come from the procedures themselves, and for a folder that is there from what is in it: its rollouts and verdicts
are replayed, and what they settle is not counted.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import jax

from lpe_jax import live
from lpe_jax.asked import Asked
from lpe_jax.errors import CheckpointError
from lpe_jax.estimation.expectation import expected_draws
from lpe_jax.job import Job, is_finished
from lpe_jax.judging.base import RemoteJudge
from lpe_jax.judging.cascade import AnyJudge, Cascade, parse
from lpe_jax.judging.registry import JUDGES, KINDS, SERVERS, check_name, kind_of, make_judge
from lpe_jax.judging.remembered import remembered_as
from lpe_jax.judging.remote import RubricJudge
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.models.checkpoint import local_folder, open_checkpoint
from lpe_jax.records.bank import BankStore
from lpe_jax.records.check import held
from lpe_jax.records.files import part_files
from lpe_jax.records.index import Index
from lpe_jax.records.ledger import NAME, Ledger, logs_of, spent_in
from lpe_jax.records.rollouts import FOLDER, RolloutStore
from lpe_jax.records.run import METRICS, metrics, read_run, settings_hash
from lpe_jax.reporting.bill import (
    ALPHA_BYTES,
    CHARACTERS,
    ROLLOUT_BYTES,
    ROW_BYTES,
    TOKEN_BYTES,
    VERDICT_BYTES,
    Calls,
    Pace,
    Work,
    call_words,
    disk_words,
    work_words,
)
from lpe_jax.stored import open_stored
from lpe_jax.sweep import Sweep
from lpe_jax.types import Prompt

_NOTHING = "a dry run: nothing is loaded, asked, drawn or written"


def of_job(job: Job, *, out: str | None, asked: Mapping[str, Any], speed: Pace | None) -> list[str]:
    """What an estimation job would take, a line each.

    Args:
      out: its folder; None is the default one.
      asked: as lpe_jax.job.run.
      speed: where the user has measured or planned it; None is as the run was drawn so far, if it was.

    Raises:
      UserError: an input cannot be used.
    """
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be at work
    job.sampling()
    models, prompts, judge = _models(job), job.read_prompts(), _harmless(job)
    folder, done = _folder(job, out, asked, prompts, judge)
    if done:
        return [_NOTHING, f"{folder} is finished: nothing to do"]
    each, share = job.procedure.most_rollouts, None
    mean = float(each)
    if not job.procedure.fixed:
        mean, share = expected_draws(job.procedure)
    left = {p.id: (each, mean, job.naive_check) for p in prompts}
    index = None if folder is None else RolloutStore(folder / FOLDER).index()
    if index is not None and len(index):
        left |= _left(job, prompts, judge, folder, index, left)
    most = sum(a + c for a, _, c in left.values())
    expected = most if job.procedure.fixed else round(sum(b + c for _, b, c in left.values()))
    hits = None if share is None else round(share * sum(b for _, b, _ in left.values()))
    open_ = [p for p in prompts if left[p.id][0] + left[p.id][2]]
    stored = 0 if index is None else sum(len(index.of_prompt(p.id)[1]) for p in prompts)
    work = _work(job, prompts, open_, stored, most, expected, hits)
    size = most * (ROLLOUT_BYTES + TOKEN_BYTES * work.tokens + VERDICT_BYTES)
    return [
        _NOTHING,
        *([] if folder is None else [f"folder: {folder}"]),
        *models,
        *_lines(job, work, folder, speed, open_),
        disk_words(size),
    ]


def of_sweep(sweep: Sweep, *, out: str | None, asked: Mapping[str, Any], speed: Pace | None) -> list[str]:
    """What a grid sweep would take, as of_job."""
    jax.config.update("jax_platforms", "cpu")
    sweep.sampling()
    models, prompts, judge = _models(sweep), sweep.read_prompts(), _harmless(sweep)
    asked = {**asked, "world_folder": None if sweep.folder is None else str(sweep.folder.resolve())}
    folder, done = _folder(sweep, out, asked, prompts, judge)
    if done:
        return [_NOTHING, f"{folder} is finished: nothing to do"]
    there = set() if folder is None else {entry["prompt_id"] for entry in BankStore(folder).entries.values()}
    open_ = [prompt for prompt in prompts if prompt.id not in there]
    most = sweep.each * len(open_)
    work = _work(sweep, prompts, open_, sweep.each * (len(prompts) - len(open_)), most, most, None)
    rows = len(sweep.alphas) * sweep.n * len(open_)
    texts = TOKEN_BYTES * work.tokens * sweep.texts
    alphas = ALPHA_BYTES * len(sweep.alphas) * (sweep.grid_logps or sweep.tree)
    size = rows * (ROW_BYTES + alphas + texts) + (sweep.judge_name != "tiny") * most * VERDICT_BYTES
    lines = _lines(sweep, work, folder, speed, open_)
    if sweep.tree:
        lines.append("(by the prefix tree, which computes what rollouts have in common once: quicker than that)")
    return [_NOTHING, *([] if folder is None else [f"folder: {folder}"]), *models, *lines, disk_words(size)]


def of_judging(folder: Path, judge: str | None, settings: JudgeSettings, reasoning: bool) -> list[str]:
    """What judging a stored run would take: calls for all that is not answered yet, and what they cost.

    Raises:
      UserError: the run or the judge cannot be used.
    """
    jax.config.update("jax_platforms", "cpu")
    stored = open_stored(folder)
    job = stored.job(judge, settings, reasoning)
    head = [_NOTHING, f"there: {len(stored.index):,} rollouts of {len(stored.prompts):,} prompts"]
    new = _harmless(job)
    if new is None:
        return [*head, f"judge {job.judge_name}: at most {len(stored.index):,} responses, on this machine, no calls"]
    lines = []
    with held(folder, to_write=False), _copied(folder) as copy, closing(_ledger(copy)) as ledger:
        spent = spent_in(copy)
        for i, (name, one) in enumerate(_named(job, new)):
            if not isinstance(one, RemoteJudge):
                continue
            # The second is asked of what the first says, which is known where that costs nothing.
            known = i == 0 or not isinstance(new.screen, RemoteJudge)
            with job.desk(new if i and known else one) as desk:
                desk.remember(ledger)
                keyed = {}
                for _, items in stored.items():
                    keyed |= desk.unanswered(items)
            tokens = [_input_tokens(one, prompt.text, len(text)) for prompt, text in keyed.values()]
            bound = Calls(
                judge=name,
                most=len(keyed),
                exact=known,
                expected=None,
                input_tokens=round(sum(tokens)),
                output_tokens=one.request.tokens,
                measured=_measured(spent, one, job),
                why="" if known else ", as the first judge says",
            )
            lines += call_words(bound, job.judge_settings)
    return [*head, *(lines or [f"judge {job.judge_name}: no calls"])]


def _work(
    asked: Asked, prompts: Sequence, open_: Sequence[Prompt], stored: int, most: int, expected: int, hits: int | None
) -> Work:
    size = sum(len(m.content.encode("utf-8", "replace")) for prompt in open_ for m in prompt.messages)
    tokens = asked.sampling().max_new_tokens
    return Work(len(prompts), len(open_), stored, most, expected, tokens, size, hits)


def _lines(asked: Asked, work: Work, folder: Path | None, speed: Pace | None, open_: Sequence[Prompt]) -> list[str]:
    if speed is None and folder is not None and (tokens := _drawn_at(folder)) is not None:
        speed = Pace(tokens, "as this run was drawn so far")
    advice = (
        "give --tokens_per_second, which a short run with --limit=2 and these models shows, or --plan, which "
        "experiments.plan --json writes for the hardware"
    )
    return [*work_words(work, speed, advice), *_calls(asked, work, folder, open_)]


def _calls(asked: Asked, work: Work, folder: Path | None, open_: Sequence[Prompt]) -> list[str]:
    """Of the judges of a run, at most a call for each rollout that is to be drawn."""
    two = parse(asked.judge_name)
    names = (asked.judge_name,) if two is None else two[:2]
    spent = {} if folder is None else _spent(folder)
    characters = sum(len(prompt.text) for prompt in open_) / max(len(open_), 1)
    lines = []
    for number, name in enumerate(names):
        if kind_of(name) not in SERVERS:
            continue
        one = make_judge(name, dataclasses.replace(asked.judge_settings, key_env=None))
        expected = None if work.expected == work.most else work.expected
        why = ", one for each distinct response"
        if number == 1:
            hits, share = work.expected_hits, two[2]
            expected = None if hits is None else round(hits + share * (work.expected - hits))
            why = (
                f", for what the first judge does not call refused, a share that nobody knows before, and for "
                f"{100 * share:g} % of the rest"
            )
        calls = Calls(
            judge=name,
            most=work.most,
            exact=False,
            expected=expected,
            input_tokens=round(work.most * (_input_tokens(one, "x" * round(characters), 0) + work.tokens)),
            output_tokens=one.request.tokens,
            measured=_measured(spent, one, asked),
            why=why,
        )
        lines += call_words(calls, asked.judge_settings)
    own = [name for name in names if name not in JUDGES and kind_of(name) not in KINDS]
    lines += [f"judge {name}: a Python function, not looked for; what it costs it knows itself" for name in own]
    away = [name for name in names if kind_of(name) == "jax" and local_folder(name.partition(":")[2]) is None]
    lines += [f"judge {name}: on this machine, no calls; on the hub, not looked for" for name in away]
    return lines or [f"judge {asked.judge_name}: no calls"]


def _models(asked: Asked) -> list[str]:
    """A line on models that were not looked at, as they are on the hub.

    Raises:
      CheckpointError: one that is to be on this machine is not, or its config or list of tensors cannot be used.
    """
    away = []
    if asked.folder is not None and not asked.folder.is_dir():
        raise CheckpointError(f"--world={asked.folder} is no folder")
    for source in asked.sources:
        if local_folder(source) is None:
            away.append(source)
        else:
            open_checkpoint(source)
    return [f"models: {' and '.join(away)} on the hub, not looked for"] if away else []


def _harmless(asked: Asked) -> AnyJudge | None:
    """The judge, where making it neither loads a model nor runs somebody's code; else None."""
    two = parse(asked.judge_name)
    names = (asked.judge_name,) if two is None else two[:2]
    for name in names:
        check_name(name)
        if kind_of(name) == "jax":
            local_folder(name.partition(":")[2])
    if any(name not in JUDGES and kind_of(name) not in (*SERVERS, "phrases") for name in names):
        return None
    return make_judge(asked.judge_name, asked.judge_settings)


def _named(asked: Asked, judge: AnyJudge) -> list[tuple[str, Any]]:
    """Each judge and what it was named as."""
    two = parse(asked.judge_name)
    return (
        [(asked.judge_name, judge)] if two is None else list(zip(two[:2], (judge.screen, judge.confirm), strict=True))
    )


def _folder(
    asked_for: Job | Sweep, out: str | None, asked: Mapping[str, Any], prompts: Sequence[Prompt], judge: AnyJudge | None
) -> tuple[Path | None, bool]:
    """The run's folder, None where it cannot be known or is not there, and whether nothing is left to do in it."""
    if judge is None:
        folder = None if out is None else Path(out)
        return (folder if folder is not None and read_run(folder) is not None else None), False
    named = asked_for.complete(asked, prompts, judge)
    program = "sample" if isinstance(asked_for, Sweep) else asked_for.program
    folder = Path(out or f"runs/{program}-{settings_hash(named)}")
    if (record := read_run(folder)) is None:
        return None, False
    if isinstance(asked_for, Sweep):
        return folder, record["status"] == "finished" and record.get("asked") == named
    return folder, is_finished(folder, named)


def _left(
    job: Job,
    prompts: Sequence[Prompt],
    judge: AnyJudge | None,
    folder: Path,
    index: Index,
    whole: Mapping[str, tuple[int, float, int]],
) -> dict[str, tuple[int, float, int]]:
    """By prompt: rollouts at most, expected, and of its naive check, that are not stored."""
    left, ready = {}, []
    remote = judge is None or any(isinstance(one, RemoteJudge) for _, one in _named(job, judge))
    screens = isinstance(judge, Cascade) and isinstance(judge.screen, RemoteJudge)
    with held(folder, to_write=False), _copied(folder) as copy, closing(_ledger(copy)) as ledger, ExitStack() as stack:
        desk = None if judge is None or screens else stack.enter_context(job.desk(judge))
        if desk is not None:
            desk.remember(ledger)
        for prompt in prompts:
            most, mean, check = whole[prompt.id]
            _, places = index.of_prompt(prompt.id)
            if not (n := len(places)):
                continue
            left[prompt.id] = max(most + check - n, 0), max(mean + check - n, 0.0), 0
            if desk is None:
                continue
            items = [live.item_of(prompt, rollout) for rollout in index.fetch(places)]
            if not remote or not desk.unanswered(items):
                ready.append(prompt)
        store = RolloutStore(folder / FOLDER)
        if desk is not None and ready:
            for f in live.run(job.procedure, ready, live.FromStore(), desk.submit, store):
                n = len(index.of_prompt(f.prompt.id)[1])
                left[f.prompt.id] = 0, 0.0, max(job.naive_check - (n - f.rollouts), 0)
    return left


@contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    """A folder with copies of a run's ledgers: SQLite writes to what it opens."""
    with tempfile.TemporaryDirectory() as name:
        for path in part_files(folder / NAME).values():
            for file in (path, *logs_of(path)):
                shutil.copy(file, Path(name) / file.name)
        yield Path(name)


def _ledger(copy: Path) -> Ledger:
    """What all processes judged."""
    ledger = Ledger(copy / NAME)
    ledger.learn(path for part, path in part_files(copy / NAME).items() if part)
    return ledger


def _spent(folder: Path) -> dict[str, tuple[int, int, int]]:
    with _copied(folder) as copy:
        return spent_in(copy)


def _measured(
    spent: Mapping[str, tuple[int, int, int]], judge: RubricJudge, asked: Asked
) -> tuple[float, float] | None:
    """Input and output tokens of a call to a judge so far."""
    known_as = remembered_as(judge.identity, asked.thinking, asked.judge_reasoning)
    calls, given, answered = spent.get(known_as, (0, 0, 0))
    return (given / calls, answered / calls) if calls and given else None


def _input_tokens(judge: RubricJudge, prompt: str, characters: int) -> float:
    """Of a call about a response of so many characters, about."""
    messages = judge.template.messages(prompt, "", judge.request.form)
    return (sum(len(message["content"]) for message in messages) + characters) / CHARACTERS


def _drawn_at(folder: Path) -> float | None:
    """Tokens a second at which a run was drawn so far."""
    batches = [event for event in metrics(folder / METRICS) if event.get("event") == "batch"]
    # With a call's first one programs were compiled.
    batches = [batch for batch in batches if not batch.get("first")] or batches
    tokens, seconds = (sum(batch[name] for batch in batches) for name in ("tokens", "seconds"))
    return tokens / seconds if seconds > 0 and tokens > 0 else None
