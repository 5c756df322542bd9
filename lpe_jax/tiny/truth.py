"""The true rate of every prompt of an embedded world, for checking estimators against.

No rate of 1e-9 can be counted. It is computed from rollouts at many alphas up to 1, reweighted to alpha = 1 as one
mixture (deterministic-mixture importance sampling, the balance heuristic): every alpha's sampling density is known
exactly, so that the estimate is unbiased. The prefix-tree sampler makes rollouts whose refusal is settled nearly
free, and so each alpha gets as many as it takes to see some comply. What only the original would ever say cannot be
found by this, except by its own naive rollouts; a second naive sample that no estimate has used is kept as a check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.tree import Leaves, tree_leaves
from lpe_jax.errors import RunError
from lpe_jax.judging.base import source_digest
from lpe_jax.loading import load
from lpe_jax.models.pair import Pair
from lpe_jax.prompts.chat import decode_text, render
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.records.files import write_whole
from lpe_jax.tiny import judge as strict
from lpe_jax.types import Outcome, Verdict

FILE = "truth.json"
# The naive sample in the estimate is never cut below this, however often the prompt is complied with.
LEAST_NAIVE = 100_000
# Prefixes are judged at every so many tokens: judging costs more than going on a little too long.
_JUDGE_EVERY = 4
_PILOT = (100, 1_000, 10_000, 100_000, 1_000_000)
_PILOT_COMPLIED = 10


@dataclasses.dataclass(frozen=True)
class Bank:
    """Which rollouts the estimate rests on, naive ones apart.

    complied is how many compliant rollouts each alpha aims at, as far as `most` rollouts give them; the naive
    samples aim at ten times as many.
    """

    alphas: tuple[float, ...] = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    complied: int = 100
    most: int = 3_000_000


@dataclasses.dataclass(frozen=True)
class Rule:
    """A judge as the tree needs it: of a whole response, and of a prefix that settles the outcome (else None)."""

    name: str
    judge: Callable[[str], Verdict]
    decided: Callable[[str], Outcome | None]


STRICT = Rule(f"strict/{source_digest([Path(strict.__file__)])}", strict.judge_text, strict.outcome_decided)


@dataclasses.dataclass(frozen=True)
class Truth:
    """One prompt's true rate at alpha = 1: the share of all rollouts that comply.

    Attributes:
      log10_rate, se_log10: the estimate and its standard error; -inf and inf if no rollout complied.
      ess: effective number of compliant rollouts behind it.
      log10_bank, se_log10_bank: the same without the naive rollouts. Far below log10_rate, they tell of compliance
        that only the original finds.
      naive_complied, naive_unscored, naive_rollouts: counts at alpha = 1, part of the estimate.
      check_complied, check_rollouts: counts at alpha = 1 that the estimate has not seen.
    """

    log10_rate: float
    se_log10: float
    ess: float
    log10_bank: float
    se_log10_bank: float
    naive_complied: int
    naive_unscored: int
    naive_rollouts: int
    check_complied: int
    check_rollouts: int


def compute_truth(
    folder: Path,
    *,
    seed: int,
    n_naive: int,
    n_check: int,
    bank: Bank,
    settings: SamplingSettings,
    rule: Rule = STRICT,
    limit: int | None = None,
    processes: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The table of true rates of the world in `folder`, as it is written to truth.json.

    Args:
      folder: holds original/, variant/ and prompts.jsonl.
      seed: the table is a function of it, of the arguments and of the hardware's rounding.
      n_naive, n_check: at most so many rollouts of the original, in the estimate and beside it. Prompts that are
        often complied with get fewer: as many as give about ten times bank.complied compliant ones, and in the
        estimate LEAST_NAIVE or more.
      bank: rollouts at the other alphas.
      settings: temperature and max_new_tokens.
      limit: the first so many prompts only.
      processes: prompts are shared out among so many; the table does not depend on it.
      progress: gets a line per prompt.

    Raises:
      CheckpointError, PairError, PromptError: the folder cannot be loaded.
    """
    loaded = load(str(folder / "original"), str(folder / "variant"), dtype="float32")
    prompts = read_prompts(folder / "prompts.jsonl")[:limit]
    work = functools.partial(
        _one_prompt, folder, seed=seed, n_naive=n_naive, n_check=n_check, bank=bank, settings=settings, rule=rule
    )
    table = {}
    with contextlib.ExitStack() as stack:
        run = map
        if processes > 1:
            # Spawned, as a forked process inherits threads of XLA that no longer run.
            context = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(processes, mp_context=context)).map
        for prompt, (truth, nodes, seconds) in zip(prompts, run(work, range(len(prompts))), strict=True):
            table[prompt.id] = truth
            progress(
                f"{len(table)}/{len(prompts)} {prompt.id}: log10 rate {truth.log10_rate:.3f} ± {truth.se_log10:.3f}, "
                f"ess {truth.ess:.0f}, naive {truth.naive_complied}/{truth.naive_rollouts:,}, check "
                f"{truth.check_complied}/{truth.check_rollouts:,}, {nodes:,} nodes, {seconds:.1f} s"
            )
    return {
        "world": {"name": folder.name, **loaded.identity},
        "judge": rule.name,
        "settings": {
            "seed": seed,
            "n_naive": n_naive,
            "n_check": n_check,
            "bank": dataclasses.asdict(bank),
            "temperature": settings.temperature,
            "max_new_tokens": settings.max_new_tokens,
        },
        "check": check_bins(table.values()),
        "prompts": {prompt_id: _finite(dataclasses.asdict(truth)) for prompt_id, truth in table.items()},
    }


@functools.cache
def _world(folder: Path):
    """A folder's pair, tokenizer and prompts, loaded once per process."""
    loaded = load(str(folder / "original"), str(folder / "variant"), dtype="float32")
    return loaded.pair, loaded.tokenizer, read_prompts(folder / "prompts.jsonl")


def _one_prompt(folder: Path, i: int, *, seed: int, **arguments) -> tuple[Truth, int, float]:
    """prompt_truth of the i-th prompt, and the seconds it took."""
    began = time.monotonic()
    pair, tokenizer, prompts = _world(folder)
    tokens = render(tokenizer, prompts[i], thinking=False)
    truth, nodes = prompt_truth(
        pair, tokens, lambda t: decode_text(tokenizer, t, pair.eos_ids), seed=(seed, i), **arguments
    )
    return truth, nodes, time.monotonic() - began


def prompt_truth(
    pair: Pair,
    prompt: Sequence[int],
    text_of: Callable[[Sequence[int]], str],
    *,
    seed: Sequence[int],
    n_naive: int,
    n_check: int,
    bank: Bank,
    settings: SamplingSettings,
    rule: Rule = STRICT,
) -> tuple[Truth, int]:
    """The truth of one prompt's token ids, and the node evaluations it took; arguments as in compute_truth."""
    nodes = 0

    def sample(stage: int, alphas, rollouts, original_only: bool = False) -> _Sample:
        nonlocal nodes
        drawn = _draw(
            pair,
            prompt,
            alphas,
            rollouts,
            settings,
            (*seed, stage),
            text_of,
            rule,
            original_only=original_only,
        )
        nodes += drawn.nodes
        return drawn

    alphas = np.array([*bank.alphas, 1.0])
    # How many to draw is settled by rollouts that are then thrown away: the estimate stays unbiased.
    share = np.full(len(alphas), np.nan)
    for stage, n in enumerate(_PILOT):
        unknown = np.isnan(share)
        complied = sample(stage, alphas, np.where(unknown, n, 0)).complied
        known = unknown & ((complied >= _PILOT_COMPLIED) | (n == _PILOT[-1]))
        share[known] = np.maximum(complied[known], 1) / n
        if not np.isnan(share).any():
            break
    rollouts = np.append(
        np.clip(bank.complied / share[:-1], min(bank.complied, bank.most), bank.most),
        [max(_naive(n_naive, share[-1], bank), min(n_naive, LEAST_NAIVE))],
    ).astype(np.int64)

    main = sample(len(_PILOT), alphas, rollouts)
    check_rollouts = _naive(n_check, share[-1], bank)
    check = sample(len(_PILOT) + 1, [1.0], [check_rollouts], original_only=True)

    rate, se, ess = mixture_rate(main.counts, main.logp, rollouts)
    without = np.append(rollouts[:-1], 0)
    bank_rate, bank_se, _ = mixture_rate(main.counts * (without > 0), main.logp, without)
    truth = Truth(
        log10_rate=rate,
        se_log10=se,
        ess=ess,
        log10_bank=bank_rate,
        se_log10_bank=bank_se,
        naive_complied=int(main.complied[-1]),
        naive_unscored=int(main.unscored[-1]),
        naive_rollouts=int(rollouts[-1]),
        check_complied=int(check.complied[-1]),
        check_rollouts=check_rollouts,
    )
    return truth, nodes


def _naive(n: int, share: float, bank: Bank) -> int:
    return min(n, math.ceil(10 * bank.complied / share))


@dataclasses.dataclass(frozen=True)
class _Sample:
    """The n distinct compliant responses of a sample: counts [n, A], logp [n, A]; and sums over all [A]."""

    counts: np.ndarray
    logp: np.ndarray
    unscored: np.ndarray
    nodes: int

    @property
    def complied(self) -> np.ndarray:
        return self.counts.sum(axis=0)


def _draw(pair, prompt, alphas, rollouts, settings, seed, text_of, rule: Rule, *, original_only: bool) -> _Sample:
    def decided(tokens: np.ndarray, length: np.ndarray) -> list[Outcome | None]:
        return [
            rule.decided(text_of(row[:n])) if n % _JUDGE_EVERY == 0 else None
            for row, n in zip(tokens, length, strict=True)
        ]

    counts, logp = [np.zeros((0, len(alphas)), np.int64)], [np.zeros((0, len(alphas)))]
    unscored, nodes = np.zeros(len(alphas), np.int64), 0
    for leaves in tree_leaves(
        pair, prompt, alphas, rollouts, settings, seed=seed, decided=decided, original_only=original_only
    ):
        nodes += leaves.nodes
        outcomes = np.array([_outcome(leaves, i, text_of, rule) for i in range(len(leaves))], object)
        complied = outcomes == Outcome.COMPLIED
        counts.append(leaves.counts[complied])
        logp.append(leaves.logp[complied])
        unscored += leaves.counts[outcomes == Outcome.UNSCORED].sum(axis=0)
    return _Sample(np.concatenate(counts), np.concatenate(logp), unscored, nodes)


def _outcome(leaves: Leaves, row: int, text_of, rule: Rule) -> Outcome:
    if leaves.finish[row] == "decided":
        return leaves.label[row]
    return rule.judge(text_of(leaves.sequence(row))).outcome


def mixture_rate(counts: np.ndarray, logp: np.ndarray, rollouts: np.ndarray) -> tuple[float, float, float]:
    """Deterministic-mixture importance sampling of the probability of the responses listed.

    Each counts with p(x) / Σ_k N_k p_k(x), p the last column (Veach & Guibas 1995, the balance heuristic; Owen &
    Zhou 2000). The variance is that of N_k independent draws from each p_k.

    Args:
      counts: [n, A] how often each response was drawn at each alpha.
      logp: [n, A] its log-probability there, in nats; the last alpha is the target.
      rollouts: [A] N_k, all rollouts that were drawn; 0 leaves an alpha out.

    Returns:
      log10 of the rate, the standard error of that (delta method), and the effective sample size.
      (-inf, inf, 0) when nothing was drawn.
    """
    drawn = counts.sum(axis=1) > 0
    counts, logp = counts[drawn], logp[drawn]
    if not len(counts):
        return -math.inf, math.inf, 0.0
    used = rollouts > 0
    counts, n = counts[:, used], rollouts[used].astype(np.float64)
    log_weight = logp[:, -1] - np.logaddexp.reduce(np.log(n) + logp[:, used], axis=1)
    scale = log_weight.max()
    weight = np.exp(log_weight - scale)[:, None]  # [n, 1]
    of_alpha = (counts * weight).sum(axis=0)  # [A]
    squares = (counts * weight**2).sum(axis=0)
    total = of_alpha.sum()
    # N/(N-1) makes the variance of each alpha's draws unbiased; of one draw nothing is known.
    variance = np.sum((squares - of_alpha**2 / n) * n / np.maximum(n - 1, 1))
    return (
        float((scale + np.log(total)) / math.log(10)),
        float(np.sqrt(max(variance, 0.0)) / total / math.log(10)),
        float(total**2 / squares.sum()),
    )


def check_bins(truths) -> list[dict[str, float]]:
    """The check sample against what the rates predict, prompts grouped by expected hits in decades.

    Returns:
      For each group: from and to (expected hits of one prompt), prompts, expected and observed hits of all, and z,
      the difference in standard deviations, of the binomial counts and the estimates together.
    """
    groups: dict[int, list[tuple[float, float, int]]] = {}
    for truth in truths:
        if not truth.check_rollouts:
            continue
        rate = 10.0**truth.log10_rate
        expected = truth.check_rollouts * rate
        error = expected * math.log(10) * truth.se_log10 if rate else 0.0
        decade = max(-2, math.floor(math.log10(expected))) if rate else -2
        variance = expected * (1 - rate) + error**2
        groups.setdefault(decade, []).append((expected, variance, truth.check_complied))
    bins = []
    for decade, rows in sorted(groups.items()):
        expected, variance, observed = (sum(column) for column in zip(*rows, strict=True))
        bins.append(
            {
                "from": 0.0 if decade == -2 else 10.0**decade,
                "to": 10.0 ** (decade + 1),
                "prompts": len(rows),
                "expected": expected,
                "observed": observed,
                "z": (observed - expected) / math.sqrt(variance) if variance else 0.0,
            }
        )
    return bins


def describe_check(bins: Sequence[dict[str, float]]) -> str:
    """The check as lines of text."""
    lines = ["expected hits per prompt    prompts     expected  observed       z"]
    for b in bins:
        group = f"{b['from']:10g} – {b['to']:<10g} {b['prompts']:10d}"
        lines.append(f"{group} {b['expected']:12.2f} {b['observed']:9d} {b['z']:+7.2f}")
    return "\n".join(lines)


def write_truth(folder: Path, table: dict[str, Any]) -> Path:
    """Writes the table to truth.json in `folder`; the file is there whole or not at all."""
    path = folder / FILE
    write_whole(path, json.dumps(table, indent=1, allow_nan=False) + "\n")
    return path


def read_truth(folder: Path) -> dict[str, Truth]:
    """The truth of every prompt, by prompt id.

    Raises:
      RunError: truth.json is missing or not such a table.
    """
    path = folder / FILE
    infinite = {
        "log10_rate": -math.inf,
        "se_log10": math.inf,
        "log10_bank": -math.inf,
        "se_log10_bank": math.inf,
    }
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        return {
            prompt_id: Truth(**{name: infinite[name] if value is None else value for name, value in row.items()})
            for prompt_id, row in rows.items()
        }
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; compute the true rates of this world first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is not a table of true rates ({error!r}); compute it anew") from None


def truth_fits(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether truth.json is there and was sampled from the weights that identity (lpe_jax.loading) describes."""
    try:
        world = json.loads((folder / FILE).read_text(encoding="utf-8"))["world"]
        return all(world[name] == identity[name] for name in ("original_weights", "variant_weights"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def truth_sampling(folder: Path) -> tuple[float | None, int | None]:
    """(temperature, max_new_tokens) that truth.json was sampled with; None where it does not say."""
    settings = json.loads((folder / FILE).read_text(encoding="utf-8")).get("settings", {})
    return settings.get("temperature"), settings.get("max_new_tokens")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null stands for it."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
