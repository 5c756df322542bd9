"""Hand counts against what is traced: every product of matrices in one step, and every array it reads."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.models.pair import abstract_pair
from lpe_jax.plan import PAIR_MODES
from lpe_jax.planning.chips import CHIPS
from lpe_jax.planning.counts import Step, Work, count_step, weights_read
from tests.helpers import tiny_config

ROWS, PROMPT, RESPONSE = 16, 24, 40


def abstract_sampler(mode="copies", models=2, grid=None, **overrides):
    config = tiny_config(**overrides)
    pair = abstract_pair(config, doubled=PAIR_MODES[mode], num_tokens=60, eos_ids=(3,), dtype=jnp.float32)
    pair = dataclasses.replace(pair, models=models)
    return Sampler(pair, {}, str, SamplingSettings(RESPONSE), 0, ROWS, PROMPT, None, grid)


def products(jaxpr):
    """Operations of all products of matrices in a traced program, the bodies of its loops taken once."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        for value in jax.tree.leaves(
            dict(equation.params), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                total += products(getattr(value, "jaxpr", value))
    return total


def traced(sampler):
    from lpe_jax.decoding.loop import decode

    return sampler._call(decode.trace, *sampler.shapes()).jaxpr.jaxpr


def counted(sampler, mode, grid=0):
    config = sampler.pair.config
    return count_step(
        config,
        models=sampler.pair.models,
        weight_bytes=weights_read(config, PAIR_MODES[mode], 4),
        rows=ROWS,
        groups=sampler.groups,
        prompt_slots=PROMPT,
        response_slots=RESPONSE,
        itemsize=4,
        grid=grid,
    )


@pytest.mark.parametrize(("mode", "models"), [("copies", 2), ("ablated", 2), ("ablated", 1)])
@pytest.mark.parametrize("tied", [True, False])
def test_products_are_those_of_one_traced_step(mode, models, tied):
    sampler = abstract_sampler(mode, models, tie_word_embeddings=tied, num_layers=3)
    c = sampler.pair.config
    # Of one embedding both first layers project the same.
    once = mode == "ablated" and models == 2
    same = once * 2 * ROWS * c.hidden_size * c.head_dim * (c.num_heads + 2 * c.num_kv_heads)
    assert counted(sampler, mode).flops - same == products(traced(sampler)) > 0


def test_a_grid_adds_no_products_but_passes_over_the_logits():
    with_grid = abstract_sampler(grid=(1.0, 0.5, 0.0))
    assert counted(with_grid, "copies", 3).flops == products(traced(with_grid))
    logits = [counted(with_grid, "copies", grid).parts["logits"].bytes for grid in (0, 1, 3)]
    one = 4 * 2 * ROWS * 64
    assert logits == [3 * one, 5 * one, 9 * one]


@pytest.mark.parametrize("mode", ["copies", "shared", "ablated"])
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_of_the_arrays(mode, tied):
    sampler = abstract_sampler(mode, tie_word_embeddings=tied)
    pair, (prompts, _, rows, _) = sampler.pair, sampler.shapes()
    step, config = counted(sampler, mode), pair.config
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    looked_up = 0 if tied else (1 if mode == "ablated" else 2) * 4 * config.vocab_size * config.hidden_size
    assert step.parts["matrices"].bytes == size(pair.leaves) - looked_up
    written = 2 * 4 * config.num_layers * 2 * ROWS * config.num_kv_heads * config.head_dim
    assert step.parts["attention"].bytes == size((prompts.k, prompts.v)) + size(rows.responses) + written


def test_slots_that_are_not_read_cost_nothing():
    """A kernel that reads a row's n slots where it has n: the mean over a rollout of T tokens is what is counted."""
    c, given = (
        tiny_config(),
        {"models": 2, "weight_bytes": 800, "rows": 16, "groups": 2, "prompt_slots": 8, "itemsize": 2},
    )
    tokens = 40
    each = [count_step(c, **given, response_slots=n).parts["attention"] for n in range(1, tokens + 1)]
    mean = count_step(c, **given, response_slots=(tokens + 1) / 2).parts["attention"]
    assert mean.bytes == sum(work.bytes for work in each) / tokens
    assert mean.flops == sum(work.flops for work in each) / tokens
    of_one = 2 * 2 * c.num_layers * 2 * c.num_kv_heads * c.head_dim
    assert each[-1].bytes - mean.bytes == of_one * 16 * (40 - 20.5)


def test_devices_that_share_a_copy_share_its_work():
    config = tiny_config()
    given = {"models": 2, "weight_bytes": 800, "rows": 16, "groups": 2, "prompt_slots": 8, "response_slots": 8}
    whole, half = (count_step(config, **given, itemsize=2, model_parallel=ways) for ways in (1, 2))
    assert half.flops == whole.flops / 2 and half.bytes == whole.bytes / 2


def test_parts_follow_each_other_each_by_its_slower_side():
    chip = CHIPS["v5e"]
    step = Step({"a": Work(chip.flops, 0.0), "b": Work(chip.flops, 2 * chip.bandwidth)}, 8, 2)
    assert step.seconds(chip) == pytest.approx(1 + 2)
    assert dataclasses.replace(step, itemsize=4).seconds(chip) == pytest.approx(6 + 6)
