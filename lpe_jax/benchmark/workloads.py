"""What is drawn: models, prompts and requests, the same for every contestant.

Random weights give next-token distributions that are nearly uniform over a large vocabulary. So a set of ids that holds
a share p of the vocabulary ends a rollout with a probability of about p at each token: lengths then come from the
models' own stopping, in every contestant alike. The mean length that was seen is reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.errors import UserError
from lpe_jax.loading import load
from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.layout import leaves_of
from lpe_jax.models.qwen3 import Qwen3
from lpe_jax.models.weights import module_from_leaves
from lpe_jax.prompts import chat
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.tiny import world_folder
from lpe_jax.types import Request
from lpe_jax.variants.ablation import ablate

_SEED = 20


@dataclasses.dataclass(frozen=True)
class Workload:
    """One comparison.

    Attributes:
      about: one line for the table.
      unit: what ratios are of, "rollouts" or "tokens" per second.
      requests: given the round's number, what is drawn in it, prompt by prompt.
      num_tokens: ids at or above it are never drawn.
      eos_ids: any of these ends a rollout; may be empty.
      split: whether cores of a CPU are devices that share the rows.
      alone: whether the original alone is held beside the pair, as the reference.
      naive: rollouts of one prompt that the prefix tree draws of the original; 0 if this is no naive reference.
    """

    name: str
    about: str
    unit: str
    original: Qwen3
    variant: Qwen3
    prompts: Mapping[str, Sequence[int]]
    requests: Callable[[int], list[Request]]
    settings: SamplingSettings
    batch_size: int
    num_tokens: int
    eos_ids: tuple[int, ...]
    to_text: Callable[[Sequence[int]], str]
    split: bool = False
    alone: bool = False
    naive: int = 0


@dataclasses.dataclass(frozen=True)
class _Random:
    """A workload of random weights: `prompts` prompts of `length` tokens, at each of alphas n rollouts of each."""

    about: str
    unit: str
    config: Qwen3Config
    batch_size: int
    max_new_tokens: int
    mean_length: float | None  # None: nothing ends a rollout early
    prompts: int
    length: int
    alphas: tuple[float, ...]
    n: int
    dtype: str = "float32"
    alone: bool = False


def _config(vocabulary: int, hidden: int, **fields) -> Qwen3Config:
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_layers": 8,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    }
    return Qwen3Config(**(shape | fields))


# Qwen3-0.6B's shape with 8 of its 28 layers.
_REAL = _config(151_936, 1024)
_SMALL = _config(4096, 512, num_heads=8, num_kv_heads=4, head_dim=64)
_SMOKE = _config(256, 32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
_QWEN3_4B = _config(151_936, 2560, intermediate_size=9728, num_layers=36, num_heads=32)

_RANDOM = {
    "vocab4096": _Random(
        "hidden 512, 8 layers, vocabulary 4,096, 32-token prompts, 32 tokens each",
        *("tokens", _SMALL, 128, 32, None, 16, 32, (0.5,), 8),
    ),
    "real60": _Random(
        "hidden 1,024, 8 layers, 16 query and 8 key-value heads of 128, vocabulary 151,936, 60-token prompts, "
        "16 tokens each, one batch",
        *("tokens", _REAL, 32, 16, None, 4, 60, (0.5,), 8),
    ),
    "real60-eos": _Random(
        "the same shapes, 4 prompts x 64 rollouts, at most 48 tokens, EOS at random with a third of that as the mean",
        *("rollouts", _REAL, 32, 48, 16.0, 4, 60, (0.75, 0.5), 32),
    ),
    "real512": _Random(
        "the same shapes, 512-token prompts, 4 x 64 rollouts, at most 48 tokens, EOS at random, a third as the mean",
        *("rollouts", _REAL, 32, 48, 16.0, 4, 512, (0.75, 0.5), 32),
    ),
    "dual": _Random(
        "hidden 1,024, 8 layers, vocabulary 151,936: both models against the original alone, 16 tokens each",
        *("tokens", _REAL, 32, 16, None, 4, 60, (1.0,), 8),
        alone=True,
    ),
}
GPU = {
    f"qwen3-4b-{rows}": _Random(
        f"Qwen3-4B's shapes in bfloat16, {rows} rows, 60-token prompts, 64 tokens each",
        *("tokens", _QWEN3_4B, rows, 64, None, rows // 8, 60, (0.5,), 8),
        dtype="bfloat16",
    )
    for rows in (32, 128, 512, 1024)
}
EMBEDDED = ("embedded", "naive")
EMBEDDED_ROWS = 256
NAMES = (*EMBEDDED, *_RANDOM)


def build(name: str, quick: bool = False) -> Workload:
    """The workload of that name; quick shrinks it to seconds.

    Raises:
      UserError: there is none, or it takes a GPU that is not there.
    """
    if name in EMBEDDED:
        return _embedded(name, quick)
    if name in GPU and jax.default_backend() != "gpu":
        raise UserError(f"--workloads={name} takes a GPU, and JAX sees none; leave it out")
    if name not in _RANDOM | GPU:
        raise UserError(f"--workloads={name} is none of {', '.join((*NAMES, *GPU))}")
    recipe = (_RANDOM | GPU)[name]
    return _random(name, _smoke(recipe) if quick else recipe)


def _smoke(recipe: _Random) -> _Random:
    """The same comparison in seconds."""
    mean = None if recipe.mean_length is None else 2.0
    small = {"about": f"smoke test of: {recipe.about}", "batch_size": 8, "max_new_tokens": 6, "length": 12, "n": 8}
    return dataclasses.replace(recipe, config=_SMOKE, mean_length=mean, prompts=2, dtype="float32", **small)


def _random(name: str, recipe: _Random) -> Workload:
    config, rng = recipe.config, np.random.default_rng(_SEED)
    original = random_module(config, jnp.dtype(recipe.dtype))
    prompts = {f"p{i}": rng.integers(0, config.vocab_size, recipe.length).tolist() for i in range(recipe.prompts)}
    eos: list[int] = []
    if recipe.mean_length is not None:
        share = stop_probability(recipe.mean_length, recipe.max_new_tokens)
        eos = rng.choice(config.vocab_size, round(share * config.vocab_size), replace=False).tolist()
    return Workload(
        name=name,
        about=recipe.about,
        unit=recipe.unit,
        original=original,
        variant=ablate(original, rng.standard_normal(config.hidden_size)),
        prompts=prompts,
        requests=_requests(list(prompts), recipe.alphas, recipe.n),
        settings=SamplingSettings(max_new_tokens=recipe.max_new_tokens),
        batch_size=recipe.batch_size,
        num_tokens=config.vocab_size,
        eos_ids=tuple(sorted(eos)),
        to_text=_spelled,
        alone=recipe.alone,
    )


def _embedded(name: str, quick: bool) -> Workload:
    """The package's own pair on its own prompts, as its programs render, decode and stop them."""
    folder = world_folder()
    loaded = load(str(folder / "original"), str(folder / "variant"), dtype="float32")
    naive = (2_000 if quick else 100_000) if name == "naive" else 0
    asked = read_prompts(folder / "prompts.jsonl")[: 1 if naive else 2 if quick else 8]
    prompts = {prompt.id: chat.render(loaded.tokenizer, prompt, thinking=False) for prompt in asked}
    alphas, n = ((1.0,), 64 if quick else 5_000) if naive else ((1.0, 0.7, 0.4), 8 if quick else 64)
    drawn = len(prompts) * len(alphas) * n
    about = f"embedded pair, {len(prompts)} prompts x {len(alphas)} alphas x {n} rollouts, EOS as it was trained"
    if naive:
        about = f"embedded pair, naive reference of one prompt: {naive:,} rollouts by tree, {drawn:,} by plain rows"
    return Workload(
        name=name,
        about=about,
        unit="rollouts",
        original=loaded.pair.model(0),
        variant=loaded.pair.model(1),
        prompts=prompts,
        requests=_requests(list(prompts), alphas, n),
        settings=SamplingSettings(max_new_tokens=64),
        batch_size=32 if quick else EMBEDDED_ROWS,
        num_tokens=loaded.pair.num_tokens,
        eos_ids=loaded.pair.eos_ids,
        to_text=loaded.text,
        split=True,
        naive=naive,
    )


def _requests(prompts: Sequence[str], alphas: Sequence[float], n: int) -> Callable[[int], list[Request]]:
    def of_round(number: int) -> list[Request]:
        return [Request(p, a, number * n + i) for p in prompts for a in alphas for i in range(n)]

    return of_round


def _spelled(tokens: Sequence[int]) -> str:
    """Text where there is no tokenizer."""
    return " ".join(map(str, tokens))


def stop_probability(mean: float, longest: int) -> float:
    """The probability of stopping at each token that gives lengths up to `longest` this mean, (1 − (1 − p)^T) / p."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - (1 - middle) ** longest) / middle > mean else (low, middle)
    return high


def random_module(config: Qwen3Config, dtype: jnp.dtype) -> Qwen3:
    """A model as Qwen3's own initialisation makes it: normal weights of standard deviation 0.02, norms 1."""

    @jax.jit
    def normal(key: jax.Array, like: jax.Array) -> jax.Array:
        return (0.02 * jax.random.normal(key, like.shape)).astype(dtype)

    leaves = {}
    for i, leaf in enumerate(leaves_of(config)):
        ones = jnp.ones(leaf.shape(config), dtype)
        leaves[leaf.name] = ones if "norm" in leaf.name else normal(jax.random.key(i), ones)
    return module_from_leaves(config, leaves)
