"""Our own engine, as the programs run it: requests in, rollouts with their text and sums out."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lpe_jax.benchmark.rounds import Work
from lpe_jax.benchmark.workloads import Workload
from lpe_jax.decoding.sampler import Sampler, slots_for
from lpe_jax.decoding.tree import sample_tree
from lpe_jax.models.pair import Pair, pair_modules
from lpe_jax.tiny.judge import outcome_decided

# Logits of the same weights may differ by so much between two float32 programs; bfloat16 keeps 8 bits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}


# How a pair keeps its weights.
MODES = ("ablated", "shared", "copies")


def pair_of(workload: Workload, mode: str) -> Pair:
    """The workload's models as a pair."""
    return pair_modules(
        workload.original, workload.variant, num_tokens=workload.num_tokens, eos_ids=workload.eos_ids, mode=mode
    )


def sampler_of(workload: Workload, pair: Pair, mesh: Mesh | None = None, sums: bool = True) -> Sampler:
    """What a program would draw this workload with."""
    longest = workload.settings.max_new_tokens
    return Sampler(
        pair=pair,
        prompts=workload.prompts,
        to_text=workload.to_text,
        settings=workload.settings,
        seed=0,
        batch_size=workload.batch_size,
        prompt_slots=slots_for(workload.prompts, pair.config.max_position_embeddings, longest),
        mesh=mesh,
        sums=sums,
    )


def draw(sampler: Sampler, workload: Workload, number: int) -> Work:
    """All of a round's requests."""
    lengths = [len(rollout.tokens) for rollout in sampler.draw(workload.requests(number))]
    return Work(len(lengths), sum(lengths))


def draw_tree(pair: Pair, workload: Workload, number: int, decides: bool) -> Work:
    """The naive reference of the workload's first prompt by prefix tree; texts included.

    Args:
      decides: stop at prefixes that settle the outcome, as a grid sweep of a tiny world does.
    """
    decided = functools.partial(_decided, workload.to_text) if decides else None
    prompt = next(iter(workload.prompts.values()))
    leaves = sample_tree(
        pair,
        prompt,
        [1.0],
        [workload.naive],
        workload.settings,
        seed=number,
        decided=decided,
        original_only=True,
        batch=workload.batch_size,
    )
    for row in range(len(leaves)):
        workload.to_text(leaves.sequence(row))
    return Work(int(leaves.counts.sum()), int((leaves.counts[:, 0] * leaves.length).sum()))


def _decided(to_text, tokens: np.ndarray, length: np.ndarray) -> list:
    return [outcome_decided(to_text(row[:n])) if n % 8 == 0 else None for row, n in zip(tokens, length, strict=True)]


@jax.jit
def _logits(pair: Pair, tokens: jax.Array) -> jax.Array:
    return pair.head(pair.forward(tokens[None], jnp.zeros(1, jnp.int32))[0])[:, 0]


def logits(pair: Pair, tokens) -> np.ndarray:
    """Both models' logits [2, T, V] of a prompt."""
    return np.asarray(_logits(pair, jnp.asarray(tokens, jnp.int32)))
