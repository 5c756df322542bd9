"""One grid sweep from start to end: every prompt at every alpha, drawn, judged and kept as a bank.

Two samplers give the same distribution. The prefix tree evaluates what rollouts have in common once, one prompt at a
time and processes side by side; it suits a small model on a CPU. The ordinary sampler fills a device with rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler, slots_for
from lpe_jax.decoding.tree import Leaves, sample_tree
from lpe_jax.errors import RunError, UserError
from lpe_jax.job import EMBEDDED_TOKENS, THINKING_TOKENS
from lpe_jax.judging.registry import judge_rollouts, make_judge
from lpe_jax.live import Judged
from lpe_jax.loading import Loaded, checkpoint_stamp, dtype_of, load, make_mesh
from lpe_jax.prompts import chat
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.records.bank import BankStore, Rows, Shard
from lpe_jax.records.ledger import Ledger
from lpe_jax.records.run import Run, check_folder, read_run, settings_hash
from lpe_jax.tiny import world_folder
from lpe_jax.tiny.judge import outcome_decided
from lpe_jax.tiny.truth import FILE, read_truth, truth_fits
from lpe_jax.types import Outcome, Prompt, Request

# Prefixes are judged at every so many tokens: judging costs more than going on a little too long.
_JUDGE_EVERY = 8
_TREE_BATCH = 128
# Extra rollouts are drawn and forgotten in orders of so many batches.
_BATCHES_AHEAD = 16
_SUMS = ("logp_path", "logp_original", "logp_variant", "path_score", "path_variance")

# Outcomes of one prompt's responses, in order.
Judging = Callable[[Prompt, Sequence[str]], list[Outcome]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep was asked for; None stands for the default that depends on the models.

    Attributes:
      world: folder of a tiny world; None with original None is the package's own.
      alphas: the grid, strictly decreasing from 1.
      n: rollouts of each prompt at each alpha.
      n_naive: further rollouts at alpha = 1, of which only how many were scored and complied is kept.
      processes: how many share the prompts, with share_prefixes; it changes rounding at most.
      share_prefixes: the prefix tree (True) or the ordinary sampler.
      grid_logps: take every rollout's log p at all alphas; the tree always does.
      texts: keep compliant responses; all others are never kept.
    """

    original: str | None
    variant: str | None
    prompts: str | None
    functional_category: str
    limit: int | None
    judge: str | None
    thinking: bool
    seed: int
    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    batch_size: int | None
    dtype: str
    model_parallel: int
    world: str | None
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
        if self.tree and self.model_parallel != 1:
            raise ValueError("share_prefixes runs on one device; use --noshare_prefixes with --model_parallel")

    @property
    def folder(self) -> Path | None:
        """The tiny world's folder; None for other models."""
        if self.original is not None:
            return None
        return world_folder() if self.world is None else Path(self.world).expanduser()

    @property
    def sources(self) -> tuple[str, str]:
        """Original and variant as lpe_jax.loading.load takes them."""
        if self.folder is None:
            return self.original, self.variant
        return str(self.folder / "original"), str(self.folder / "variant")

    @property
    def tree(self) -> bool:
        """Whether the prefix tree draws."""
        return self.original is None if self.share_prefixes is None else self.share_prefixes

    @property
    def judge_name(self) -> str:
        """The --judge that is meant."""
        return self.judge or ("rules" if self.folder is None else "tiny")

    @property
    def sampling(self) -> SamplingSettings:
        """The distribution that is drawn from.

        Raises:
          ValueError: a setting is out of range.
        """
        default = EMBEDDED_TOKENS if self.folder is not None else THINKING_TOKENS if self.thinking else 256
        return SamplingSettings(self.max_new_tokens or default, self.temperature, self.top_k, self.top_p)

    @property
    def rows(self) -> int:
        """Rows of one compiled batch."""
        return self.batch_size or (_TREE_BATCH if self.tree else 256 if self.folder is not None else 64)


def run(sweep: Sweep, *, out: str | None, asked: Mapping[str, Any], flagfile: str) -> Path:
    """Runs a sweep, or goes on with it, or says that it is finished. Returns the run folder, whose bank
    lpe_jax.records.bank.read_bank reads.

    Args:
      asked: the flags that can change a result, as given.
      flagfile: the same as a file for --flagfile.

    Raises:
      UserError: any input that cannot be used.
    """
    began = time.monotonic()
    try:
        sampling = sweep.sampling
    except ValueError as error:
        raise UserError(f"--{error}") from None
    prompts = _prompts(sweep)
    judge = make_judge(sweep.judge_name)
    asked = {
        **asked,
        "judge_identity": judge.identity,
        "prompt_texts": _digest([dataclasses.asdict(prompt) for prompt in prompts]),
        "checkpoints": [checkpoint_stamp(source) for source in sweep.sources],
        "world_folder": None if sweep.folder is None else str(sweep.folder.resolve()),
    }
    asked = json.loads(json.dumps(asked))
    folder = Path(out or f"runs/sample-{settings_hash(asked)}")
    record = read_run(folder)
    if record is not None and record["status"] == "finished" and record.get("asked") == asked:
        print(f"{folder} is finished: nothing to do. Another --seed or --out draws anew.")
        return folder

    check_folder(folder)
    mesh = None if sweep.tree else make_mesh(sweep.model_parallel)
    if mesh is not None and sweep.rows % mesh.shape["data"]:
        raise UserError(
            f"--batch_size={sweep.rows} is not a multiple of the {mesh.shape['data']} devices that share it"
        )
    if dtype_of(sweep.dtype) == "float32":
        # Accelerators multiply float32 matrices in fewer bits unless told otherwise.
        jax.config.update("jax_default_matmul_precision", "highest")
    loaded = load(*sweep.sources, dtype=sweep.dtype, mesh=mesh)
    rendered = {p.id: chat.render(loaded.tokenizer, p, thinking=sweep.thinking) for p in prompts}
    slots = slots_for(rendered, loaded.pair.config.max_position_embeddings, sampling.max_new_tokens)
    settings = {
        **loaded.identity,
        "prompts": _digest({prompt_id: list(ids) for prompt_id, ids in rendered.items()}),
        "prompt_ids": list(rendered),
        "alphas": list(sweep.alphas),
        "n": sweep.n,
        "n_naive": sweep.n_naive,
        "sampling": dataclasses.asdict(sampling),
        "seed": sweep.seed,
        "thinking": sweep.thinking,
        "judge": judge.identity,
        "share_prefixes": sweep.tree,
        "grid_logps": sweep.grid_logps or sweep.tree,
        "texts": sweep.texts,
        "batch_size": sweep.rows,
        "prompt_slots": None if sweep.tree else slots,
        "mesh": None if mesh is None else dict(mesh.shape),
        # Another compiler or chip rounds otherwise, and a draw on the edge then goes the other way.
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    with Run(folder, settings, asked=asked, flags=flagfile) as opened, contextlib.ExitStack() as stack:
        store = BankStore(folder)
        if store.entries:
            print(f"going on from {len(store.entries)} prompts already drawn")
        how = "sharing prefixes" if sweep.tree else f"in batches of {sweep.rows}"
        print(f"{len(prompts)} prompts, {len(sweep.alphas)} alphas x {sweep.n:,} and {sweep.n_naive:,} at 1, {how}")
        print(f"judge {judge.identity}; writing to {folder}\n", flush=True)
        if sweep.judge_name == "tiny":  # exact and free: nothing to remember
            ask = functools.partial(judge_rollouts, judge, thinking=sweep.thinking)
        else:
            ledger = stack.enter_context(contextlib.closing(Ledger(folder / "verdicts.sqlite")))
            ask = Judged(judge, ledger, sweep.thinking)

        def judging(prompt: Prompt, responses: Sequence[str]) -> list[Outcome]:
            return [verdict.outcome for verdict in ask([(prompt, response) for response in responses])]

        truth = _truth(sweep, sampling, loaded)
        todo = [i for i in range(len(prompts)) if i not in store.entries]
        if sweep.tree:
            shards = _by_tree(sweep, prompts, rendered, todo, judging)
        else:
            sampler = Sampler(
                pair=loaded.pair,
                prompts=rendered,
                to_text=_to_text(loaded),
                settings=sampling,
                seed=sweep.seed,
                batch_size=sweep.rows,
                prompt_slots=slots,
                mesh=mesh,
                grid=sweep.alphas if sweep.grid_logps else None,
            )
            shards = ((i, _by_rows(sweep, sampler, prompts[i], judging)) for i in todo)
        started = time.monotonic()
        for done, (i, shard) in enumerate(shards, start=1):
            store.write(i, dataclasses.replace(shard, **truth.get(shard.prompt_id, {})))
            minutes = (time.monotonic() - started) / 60
            print(
                f"{len(store.entries)}/{len(prompts)} {_line(shard)}; {minutes:.1f} min, "
                f"about {minutes / done * (len(todo) - done):.0f} min left",
                flush=True,
            )
            opened.metric(event="prompt", prompt_id=shard.prompt_id, rows=len(shard.rows.cell))
        opened.metric(event="finished", seconds=round(time.monotonic() - began, 1))
        opened.finish()
    print(f"\nfinished in {time.monotonic() - began:.0f} s; see {folder}")
    return folder


def _prompts(sweep: Sweep) -> list[Prompt]:
    path = Path(sweep.prompts) if sweep.prompts is not None else sweep.folder / "prompts.jsonl"
    prompts = read_prompts(path, functional_category=sweep.functional_category)
    return prompts[: sweep.limit] if sweep.limit else prompts


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _to_text(loaded: Loaded) -> Callable[[Sequence[int]], str]:
    return lambda tokens: chat.decode_text(loaded.tokenizer, tokens, loaded.pair.eos_ids)


def _truth(sweep: Sweep, sampling: SamplingSettings, loaded: Loaded) -> dict[str, dict[str, float]]:
    """Fields of Shard for each prompt of a tiny world whose true rate was sampled from these models, just so."""
    own = sweep.folder is not None and sweep.prompts is None and sweep.judge_name == "tiny" and not sweep.thinking
    if not own or sampling.truncates or not truth_fits(sweep.folder, loaded.identity):
        return {}
    table = read_truth(sweep.folder)
    how = json.loads((sweep.folder / FILE).read_text(encoding="utf-8")).get("settings", {})
    if any(how.get(name) != getattr(sampling, name) for name in ("temperature", "max_new_tokens")):
        return {}
    return {
        prompt_id: {"truth_log10": truth.log10_rate, "truth_error": truth.se_log10}
        for prompt_id, truth in table.items()
    }


def _line(shard: Shard) -> str:
    """One prompt in a line: how often it was complied with at the ends of the grid."""
    rows = shard.rows
    scored = np.bincount(rows.cell, rows.count * (rows.outcome != Outcome.UNSCORED), len(shard.alphas))
    complied = np.bincount(rows.cell, rows.count * (rows.outcome == Outcome.COMPLIED), len(shard.alphas))
    return (
        f"{shard.prompt_id}: complied {complied[-1]:,.0f}/{scored[-1]:,.0f} at {shard.alphas[-1]:g}, "
        f"{complied[0] + shard.naive_complied:,.0f}/{scored[0] + shard.naive_scored:,.0f} at 1, {len(rows.cell):,} rows"
    )


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


def _by_rows(sweep: Sweep, sampler: Sampler, prompt: Prompt, judging: Judging) -> Shard:
    """One prompt by the ordinary sampler: the grid's rollouts, then the extra ones, whose indices go on from n."""
    requests = [Request(prompt.id, alpha, i) for alpha in sweep.alphas for i in range(sweep.n)]
    rollouts = list(sampler.draw(requests))
    texts = [r.text for r in rollouts]
    naive: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
    step = sweep.rows * _BATCHES_AHEAD
    for begin in range(sweep.n, sweep.n + sweep.n_naive, step):
        more = range(begin, min(begin + step, sweep.n + sweep.n_naive))
        extra = [r.text for r in sampler.draw([Request(prompt.id, 1.0, i) for i in more])]
        for outcome in judging(prompt, extra):
            naive[outcome] += 1
    return _shard(
        sweep,
        prompt,
        naive,
        np.array(judging(prompt, texts), object),
        texts,
        cell=np.repeat(np.arange(len(sweep.alphas)), sweep.n),
        count=np.ones(len(rollouts), np.int64),
        finish=np.array([r.finish for r in rollouts]),
        length=np.array([len(r.tokens) for r in rollouts]),
        grid_logp=np.stack([r.grid_logp for r in rollouts]) if sweep.grid_logps else None,
        **{name: np.array([getattr(r, name) for r in rollouts]) for name in _SUMS},
    )


@dataclasses.dataclass(frozen=True)
class _Trees:
    """One prompt's leaves with their texts: the grid's, and the extra ones at alpha = 1, None where there are none."""

    grid: Leaves
    grid_texts: list[str]
    naive: Leaves | None
    naive_texts: list[str]


def _by_tree(
    sweep: Sweep,
    prompts: Sequence[Prompt],
    rendered: Mapping[str, Sequence[int]],
    todo: Sequence[int],
    judging: Judging,
) -> Iterator[tuple[int, Shard]]:
    """(number, shard) of each prompt in todo as it is done, in no fixed order."""
    draw = functools.partial(_trees, sweep)
    for i, trees in _shared_out(draw, {i: (prompts[i].id, rendered[prompts[i].id]) for i in todo}, sweep.processes):
        yield i, _tree_shard(sweep, prompts[i], trees, judging)


def _shared_out(work: Callable, tasks: Mapping[int, tuple], processes: int) -> Iterator[tuple[int, Any]]:
    """(key, work(*task)) of every task, in the order they are done."""
    # Several processes would each reserve the whole of an accelerator.
    if processes == 1 or len(tasks) < 2 or jax.default_backend() != "cpu":
        for key, task in tasks.items():
            yield key, work(*task)
        return
    # Spawned, as a forked process inherits threads of XLA that no longer run.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=context, initializer=_one_thread)
    try:
        futures = {pool.submit(work, *task): key for key, task in tasks.items()}
        for future in as_completed(futures):
            # Popped, so that what has been handed on is not kept until the end.
            yield futures.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """Before the first computation of a process: it is to use one core, as its siblings use the others."""
    os.environ["PJRT_NPROC"] = "1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


@functools.cache
def _loaded(sources: tuple[str, str], dtype: str) -> Loaded:
    """The models, once per process."""
    if dtype_of(dtype) == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    return load(*sources, dtype=dtype)


def _trees(sweep: Sweep, prompt_id: str, prompt: Sequence[int]) -> _Trees:
    """Draws one prompt, given as token ids; its rollouts depend on its id and not on the other prompts."""
    loaded = _loaded(sweep.sources, sweep.dtype)
    to_text = _to_text(loaded)
    words = np.frombuffer(hashlib.sha256(prompt_id.encode("utf-8")).digest()[:16], "<u4").tolist()

    def decided(tokens: np.ndarray, length: np.ndarray) -> list[Outcome | None]:
        return [
            outcome_decided(to_text(row[:n])) if n % _JUDGE_EVERY == 0 else None
            for row, n in zip(tokens, length, strict=True)
        ]

    def draw(stage: int, alphas: Sequence[float], n: int, original_only: bool) -> tuple[Leaves, list[str]]:
        leaves = sample_tree(
            loaded.pair,
            prompt,
            alphas,
            [n] * len(alphas),
            sweep.sampling,
            seed=(sweep.seed, *words, stage),
            decided=decided if sweep.judge_name == "tiny" else None,
            original_only=original_only,
            batch=sweep.rows,
        )
        return leaves, [to_text(leaves.sequence(row)) for row in range(len(leaves))]

    extra = draw(1, [1.0], sweep.n_naive, True) if sweep.n_naive else (None, [])
    return _Trees(*draw(0, sweep.alphas, sweep.n, False), *extra)


def _tree_shard(sweep: Sweep, prompt: Prompt, trees: _Trees, judging: Judging) -> Shard:
    def outcomes(leaves: Leaves, texts: Sequence[str]) -> np.ndarray:
        found = leaves.label.copy()
        open_ = [row for row, label in enumerate(found) if label is None]
        for row, outcome in zip(open_, judging(prompt, [texts[row] for row in open_]), strict=True):
            found[row] = outcome
        return found

    naive = dict.fromkeys(Outcome, 0)
    if trees.naive is not None:
        of_naive = outcomes(trees.naive, trees.naive_texts)
        naive = {outcome: trees.naive.counts[of_naive == outcome].sum() for outcome in Outcome}
    leaves = trees.grid
    if not np.isfinite(leaves.logp_original).all():
        raise RunError(f"the models gave logits that are not finite for {prompt.id!r}; use --dtype=float32")
    leaf, cell = np.nonzero(leaves.counts)
    return _shard(
        sweep,
        prompt,
        naive,
        outcomes(leaves, trees.grid_texts)[leaf],
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
