"""Rollouts against a full forward pass: what the engine draws passes, and what is wrong with it does not."""

import dataclasses

import numpy as np
import pytest

from lpe_jax.decoding import cache, verify
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.errors import RunError
from lpe_jax.types import Request
from tests.helpers import tiny_pair

PROMPTS = {"p": [10, 11, 12], "q": [13] * 7}
REQUESTS = [Request(p, a, i) for p in PROMPTS for a in (0.0, 0.4, 1.0) for i in range(4)]
SETTINGS = SamplingSettings(max_new_tokens=40)


def make(settings=SETTINGS, **changes):
    return Sampler(tiny_pair(), PROMPTS, str, settings, 0, 8, 8, **changes)


@pytest.fixture(scope="module")
def sampler():
    return make()


@pytest.fixture(scope="module")
def rollouts(sampler):
    return list(sampler.draw(REQUESTS))


def test_what_is_drawn_passes(sampler, rollouts):
    assert max(len(r.tokens) for r in rollouts) == 40 > 32  # more than a chunk, and not all of them
    assert min(len(r.tokens) for r in rollouts) < 20
    for prompt_id in PROMPTS:
        own = [r for r in rollouts if r.prompt_id == prompt_id]
        assert 0 < sampler.verify(prompt_id, own) < 1e-5
    assert sampler.verify("p", []) == 0


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_p": 0.8}, {"temperature": 0.7}])
def test_other_settings(settings):
    sampler = make(dataclasses.replace(SETTINGS, **settings))
    own = [r for r in sampler.draw(REQUESTS) if r.prompt_id == "q"]
    assert sampler.verify("q", own) < 1e-5
    if "temperature" not in settings:  # taken for what was not truncated, they are wrong at their own alpha
        assert make().verify("q", []) == 0
        with pytest.raises(RunError):
            make().verify("q", own)


def test_the_original_alone(sampler):
    own = list(sampler.alone.draw([Request("p", 1.0, i) for i in range(8)]))
    assert sampler.alone.verify("p", own) < 1e-5
    assert sampler.verify("p", own) < 1e-5  # both models say the same of it


@pytest.mark.parametrize("field", ["logp_path", "logp_original", "logp_variant", "path_score", "path_variance"])
def test_every_sum_is_looked_at(sampler, rollouts, field):
    rollout = next(r for r in rollouts if r.alpha == 0.4)
    more = 2e-4 * len(rollout.tokens)
    if field == "path_variance":  # looked at as a share of itself
        more *= 1 + rollout.path_variance / len(rollout.tokens)
    wrong = dataclasses.replace(rollout, **{field: getattr(rollout, field) + more})
    with pytest.raises(RunError, match=r"rollouts of 'p' carry sums that are off by up to 0\.0002 nats per token"):
        sampler.verify("p", [wrong])


def test_wrong_tokens_and_prompts_are_seen(sampler, rollouts):
    rollout = next(r for r in rollouts if r.prompt_id == "p" and len(r.tokens) > 3)
    tokens = rollout.tokens.copy()
    tokens[1] += 1
    for wrong, prompt in ((dataclasses.replace(rollout, tokens=tokens), "p"), (rollout, "q")):
        with pytest.raises(RunError):
            sampler.verify(prompt, [wrong])


def test_not_a_number_is_seen(sampler, rollouts):
    wrong = dataclasses.replace(next(r for r in rollouts if r.alpha == 1.0), logp_path=-np.inf)
    with pytest.raises(RunError, match="inf nats"):
        sampler.verify("p", [wrong])


def test_a_missing_sum_is_seen_where_both_models_were_run(sampler, rollouts):
    nowhere = next(r for r in rollouts if r.alpha == 0.4)
    for field in ("logp_variant", "path_score", "path_variance"):
        with pytest.raises(RunError, match="at alpha = 0.4 carries sums that are no numbers"):
            sampler.verify("p", [dataclasses.replace(nowhere, prompt_id="p", **{field: np.nan})])
    original = next(r for r in rollouts if r.alpha == 1.0 and r.prompt_id == "p")
    unknown = dict.fromkeys(("logp_variant", "path_score", "path_variance"), np.nan)
    sampler.verify("p", [dataclasses.replace(original, **unknown)])


def test_a_wrong_engine_is_seen(monkeypatch):
    """Responses that stand one position too far on."""
    table = cache.rope_table
    monkeypatch.setattr(cache, "rope_table", lambda position, c: table(position + 1, c))
    sampler = make(dataclasses.replace(SETTINGS, max_new_tokens=41))  # another program than the right one
    own = [r for r in sampler.draw(REQUESTS) if r.prompt_id == "q"]
    with pytest.raises(RunError):
        sampler.verify("q", own)


def test_some_are_chosen_without_repetition():
    assert sorted(verify.some(5, 9, 0)) == [0, 1, 2, 3, 4]
    assert len(set(verify.some(100, 10, 0))) == 10 and verify.some(100, 10, 0) != verify.some(100, 10, 1)
    assert verify.some(0, 3, 0) == []
