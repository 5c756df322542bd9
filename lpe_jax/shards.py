"""The rollouts of one prompt of a grid sweep, by either of two samplers that give the same distribution.

The prefix tree evaluates what rollouts have in common once, one prompt at a time and processes side by side; it suits a
small model on a CPU. The ordinary sampler fills a device with rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lpe_jax.decoding import verify
from lpe_jax.decoding.sampler import Sampler, slots_for
from lpe_jax.decoding.tree import Leaves, sample_tree
from lpe_jax.errors import RunError
from lpe_jax.loading import Loaded
from lpe_jax.progress import Watch
from lpe_jax.records.bank import Rows, Shard
from lpe_jax.tiny.judge import outcome_decided
from lpe_jax.types import Outcome, Prompt, Request, Rollout

if TYPE_CHECKING:
    from lpe_jax.sweep import Sweep

# Prefixes are judged at every so many tokens: judging costs more than going on a little too long.
_JUDGE_EVERY = 8
# Extra rollouts are drawn and forgotten in orders of so many batches.
_BATCHES_AHEAD = 16
# So often is looked whether a sweep is to end, while children draw.
_LOOK_SECONDS = 0.5
_SUMS = ("logp_path", "logp_original", "logp_variant", "path_score", "path_variance")

# Outcomes of one prompt's responses, in order; which part of its rollouts they are.
Judging = Callable[[Prompt, Sequence[str], str], list[Outcome]]


def describe(shard: Shard) -> str:
    """One prompt in a line: how often it was complied with at the ends of the grid."""
    rows = shard.rows
    scored = np.bincount(rows.cell, rows.count * (rows.outcome != Outcome.UNSCORED), len(shard.alphas))
    complied = np.bincount(rows.cell, rows.count * (rows.outcome == Outcome.COMPLIED), len(shard.alphas))
    return (
        f"{shard.prompt_id}: complied {complied[-1]:,.0f}/{scored[-1]:,.0f} at {shard.alphas[-1]:g}, "
        f"{complied[0] + shard.naive_complied:,.0f}/{scored[0] + shard.naive_scored:,.0f} at 1, {len(rows.cell):,} rows"
    )


def outcomes(shard: Shard, each: int) -> dict[Outcome, int]:
    """What became of the `each` rollouts of a prompt."""
    rows = shard.rows
    found = {o: int(rows.count[rows.outcome == o].sum()) for o in (Outcome.COMPLIED, Outcome.REFUSED)}
    found[Outcome.COMPLIED] += shard.naive_complied
    found[Outcome.REFUSED] += shard.naive_scored - shard.naive_complied
    return {**found, Outcome.UNSCORED: each - sum(found.values())}


def _shard(
    sweep: Sweep, prompt: Prompt, naive: Mapping[Outcome, int], outcome: np.ndarray, texts: Sequence[str], **columns
) -> Shard:
    kept = [text if sweep.texts and o == Outcome.COMPLIED else None for o, text in zip(outcome, texts, strict=True)]
    complied = int(naive.get(Outcome.COMPLIED, 0))
    return Shard(
        prompt_id=prompt.id,
        alphas=sweep.alphas,
        rows=Rows(outcome=outcome, text=kept, **columns),
        naive_scored=complied + int(naive.get(Outcome.REFUSED, 0)),
        naive_complied=complied,
    )


def by_rows(
    sweep: Sweep,
    sampler: Sampler,
    prompt: Prompt,
    judging: Judging,
    check: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
) -> tuple[Shard, float]:
    """One prompt by the ordinary sampler: the grid's rollouts, then the extra ones, whose indices go on from n.

    check is called between rollouts; what it raises ends the sweep. watch is told what is drawn.

    Returns:
      The shard, and by how much the sums of sweep.verify rollouts are off (lpe_jax.decoding.verify).

    Raises:
      RunError: by more than rounding.
    """
    watch = watch or Watch()
    requests = [Request(prompt.id, alpha, i) for alpha in sweep.alphas for i in range(sweep.n)]
    rollouts = list(_checked(sampler.draw(requests, watch.busy), check, watch))
    texts = [r.text for r in rollouts]
    some = [rollouts[i] for i in verify.some(len(rollouts), sweep.verify, sweep.seed)]
    off = sampler.verify(prompt.id, some)
    naive: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
    step = sweep.rows * _BATCHES_AHEAD
    for begin in range(sweep.n, sweep.n + sweep.n_naive, step):
        more = range(begin, min(begin + step, sweep.n + sweep.n_naive))
        requests = [Request(prompt.id, 1.0, i) for i in more]
        extra = [r.text for r in _checked(sampler.alone.draw(requests, watch.busy), check, watch)]
        for outcome in judging(prompt, extra, f"naive-{begin}"):
            naive[outcome] += 1
    shard = _shard(
        sweep,
        prompt,
        naive,
        np.array(judging(prompt, texts, "grid"), object),
        texts,
        cell=np.repeat(np.arange(len(sweep.alphas)), sweep.n),
        count=np.ones(len(rollouts), np.int64),
        finish=np.array([r.finish for r in rollouts]),
        length=np.array([len(r.tokens) for r in rollouts]),
        grid_logp=np.stack([r.grid_logp for r in rollouts]) if sweep.grid_logps else None,
        **{name: np.array([getattr(r, name) for r in rollouts]) for name in _SUMS},
    )
    return shard, off


def _checked(rollouts: Iterator[Rollout], check: Callable[[], None], watch: Watch) -> Iterator[Rollout]:
    for rollout in rollouts:
        watch.drawn(1, len(rollout.tokens))
        check()
        yield rollout


@dataclasses.dataclass(frozen=True)
class _Trees:
    """One prompt's leaves with their texts: the grid's, and the extra ones at alpha = 1, None where there are none; and
    by how much sums of those that were verified are off.
    """

    grid: Leaves
    grid_texts: list[str]
    naive: Leaves | None
    naive_texts: list[str]
    off: float


def by_tree(
    sweep: Sweep,
    prompts: Sequence[Prompt],
    rendered: Mapping[str, Sequence[int]],
    todo: Sequence[int],
    judging: Judging,
    check: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
) -> Iterator[tuple[int, tuple[Shard, float]]]:
    """(number, as by_rows) of each prompt in todo as it is done, in no fixed order."""
    draw, tasks = functools.partial(_trees, sweep), {i: (prompts[i].id, rendered[prompts[i].id]) for i in todo}
    for i, trees in _shared_out(draw, tasks, sweep.processes, check):
        for leaves in (trees.grid, trees.naive):
            if watch is not None and leaves is not None:
                counts = leaves.counts.reshape(len(leaves), -1).sum(axis=1)
                watch.drawn(int(counts.sum()), int((counts * leaves.length).sum()))
        yield i, (_tree_shard(sweep, prompts[i], trees, judging), trees.off)


def _shared_out(
    work: Callable, tasks: Mapping[int, tuple], processes: int, check: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    """(key, work(*task)) of every task, in the order they are done; check is called meanwhile, and may raise."""
    # Several processes would each reserve the whole of an accelerator.
    if processes == 1 or len(tasks) < 2 or jax.default_backend() != "cpu":
        for key, task in tasks.items():
            check()
            yield key, work(*task)
        return
    # Spawned, as a forked process inherits threads of XLA that no longer run.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=context, initializer=_one_thread)
    try:
        futures = {pool.submit(work, *task): key for key, task in tasks.items()}
        while futures:
            done, _ = wait(futures, _LOOK_SECONDS, FIRST_COMPLETED)
            # Before results: a signal to all of a group ends the children, and then there are none.
            check()
            for future in done:
                # Popped, so that what has been handed on is not kept until the end.
                yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise RunError(
            "a process that draws was killed, perhaps for want of memory; give the same command again with a smaller "
            "--processes"
        ) from None
    except BaseException:
        # Whoever still draws would be waited for.
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """Before the first computation of a process: it is to use one core, as its siblings use the others. Ctrl-C is for
    the sweep to hear of, which ends its children.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody is left to end a child whose parent was killed.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()
    os.environ["PJRT_NPROC"] = "1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


@functools.cache
def _loaded(sweep: Sweep) -> Loaded:
    """The models, once per process."""
    return sweep.load()


def _trees(sweep: Sweep, prompt_id: str, prompt: Sequence[int]) -> _Trees:
    """Draws one prompt, given as token ids; its rollouts depend on its id and not on the other prompts."""
    loaded = _loaded(sweep)
    words = np.frombuffer(hashlib.sha256(prompt_id.encode("utf-8")).digest()[:16], "<u4").tolist()

    def decided(tokens: np.ndarray, length: np.ndarray) -> list[Outcome | None]:
        return [
            outcome_decided(loaded.text(row[:n])) if n % _JUDGE_EVERY == 0 else None
            for row, n in zip(tokens, length, strict=True)
        ]

    def draw(stage: int, alphas: Sequence[float], n: int, original_only: bool) -> tuple[Leaves, list[str]]:
        leaves = sample_tree(
            loaded.pair,
            prompt,
            alphas,
            [n] * len(alphas),
            sweep.sampling(),
            seed=(sweep.seed, *words, stage),
            decided=decided if sweep.judge_name == "tiny" else None,
            original_only=original_only,
            batch=sweep.rows,
        )
        return leaves, [loaded.text(leaves.sequence(row)) for row in range(len(leaves))]

    extra = draw(1, [1.0], sweep.n_naive, True) if sweep.n_naive else (None, [])
    grid = draw(0, sweep.alphas, sweep.n, False)
    some = [_recorded(grid[0], row, sweep.alphas) for row in verify.some(len(grid[0]), sweep.verify, sweep.seed)]
    slots = slots_for({prompt_id: prompt}, loaded.pair.config.max_position_embeddings, sweep.sampling().max_new_tokens)
    return _Trees(*grid, *extra, verify.check(prompt_id, loaded.pair, prompt, some, sweep.sampling(), slots))


def _recorded(leaves: Leaves, row: int, alphas: Sequence[float]) -> verify.Recorded:
    """A leaf as a rollout that was seen at every alpha, drawn there or not."""
    sums = {"logp_path": leaves.logp, "path_score": leaves.path_score, "path_variance": leaves.path_variance}
    return verify.Recorded(leaves.sequence(row), np.array(alphas), {name: of[row] for name, of in sums.items()})


def _tree_shard(sweep: Sweep, prompt: Prompt, trees: _Trees, judging: Judging) -> Shard:
    def outcomes(leaves: Leaves, texts: Sequence[str], part: str) -> np.ndarray:
        found = leaves.label.copy()
        open_ = [row for row, label in enumerate(found) if label is None]
        for row, outcome in zip(open_, judging(prompt, [texts[row] for row in open_], part), strict=True):
            found[row] = outcome
        return found

    naive = dict.fromkeys(Outcome, 0)
    if trees.naive is not None:
        of_naive = outcomes(trees.naive, trees.naive_texts, "naive")
        naive = {outcome: trees.naive.counts[of_naive == outcome].sum() for outcome in Outcome}
    leaves = trees.grid
    if not np.isfinite(leaves.logp_original).all():
        raise RunError(f"the models gave logits that are not finite for {prompt.id!r}; use --dtype=float32")
    leaf, cell = np.nonzero(leaves.counts)
    return _shard(
        sweep,
        prompt,
        naive,
        outcomes(leaves, trees.grid_texts, "grid")[leaf],
        [trees.grid_texts[row] for row in leaf],
        cell=cell,
        count=leaves.counts[leaf, cell],
        finish=leaves.finish[leaf],
        length=leaves.length[leaf],
        logp_path=leaves.logp[leaf, cell],
        logp_original=leaves.logp_original[leaf],
        logp_variant=leaves.logp_variant[leaf],
        path_score=leaves.path_score[leaf, cell],
        path_variance=leaves.path_variance[leaf, cell],
        grid_logp=leaves.logp[leaf],
    )
