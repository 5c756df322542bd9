"""How the rollouts of a job come to be drawn, judged and kept, by one process or by several."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpe_jax import live
from lpe_jax.decoding import verify
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.errors import RunError
from lpe_jax.estimation.naive import Naive
from lpe_jax.judging.desk import Desk
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.preemption import Notice
from lpe_jax.processes import ALONE, Processes
from lpe_jax.progress import NAME, Progress, Watch
from lpe_jax.records.ledger import Ledger
from lpe_jax.records.rollouts import FOLDER, RolloutStore
from lpe_jax.records.run import Run
from lpe_jax.reporting import table
from lpe_jax.reporting.judges import spending
from lpe_jax.results import result_of
from lpe_jax.types import Prompt

if TYPE_CHECKING:
    from lpe_jax.job import Job

# What rollouts say of each prompt, and naive checks by prompt id.
Found = tuple[list[tuple[live.Finished, table.PromptResult]], dict[str, live.Finished]]


def followed(
    prompts: int | None, folder: Path, desk: Desk, settings: JudgeSettings, processes: Processes = ALONE
) -> Progress:
    """Progress on so many prompts of a run, shown and kept in its folder by the first process."""
    path = folder / NAME if processes.first else None
    return Progress(prompts, path, processes=processes.count, spent=functools.partial(spending, desk, settings))


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How this process's rollouts come to be drawn, judged and kept."""

    job: Job
    desk: Desk
    opened: Run
    processes: Processes
    notice: Notice
    progress: Progress
    truth: Mapping[str, Any]

    def store(self) -> RolloutStore:
        """What every process has on disk by now, and what this one adds."""
        return RolloutStore(self.opened.folder / FOLDER, self.processes.index)

    def draw(self, prompts: Sequence[Prompt], sampler: Sampler | live.FromStore, *, quiet: bool = False) -> Found:
        """Each prompt's rollouts and what they say, printed as it comes, and its naive check by prompt id."""
        job, store, desk = self.job, self.store(), self.desk
        progress = self.progress
        self.notice.last = functools.partial(self._last, store)

        def check() -> None:
            self.notice.check()
            progress.tick()

        check()
        if len(store) and self.processes.first and not quiet:
            print(f"going on from {len(store)} rollouts already drawn")

        def batches() -> Callable[[int, int, float], None]:
            marks = iter([{"first": True}])  # in whose time programs were compiled

            def on_batch(rollouts: int, tokens: int, seconds: float) -> None:
                told = {"rollouts": rollouts, "tokens": tokens, "seconds": round(seconds, 3)}
                self.opened.metric(event="batch", **told, **next(marks, {}))

            return on_batch

        def say(line: str) -> None:
            progress.say(self.processes.prefix + line)

        drive = functools.partial(
            live.run,
            judge=desk.submit,
            store=store,
            check=check,
            at_once=desk.at_once,
            watch=Watch() if quiet else progress,
        )
        # Before anything is drawn: what does not fit the device is to fail now.
        alone = sampler.alone if job.naive_check else None
        found, checks = [], {}
        ids, checking = [prompt.id for prompt in prompts], job.naive_check * len(prompts)
        if not quiet:
            progress.expect("drawing", ids, job.procedure.most_rollouts, exact=job.procedure.fixed, later=checking)
        try:
            for finished in drive(job.procedure, prompts, sampler, on_batch=batches()):
                truth = self.truth.get(finished.prompt.id)
                found.append((finished, result_of(job, finished, truth, job.judge_quality)))
                if not quiet:
                    say(table.prompt_line(found[-1][1], len(found), len(prompts), final=job.method != "path"))
            if job.naive_check:
                if not quiet:
                    say(f"checking against {job.naive_check} naive rollouts of each prompt")
                # They follow those that an estimate may have had of alpha = 1.
                at_one = np.asarray(job.procedure.grid) == 1.0
                had = {finished.prompt.id: finished.drawn[at_one].sum(keepdims=True) for finished, _ in found}
                of_found = [prompt for prompt in prompts if prompt.id in had]
                naive = Naive(job.naive_check)
                if not quiet:
                    progress.expect("checking", had, naive.most_rollouts, exact=True)
                for finished in drive(naive, of_found, alone, spoken_for=had, on_batch=batches()):
                    checks[finished.prompt.id] = finished
            if job.verify and prompts and not quiet:
                store.flush()
                # Not finished, whatever it was: it is to be seen first whether what is drawn is right.
                self.opened.reopen()
                say(verify.words(job.verify, len(prompts), _verified(job, prompts, sampler, store)))
        finally:
            store.flush()
        return found, checks

    def _last(self, store: RolloutStore) -> None:
        """What there is time for while the main thread does something else."""
        try:
            store.flush()
        finally:
            self.progress.end("stopped")

    def done(self) -> list[int]:
        """Says that this process's share is on disk and waits for the others; who ended without is returned."""
        gone = self.processes.drawn(lambda k: self.store().rows(k), self.opened.folder)
        # Whoever is gone may have been told to.
        self.notice.check()
        return gone

    def gather(self, prompts: Sequence[Prompt], sampler: Sampler, ledger: Ledger) -> Found:
        """All prompts, from what all processes drew.

        Raises:
          RunError: some are not complete, as a process has ended.
        """
        gone = self.done()
        if gone and self.job.verify:
            raise RunError(
                f"of {self.processes.count} processes {', '.join(map(str, gone))} ended without having verified their "
                "rollouts; see the reason there"
            )
        self.processes.learn(ledger, self.opened.folder)
        found, checks = self.draw(prompts, live.FromStore(), quiet=True)
        missing = len(prompts) - (len(checks) if self.job.naive_check else len(found))
        if missing and gone:
            raise self.processes.incomplete(gone, missing, len(prompts))
        # All of it is stored, unless a judge that failed was asked again and now has a word that asks for more.
        return self.draw(prompts, sampler, quiet=True) if missing else (found, checks)


def _verified(job: Job, prompts: Sequence[Prompt], sampler: Sampler, store: RolloutStore) -> float:
    """By how much the sums of job.verify rollouts of each prompt are off."""
    index, chosen = store.index(), []
    for prompt in prompts:
        _, places = index.of_prompt(prompt.id)
        chosen.append(places[verify.some(len(places), job.verify, job.seed)])
    # Of all prompts at once, as each shard then is read once.
    rollouts = iter(index.fetch(np.concatenate(chosen)))
    return max(
        sampler.verify(prompt.id, list(itertools.islice(rollouts, len(places))))
        for prompt, places in zip(prompts, chosen, strict=True)
    )
