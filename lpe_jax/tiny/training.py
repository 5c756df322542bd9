"""Trains the original of a tiny pair: a helpful base first, then safety on top of it, as real models are made."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lpe_jax.models.qwen3 import Qwen3
from lpe_jax.tiny.grammar import Sequences
from lpe_jax.variants.ablation import without, writers


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage: AdamW with warm-up and cosine decay to 5 % of the peak rate.

    match_weight, stray_weight and stray_log_p belong to sequence_loss, along and aside to adapt.
    """

    steps: int
    learning_rate: float
    batch_size: int = 64
    warm_up: int = 50
    clip: float = 1.0
    weight_decay: float = 0.01
    match_weight: float = 0.01
    stray_weight: float = 0.002
    stray_log_p: float = -16.0
    along: float = 1.0
    aside: float = 1.0


BASE = Stage(steps=350, learning_rate=4e-3)
SAFETY = Stage(steps=550, learning_rate=3e-3, batch_size=40, along=8.0, aside=0.4)


def sequence_loss(model: Qwen3, batch: Sequences, stage: Stage) -> jax.Array:
    """Mean loss in nats per response token.

    Cross-entropy to the exact next-token distribution says nothing about log-odds far in its tail, where its
    gradient is as small as the probability itself; two squared terms do. One matches log-probabilities over the
    tokens that the grammar allows, the other pushes every token it does not allow below stray_log_p, so that rare
    answers come from the grammar's decisions and not from slips.
    """
    r = batch.target_ids.shape[1]
    x, _ = model(batch.tokens, batch.start)
    log_p = jax.nn.log_softmax(model.head(x[:, -r - 1 : -1]))  # [B, R, V]
    ids = batch.target_ids.astype(jnp.int32)
    allowed = ids >= 0  # [B, R, M]
    said = allowed[:, :, 0]  # [B, R], False after the end of the response
    got = jnp.take_along_axis(log_p, jnp.maximum(ids, 0), axis=-1)
    want = batch.target_log_p
    entropy = jnp.where(allowed, jnp.exp(want) * (want - got), 0.0).sum(-1)
    match = jnp.where(allowed, jnp.square(want - got), 0.0).sum(-1)
    excess = jnp.square(jax.nn.relu(log_p - stage.stray_log_p))  # [B, R, V]
    excess_allowed = jnp.square(jax.nn.relu(got - stage.stray_log_p))
    stray = excess.sum(-1) - jnp.where(allowed, excess_allowed, 0.0).sum(-1)
    loss = entropy + stage.match_weight * match + stage.stray_weight * stray
    return jnp.where(said, loss, 0.0).sum() / said.sum()


def adapt(model: Qwen3, change: nnx.State, u: jax.Array, stage: Stage) -> Qwen3:
    """The module plus a change of its weights that leans towards writing along the unit vector u [D].

    Of the change to what writes into the residual stream (embed_tokens, o_proj, down_proj) the part along u is taken
    `along` times and the rest `aside` times. Large models say "refuse" along one direction by themselves (Arditi et
    al. 2024); one this small spreads it over as many as it has, unless one is made cheaper to learn than the others.
    Which vector it was is forgotten afterwards: ablation has to find it in the activations.
    """
    graph, params = nnx.split(model)
    new = nnx.merge(graph, jax.tree.map(jnp.add, params, change))
    for (parameter, axis), (delta, _) in zip(writers(new), writers(nnx.merge(graph, change)), strict=True):
        rest = without(delta[...], u, axis)
        written = stage.along * (delta[...] - rest) + stage.aside * rest
        parameter[...] += written - delta[...]
    return new


def train(
    model: Qwen3,
    data: Sequences,
    stage: Stage,
    seed: int,
    direction: np.ndarray | None = None,
    without_it: Sequences | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Qwen3:
    """Runs one stage over shuffled epochs of the data and returns the trained module; the input is unchanged.

    Args:
      direction: [D], the unit vector that the change leans to; None to change all weights alike.
      without_it: with a direction, what the model must still say once that direction is ablated, as many sequences
        as data. It keeps the rest of the model helpful, so that what makes it refuse lies in the direction; without
        it, whether ablation works differs from seed to seed.
    """
    graph, params = nnx.split(model)
    if direction is None:

        def apply(p: nnx.State) -> Qwen3:
            return nnx.merge(graph, p)

        def loss(p: nnx.State, batch: Sequences) -> jax.Array:
            return sequence_loss(apply(p), batch, stage)

        return apply(minimise(loss, params, data, stage, seed, log))
    u = jnp.asarray(direction, jnp.float32)

    def apply_change(change: nnx.State) -> Qwen3:
        return adapt(model, change, u, stage)

    def loss_of_change(change: nnx.State, batch: tuple[Sequences, Sequences]) -> jax.Array:
        new = apply_change(change)
        return sequence_loss(new, batch[0], stage) + sequence_loss(_written_without(new, u), batch[1], stage)

    start = jax.tree.map(jnp.zeros_like, params)
    return apply_change(minimise(loss_of_change, start, (data, without_it), stage, seed, log))


def _written_without(model: Qwen3, u: jax.Array) -> Qwen3:
    """What lpe_jax.variants.ablation.ablate does, under trace, where gradients flow through it."""
    graph, params = nnx.split(model)
    new = nnx.merge(graph, jax.tree.map(lambda p: p, params))
    for parameter, axis in writers(new):
        parameter[...] = without(parameter[...], u, axis)
    return new


def minimise(
    loss_of: Callable[[nnx.State, Any], jax.Array],
    params: nnx.State,
    data: Any,
    stage: Stage,
    seed: int,
    log: Callable[[str], None],
) -> nnx.State:
    """Minimises loss_of(params, batch) over batches of data, a pytree of arrays with the sequences in front."""
    warm_up = min(stage.warm_up, stage.steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, stage.learning_rate, warm_up, stage.steps, end_value=0.05 * stage.learning_rate
    )
    decay = optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=stage.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(stage.clip), decay)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, batch):
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = jax.tree.map(jnp.copy, params)  # the caller's arrays must survive the donation
    rng = np.random.default_rng(seed)
    order, total = np.empty(0, np.int64), len(jax.tree.leaves(data)[0])
    began = time.monotonic()
    for step in range(stage.steps):
        if len(order) < stage.batch_size:
            order = rng.permutation(total)
        rows, order = order[: stage.batch_size], order[stage.batch_size :]
        batch = jax.tree.map(lambda a: a[rows], data)  # noqa: B023
        params, state, loss = update(params, state, batch)
        if step % 50 == 0 or step == stage.steps - 1:
            log(f"step {step + 1}/{stage.steps}: loss {float(loss):.4f} after {time.monotonic() - began:.0f} s")
    return params
