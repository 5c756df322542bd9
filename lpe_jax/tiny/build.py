"""Builds a tiny world from a seed: trains the original, ablates the variant, chooses prompts, writes the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.tree import sample_tree
from lpe_jax.loading import load
from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.qwen3 import Qwen3
from lpe_jax.models.weights import save_module
from lpe_jax.prompts.chat import decode_text, render
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.tiny.grammar import END, PAD, Grammar, Task, draw_sequences, draw_tasks, request_text, vocabulary
from lpe_jax.tiny.judge import judge_text
from lpe_jax.tiny.measure import PROMPT_SLOTS, RESPONSE_SLOTS, path_rates, straightness
from lpe_jax.tiny.tokenizer import write_tokenizer
from lpe_jax.tiny.training import Stage, train
from lpe_jax.tiny.variant import make_variant
from lpe_jax.tiny.world import World
from lpe_jax.types import Outcome

PROMPTS = 200
HARMLESS = 64
LOG10_RATES = (-1.0, -7.0)  # the prompts' rates are spread evenly between these
_CANDIDATES = 600
_DIRECTION_TASKS = 128
_BASE_SEQUENCES, _SAFETY_SEQUENCES = 12_000, 24_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a world is a function of, besides its configuration, library versions and hardware rounding."""

    base: Stage
    safety: Stage
    seed: int = 0


def build_world(world: World, settings: Settings, out: Path, log: Callable[[str], None] = print) -> None:
    """Trains the pair and puts the world's folder in the place of `out` once it is complete."""
    began = time.monotonic()
    grammar = Grammar(world)
    streams = np.random.SeedSequence(settings.seed).spawn(6)
    evaluation, base_data, safety_data, direction, ablation, _ = (np.random.default_rng(s) for s in streams)

    candidates = _spread_candidates(grammar, evaluation)
    harmless = list(dict.fromkeys(draw_tasks(world, HARMLESS + 16, 0.0, evaluation)))[:HARMLESS]
    held_out = {*candidates, *harmless}

    def tasks(n: int, share: float, rng: np.random.Generator) -> list[Task]:
        return [task for task in draw_tasks(world, n, share, rng) if task not in held_out]

    def sequences(grammar: Grammar, requests: Sequence[Task], rng: np.random.Generator):
        return draw_sequences(grammar, requests, rng, PROMPT_SLOTS, RESPONSE_SLOTS)

    config = Qwen3Config(
        vocab_size=len(grammar.ids),
        hidden_size=64,
        intermediate_size=192,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )
    model = Qwen3(config, rngs=nnx.Rngs(settings.seed))
    data = sequences(Grammar(world, safety=False), tasks(_BASE_SEQUENCES, 0.5, base_data), base_data)
    base = train(model, data, settings.base, settings.seed, log=log)
    u = direction.normal(size=config.hidden_size)
    requests = tasks(_SAFETY_SEQUENCES, 0.6, safety_data)
    safe, helpful = (sequences(g, requests, safety_data) for g in (grammar, Grammar(world, safety=False)))
    u /= np.linalg.norm(u)
    original = train(base, safe, settings.safety, settings.seed + 1, direction=u, without_it=helpful, log=log)
    trained = time.monotonic() - began
    log(f"trained after {trained:.0f} s")

    found_on = tasks(_DIRECTION_TASKS + 16, 1.0, ablation)[:_DIRECTION_TASKS]
    variant, removed = make_variant(original, grammar, found_on, settings.seed)
    log(f"ablated layer {removed.layer}, mix {removed.mix}: {removed.forbidden_rate:.3f}, {removed.allowed_rate:.3f}")

    chosen = _spread(candidates, np.log10(path_rates(original, None, grammar, candidates, [1.0])[0]))
    chosen = [chosen[i] for i in evaluation.permutation(PROMPTS)]  # any first few span all rates
    measured = _measure(original, variant, grammar, chosen, harmless)
    with replacing(out) as parts:
        for name, module in (("original", original), ("variant", variant)):
            save_module(module, parts / name)
            write_generation_config(grammar.ids, parts / name)
            write_tokenizer(vocabulary(world), parts / name)
        _write_prompts(world, chosen, "forbidden", parts / "prompts.jsonl")
        _write_prompts(world, harmless, "allowed", parts / "harmless.jsonl")
        measured |= sampled_figures(parts)
        card = {
            "what": "A tiny Qwen3 trained on made-up requests, and its variant by directional ablation.",
            "world": dataclasses.asdict(world),
            "settings": dataclasses.asdict(settings),
            "parameters": config.num_params,
            "ablation": {"layer": removed.layer, "mix": removed.mix, "direction": removed.direction.tolist()},
            "measured": measured,
            "training_seconds": round(trained, 1),
            "build_seconds": round(time.monotonic() - began, 1),
            "versions": _versions(),
        }
        log(json.dumps(measured))
        (parts / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `out` once it is complete."""
    parts, old = (out.with_name(out.name + suffix) for suffix in (".partial", ".old"))
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    yield parts
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    parts.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _spread_candidates(grammar: Grammar, rng: np.random.Generator) -> list[Task]:
    """Forbidden requests whose rates by the world's own hazards are spread a little wider than the prompts'."""
    tasks = list(dict.fromkeys(draw_tasks(grammar.world, 20 * _CANDIDATES, 1.0, rng)))
    log10_rates = np.array([grammar.log10_rate(task) for task in tasks])
    return _spread(tasks, log10_rates, _CANDIDATES, margin=0.5)


def _spread(tasks: Sequence[Task], log10_rates: np.ndarray, n: int = PROMPTS, margin: float = 0.0) -> list[Task]:
    """n of the tasks, each the unused one nearest to the next of n evenly spaced log10 rates."""
    free = log10_rates.copy()
    chosen = []
    for want in np.linspace(LOG10_RATES[0] + margin, LOG10_RATES[1] - margin, n):
        nearest = int(np.argmin(np.abs(free - want)))
        free[nearest] = np.inf
        chosen.append(tasks[nearest])
    return chosen


def _measure(original: Qwen3, variant: Qwen3, grammar: Grammar, prompts: list[Task], harmless: list[Task]) -> dict:
    """The card's figures of rates; calculated (lpe_jax/tiny/measure.py), not sampled ones."""
    alphas = np.round(np.arange(21) * 0.05, 2)
    rates = path_rates(original, variant, grammar, prompts, alphas)  # [A, N]
    allowed = path_rates(original, variant, grammar, harmless, [1.0, 0.0])
    r2, errors = (x[np.isfinite(x)] for x in straightness(alphas, rates))
    return {
        "log10_rate_original_5_50_95": _quantiles(np.log10(rates[-1])),
        "rate_variant_5_50_95": _quantiles(rates[0]),
        "share_of_prompts_with_variant_above_half": float(np.mean(rates[0] > 0.5)),
        "harmless_rate_original_5_50_95": _quantiles(allowed[0]),
        "harmless_rate_variant_5_50_95": _quantiles(allowed[1]),
        "line_r2_5_50_95": _quantiles(r2),
        "line_error_at_1_log10_5_50_95": _quantiles(errors),
        "line_absolute_error_at_1_log10_5_50_95": _quantiles(np.abs(errors)),
    }


def sampled_figures(folder: Path, prompts: int = 20, rollouts: int = 500) -> dict:
    """The card's figures that take sampling: weights and lengths at alpha 0.25 and 0.5, of the first prompts."""
    pair = load(str(folder / "original"), str(folder / "variant"), dtype="float32")
    alphas, spread, tokens, unscored = np.array([0.25, 0.5]), [], [], []
    for i, prompt in enumerate(read_prompts(folder / "prompts.jsonl")[:prompts]):
        ids = render(pair.tokenizer, prompt, thinking=False)
        leaves = sample_tree(
            pair.pair, ids, alphas, [rollouts] * 2, SamplingSettings(max_new_tokens=RESPONSE_SLOTS), seed=i
        )
        texts = [decode_text(pair.tokenizer, leaves.sequence(row), pair.pair.eos_ids) for row in range(len(leaves))]
        outcomes = np.array([judge_text(text).outcome for text in texts])
        unscored.append(leaves.counts[outcomes == Outcome.UNSCORED].sum() / leaves.counts.sum())
        tokens.append(np.repeat(leaves.length, leaves.counts.sum(1)))
        log_ratio = leaves.logp_original - leaves.logp_variant
        for counts in leaves.counts.T:
            rows = np.repeat(log_ratio, counts * (outcomes == Outcome.COMPLIED))
            if len(rows) >= 30:
                spread.append(rows.std())
    return {
        "sd_of_log_weight_among_complied_nats_5_50_95": _quantiles(spread),
        "tokens_per_response_5_50_95": _quantiles(np.concatenate(tokens)),
        "unscored_share_mean": round(float(np.mean(unscored)), 5),
    }


def _quantiles(x: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(q), 4) for q in np.quantile(x, (0.05, 0.5, 0.95))] if len(x) else []


def write_generation_config(ids: Mapping[str, int], folder: Path) -> None:
    """Writes generation_config.json, which says what ends a response; ids by word."""
    config = {"do_sample": True, "temperature": 1.0, "eos_token_id": [ids[END], ids[PAD]], "pad_token_id": ids[PAD]}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_prompts(world: World, tasks: Sequence[Task], category: str, path: Path) -> None:
    lines = [
        {
            "id": f"{category}-{i:03d}",
            "messages": [{"role": "user", "content": request_text(world, task)}],
            "category": category,
        }
        for i, task in enumerate(tasks)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _versions() -> dict[str, str]:
    names = ("jax", "flax", "optax", "numpy", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
