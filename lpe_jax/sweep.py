"""One grid sweep from start to end: every prompt at every alpha, drawn, judged and kept as a bank."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpe_jax.asked import Asked
from lpe_jax.decoding import verify
from lpe_jax.drawing import followed
from lpe_jax.judging.cascade import AnyJudge, parse
from lpe_jax.judging.desk import Desk, Item
from lpe_jax.models.pair import describe_sharing
from lpe_jax.preemption import Notice
from lpe_jax.processes import ALONE, Processes
from lpe_jax.records.bank import BankStore
from lpe_jax.records.ledger import spent_in
from lpe_jax.records.prompts import write_prompts
from lpe_jax.records.run import check_folder, more, read_run, settings_hash
from lpe_jax.reporting.judges import judging_words
from lpe_jax.reporting.text import counted
from lpe_jax.shards import by_rows, by_tree, describe, outcomes
from lpe_jax.types import Outcome, Prompt

_TREE_BATCH = 128
# Seconds of waiting for a judge after which is looked whether the sweep is to end.
_PATIENCE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Asked):
    """What a sweep was asked for.

    Attributes:
      alphas: the grid, strictly decreasing from 1.
      n: rollouts of each prompt at each alpha.
      n_naive: further rollouts at alpha = 1, of which only how many were scored and complied is kept.
      processes: how many share the prompts, with share_prefixes; it changes rounding at most.
      share_prefixes: the prefix tree (True) or the ordinary sampler; None is the tree for a tiny world.
      grid_logps: take every rollout's log p at all alphas; the tree always does.
      texts: keep compliant responses; all others are never kept.
    """

    alphas: tuple[float, ...]
    n: int
    n_naive: int
    processes: int
    share_prefixes: bool | None
    grid_logps: bool
    texts: bool

    def __post_init__(self):
        steps = np.diff(self.alphas)
        if not self.alphas or self.alphas[0] != 1 or not np.isfinite(self.alphas).all() or (steps >= 0).any():
            raise ValueError("alphas must be finite and strictly decreasing from 1")
        if self.world is not None and self.original is not None:
            raise ValueError("world names both models; leave out --original and --variant, or --world")
        if self.tree and (self.top_k > 0 or self.top_p < 1):
            raise ValueError("share_prefixes does not truncate; use --noshare_prefixes with --top_k or --top_p")
        if not self.sums:
            raise ValueError("nosums leaves out what estimators take from a bank; leave sums on")
        if self.tree and self.attention == "pallas":
            raise ValueError("share_prefixes knows no kernel; use --noshare_prefixes with --attention=pallas")
        if parse(self.judge_name) is not None:
            raise ValueError(
                "judge: a bank keeps one outcome of each rollout, and two judges in a row give errors to those "
                "that the second did not see; name one judge"
            )
        if self.tree and self.model_parallel != 1:
            raise ValueError("share_prefixes runs on one device; use --noshare_prefixes with --model_parallel")

    @property
    def tree(self) -> bool:
        """Whether the prefix tree draws."""
        return self.original is None if self.share_prefixes is None else self.share_prefixes

    @property
    def each(self) -> int:
        """Rollouts of a prompt."""
        return len(self.alphas) * self.n + self.n_naive

    @property
    def rows(self) -> int:
        return self.batch_size or _TREE_BATCH if self.tree else super().rows


def run(
    sweep: Sweep, *, out: str | None, asked: Mapping[str, Any], flagfile: str, processes: Processes = ALONE
) -> Path:
    """Runs a sweep, or goes on with it, or says that it is finished. Returns the run folder, whose bank
    lpe_jax.records.bank.read_bank reads.

    Args:
      asked: the flags that can change a result, as given.
      flagfile: the same as a file for --flagfile.
      processes: who shares the run; each draws its share of the prompts.

    Raises:
      UserError: any input that cannot be used, or a process that is missing.
    """
    began = time.monotonic()
    sweep.sampling()  # refuses what is out of range before anything is loaded
    prompts = sweep.read_prompts()
    judge = sweep.make_judge(processes.count)
    asked = sweep.complete(asked, prompts, judge)
    asked["world_folder"] = None if sweep.folder is None else str(sweep.folder.resolve())
    folder = Path(out or f"runs/sample-{settings_hash(asked)}")
    record = read_run(folder) if processes.first else None
    finished = record is not None and record["status"] == "finished" and record.get("asked") == asked
    folder, finished = processes.follow(folder, finished)
    if finished:
        if processes.first:
            print(
                f"{folder} is finished: nothing to do. Another --seed or --out draws anew; experiments.check looks "
                "whether all of it is as it was written."
            )
            if sweep.verify:
                print("Nothing was verified: a bank keeps no tokens, and rollouts are verified as they are drawn.")
        return folder

    if processes.first:
        check_folder(folder)
    with processes.notice(sweep.grace) as notice:
        notice.kept = "prompts that are done are on disk, and the same command goes on with the others"
        with sweep.desk(judge) as desk:
            # Before the models are loaded: a judge that cannot be used is to fail now.
            desk.open(spent_in(folder))
            _run(sweep, folder, prompts, judge, desk, asked, flagfile, processes, notice)
        processes.end()
    if processes.first:
        print(f"\nfinished in {time.monotonic() - began:.0f} s; see {folder}")
    return folder


def _run(
    sweep: Sweep,
    folder: Path,
    prompts: Sequence[Prompt],
    judge: AnyJudge,
    desk: Desk,
    asked: Mapping[str, Any],
    flagfile: str,
    processes: Processes,
    notice: Notice,
) -> None:
    """`run` of a sweep that is not finished, whose judge is there."""
    began = time.monotonic()
    # A shard has its prompt's number: those that the bank has keep theirs when it grows.
    order = processes.everyone("order", _in_order(folder, prompts) if processes.first else None)[0]
    place = {prompt_id: number for number, prompt_id in enumerate(order)}
    given, prompts = prompts, sorted(prompts, key=lambda prompt: place.get(prompt.id, len(place)))
    mesh = None if sweep.tree else sweep.mesh()
    loaded = sweep.load(mesh)
    seconds = time.monotonic() - began
    rendered = sweep.render(loaded, prompts)
    sampler = sweep.sampler(loaded, rendered, mesh, sweep.alphas if sweep.grid_logps else None)
    settings = {
        **sweep.settings(loaded, judge, mesh),
        "alphas": list(sweep.alphas),
        "n": sweep.n,
        "n_naive": sweep.n_naive,
        "share_prefixes": sweep.tree,
        "grid_logps": sweep.grid_logps or sweep.tree,
        "texts": sweep.texts,
        # As in lpe_jax.job.
        "attention": None if sweep.tree or sampler.kernel is None else "pallas",
    }
    extent = sweep.extent(prompts, rendered, sampler)
    # Another command may have grown it meanwhile, by others: then places differ, and this one is refused.
    places = {prompt.id: number for number, prompt in enumerate(prompts)}
    mine = processes.share(range(len(prompts)))
    with (
        processes.open(folder, settings, extent | {"places": places}, asked, flagfile) as opened,
        followed(len(mine), folder, desk, sweep.judge_settings, processes) as progress,
        contextlib.ExitStack() as stack,
    ):
        store = BankStore(folder, processes.index)
        opened.metric(**loaded.as_event(seconds))
        if processes.first:
            write_prompts(folder, given)
            for note in (describe_sharing(loaded.pair), *loaded.notes):
                print(note)
            if opened.grown_from is not None:
                print(f"the bank grows: {more(opened.grown_from, extent)}")
            if store.entries:
                print(f"going on from {len(store.entries)} prompts already drawn")
            how = "sharing prefixes" if sweep.tree else f"in batches of {sweep.rows}"
            how += "" if processes.count == 1 else f", {processes.count} processes"
            grid = f"{len(sweep.alphas)} alphas x {sweep.n:,} and {sweep.n_naive:,} at 1"
            print(f"{counted(len(prompts), 'prompt')}, {grid}, {how}")
            for note in desk.notes:
                print(note)
            print(f"judge {judge.identity}; writing to {folder}\n", flush=True)
        if sweep.judge_name != "tiny":  # exact and free: nothing to remember
            desk.remember(stack.enter_context(contextlib.closing(processes.ledger(folder))))
            stack.enter_context(desk)

        def judging(prompt: Prompt, responses: Sequence[str], part: str) -> list[Outcome]:
            items = [Item(prompt, response, f"{part}/{i}") for i, response in enumerate(responses)]
            verdicts = desk.submit(items)
            while not verdicts.done():
                check()
                concurrent.futures.wait([verdicts], _PATIENCE)
            return [verdict.outcome for verdict in verdicts.result()]

        def check() -> None:
            notice.check()
            progress.tick()

        def last() -> None:
            progress.end("stopped")
            for child in multiprocessing.active_children():
                child.terminate()

        notice.last = last

        truth = sweep.truth(loaded)
        todo = [i for i in mine if i not in store.entries]
        ids = [prompts[i].id for i in todo]
        progress.expect("drawing", ids, sweep.each, exact=True, done=len(mine) - len(todo))
        if sweep.tree:
            shards = by_tree(sweep, prompts, rendered, todo, judging, check, progress)
        else:
            shards = ((i, by_rows(sweep, sampler, prompts[i], judging, check, progress)) for i in todo)
        started, off = time.monotonic(), 0.0
        for done, (i, (shard, off_here)) in enumerate(shards, start=1):
            off = max(off, off_here)
            if (known := truth.get(shard.prompt_id)) is not None:
                shard = dataclasses.replace(shard, truth_log10=known.log10_rate, truth_error=known.se_log10)
            store.write(i, shard)
            minutes = (time.monotonic() - started) / 60
            for outcome, n in outcomes(shard, sweep.each).items():
                progress.judged(shard.prompt_id, outcome, n)
            progress.finished(shard.prompt_id)
            progress.say(
                f"{processes.prefix}{sum(i in store.entries for i in mine)}/{len(mine)} {describe(shard)}; "
                f"{minutes:.1f} min, "
                f"about {minutes / done * (len(todo) - done):.0f} min left"
            )
            check()
            verified = {"off": off_here} if sweep.verify else {}
            opened.metric(event="prompt", prompt_id=shard.prompt_id, rows=len(shard.rows.cell), **verified)
        if sweep.verify:
            print(processes.prefix + verify.words(sweep.verify, len(todo), off))
        if processes.count > 1:
            gone = processes.drawn(lambda k: BankStore(folder, processes.index).written(k), folder)
            notice.check()
            if not processes.first:
                return
            missing = set(range(len(prompts))) - BankStore(folder).entries.keys()
            if missing:
                raise processes.incomplete(gone, len(missing), len(prompts))
        opened.metric(event="finished", seconds=round(time.monotonic() - began, 1))
        desk.close()
        for line in judging_words(desk, spent_in(folder), sweep.judge_settings):
            print(line)
        opened.finish()


def _in_order(folder: Path, prompts: Sequence[Prompt]) -> list[str]:
    """Prompts' ids, those first that the bank has, in its order."""
    record = read_run(folder)
    places = {} if record is None else record["extent"].get("places", {})
    return [*sorted(places, key=places.get), *(prompt.id for prompt in prompts if prompt.id not in places)]
