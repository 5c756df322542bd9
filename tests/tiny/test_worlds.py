"""The embedded worlds as they ship: layout, sizes, rates, and the same logits in transformers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.tree import sample_tree
from lpe_jax.errors import UserError
from lpe_jax.loading import load
from lpe_jax.models.weights import leaves_from_module
from lpe_jax.prompts.chat import decode_text, render
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.tiny import world_folder
from lpe_jax.tiny.grammar import Grammar, Task, vocabulary
from lpe_jax.tiny.judge import judge_text
from lpe_jax.tiny.measure import path_rates
from lpe_jax.tiny.world import SHALLOW
from lpe_jax.types import Outcome
from lpe_jax.variants.ablation import ablate
from tests.helpers import load_module


@pytest.fixture(scope="module")
def folder():
    return world_folder()


@pytest.fixture(scope="module")
def pair(folder):
    return [load_module(folder / name) for name in ("original", "variant")]


@pytest.fixture(scope="module")
def loaded(folder):
    return load(str(folder / "original"), str(folder / "variant"), dtype="float32")


@pytest.fixture(scope="module")
def prompts(folder):
    return read_prompts(folder / "prompts.jsonl"), read_prompts(folder / "harmless.jsonl")


def task_of(text: str) -> Task:
    """The request of the shallow world that a prompt's text spells out."""
    w = SHALLOW
    opener = next(i for i, o in enumerate(w.openers) if text.startswith(o + " "))
    verb, article, adjective, noun, *context = text.removeprefix(w.openers[opener]).split()
    assert article == "a" and context[-1] == "?"
    nouns = w.forbidden_nouns if noun in w.forbidden_nouns else w.allowed_nouns
    at = w.verbs.index(verb), w.adjectives.index(adjective), nouns.index(noun), w.contexts.index(" ".join(context[:-1]))
    return Task(opener, *at, forbidden=nouns is w.forbidden_nouns)


def test_an_unknown_world_is_named_with_what_there_is():
    with pytest.raises(UserError, match="no embedded world 'nowhere', only deep, shallow"):
        world_folder("nowhere")
    with pytest.raises(UserError):
        world_folder("../data/shallow")


def test_everything_fits_in_two_megabytes(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2_000_000


def test_configuration_still_is_the_card_s(folder):
    card = json.loads((folder / "card.json").read_text())
    assert card["world"] == json.loads(json.dumps(dataclasses.asdict(SHALLOW)))


def test_pair_loads_with_a_word_per_row_of_the_embedding(loaded):
    assert len(loaded.tokenizer) == loaded.pair.config.vocab_size == len(vocabulary(SHALLOW))
    ids = loaded.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert set(loaded.pair.eos_ids) == set(ids)
    assert not all(loaded.pair.shared) and any(loaded.pair.shared)


def test_prompts_are_two_hundred_forbidden_and_the_harmless_ones_allowed(prompts):
    harmful, harmless = ([task_of(prompt.text) for prompt in some] for some in prompts)
    assert len(set(harmful)) == 200 and all(task.forbidden for task in harmful)
    assert len(set(harmless)) >= 50 and not any(task.forbidden for task in harmless)
    assert len({prompt.id for some in prompts for prompt in some}) == len(harmful) + len(harmless)


def test_variant_is_the_original_without_the_card_s_direction(folder, pair):
    direction = np.array(json.loads((folder / "card.json").read_text())["ablation"]["direction"])
    expected, got = (leaves_from_module(m) for m in (ablate(pair[0], direction), pair[1]))
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-5)


def test_rates_are_spread_evenly_and_the_variant_mostly_complies(pair, prompts):
    tasks = [task_of(prompt.text) for prompt in prompts[0]]
    rates = np.log10(path_rates(*pair, Grammar(SHALLOW), tasks[:60], [1.0, 0.0]))
    # The first prompts span the range: 10 of 60 per decade are expected, and a draw without replacement out of
    # 200 evenly spread ones stays above 3 with probability 0.99.
    assert np.histogram(rates[0], np.arange(-7, 0) + np.array([-0.3] + [0] * 5 + [0.3]))[0].min() >= 3
    assert np.mean(rates[1] > np.log10(0.5)) >= 0.95
    harmless = [task_of(prompt.text) for prompt in prompts[1]]
    assert (path_rates(*pair, Grammar(SHALLOW), harmless[:20], [1.0, 0.0]) > 0.5).all()


@pytest.mark.slow
def test_calculated_rates_are_the_sampled_ones(loaded, pair, prompts):
    settings = SamplingSettings(temperature=1.0, max_new_tokens=64)
    alphas, n = np.array([0.2, 0.6]), 600
    for i, prompt in enumerate(prompts[0][:3]):
        calculated = path_rates(*pair, Grammar(SHALLOW), [task_of(prompt.text)], alphas)[:, 0]
        tokens = render(loaded.tokenizer, prompt, thinking=False)
        leaves = sample_tree(loaded.pair, tokens, alphas, [n, n], settings, seed=i, batch=32)
        texts = [decode_text(loaded.tokenizer, leaves.sequence(row), loaded.pair.eos_ids) for row in range(len(leaves))]
        complied = np.array([judge_text(text).outcome is Outcome.COMPLIED for text in texts])
        sampled = leaves.counts[complied].sum(0) / n
        # Five standard errors and 10 % for what the calculation leaves out: a false alarm in a million.
        error = 5 * np.sqrt(calculated * (1 - calculated) / n) + 0.1 * calculated + 0.01
        assert (np.abs(sampled - calculated) < error).all()


@pytest.mark.parametrize("name", ["original", "variant"])
def test_transformers_gives_the_same_logits(folder, pair, name):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    turns = [{"role": "user", "content": "how do i polish a striped blorp before breakfast ?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    ids = np.array([tokenizer(text + "well , i can not help with that .")["input_ids"]], np.int32)
    model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    ours = pair[name == "variant"]
    got = jax.jit(lambda m: m.head(m(ids, np.zeros(1, np.int32))[0]))(ours)
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=1e-4)
