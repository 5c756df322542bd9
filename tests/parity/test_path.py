"""The dual-model path against a two-model PyTorch computation, through the compiled decode itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lpe_jax.decoding import path as path_step
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler, slots_for
from lpe_jax.models.checkpoint import open_checkpoint, verified
from lpe_jax.models.pair import load_pair
from lpe_jax.types import Request
from tests.helpers import hf_model

ALPHAS = (0.0, 0.35, 1.0, 1.5)
NUM_TOKENS = 90  # of a vocabulary of 97: the rest is padding and must get no probability


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    original, variant = hf_model(0), hf_model(0)
    with torch.no_grad():
        for layer in variant.model.layers:
            layer.self_attn.o_proj.weight *= -0.5
            layer.mlp.down_proj.weight *= 1.5
    original.save_pretrained(folder / "original")
    variant.save_pretrained(folder / "variant")
    checkpoints = [verified(open_checkpoint(str(folder / n)), jnp.float32) for n in ("original", "variant")]
    pair = load_pair(*checkpoints, num_tokens=NUM_TOKENS, eos_ids=(5, 11), dtype=jnp.float32)
    return original, variant, pair


def torch_model_logits(model, tokens):
    with torch.no_grad():
        return model(torch.as_tensor(tokens)[None]).logits[0, :, :NUM_TOKENS].double()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_mixed_logits(models, alpha):
    original, variant, pair = models
    tokens = np.random.default_rng(1).integers(0, NUM_TOKENS, 50)
    raw = jax.jit(lambda p, t, s: p.head(p.forward(t, s)[0]))(pair, tokens[None], jnp.zeros(1, jnp.int32))
    own = path_step.model_logits(jnp.moveaxis(raw[:, 0], -1, 0), NUM_TOKENS, 1.0)
    ours = path_step.path_logits(own, jnp.full(50, alpha), SamplingSettings()).T
    expected = alpha * torch_model_logits(original, tokens) + (1 - alpha) * torch_model_logits(variant, tokens)
    np.testing.assert_allclose(ours[:, :NUM_TOKENS], expected, atol=1e-4, rtol=0)
    assert np.isneginf(np.asarray(ours[:, NUM_TOKENS:])).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sums_of_sampled_rollouts(models, temperature):
    """Every sum a rollout carries, recomputed in PyTorch in float64 from its tokens; the EOS token included."""
    original, variant, pair = models
    rng = np.random.default_rng(2)
    prompts = {f"p{n}": rng.integers(12, NUM_TOKENS, n).tolist() for n in (3, 9, 14)}
    settings = SamplingSettings(max_new_tokens=24, temperature=temperature)
    sampler = Sampler(pair, prompts, str, settings, 7, 16, slots_for(prompts, 2048, 24))
    requests = [Request(p, a, i) for p in prompts for a in ALPHAS for i in range(4)]
    rollouts = list(sampler.draw(requests))
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        prompt, response = prompts[rollout.prompt_id], rollout.tokens
        at = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        both = [torch_model_logits(m, [*prompt, *response])[at] / temperature for m in (original, variant)]
        mixed = rollout.alpha * both[0] + (1 - rollout.alpha) * both[1]
        index = torch.as_tensor(response)[:, None].long()
        difference, p = both[0] - both[1], torch.softmax(mixed, -1)
        mean = (p * difference).sum(-1, keepdim=True)
        expected = {
            "logp_path": torch.log_softmax(mixed, -1).gather(1, index).sum(),
            "logp_original": torch.log_softmax(both[0], -1).gather(1, index).sum(),
            "logp_variant": torch.log_softmax(both[1], -1).gather(1, index).sum(),
            "path_score": (difference.gather(1, index) - mean).sum(),
            "path_variance": (p * (difference - mean) ** 2).sum(),
        }
        for name, value in expected.items():
            got = getattr(rollout, name)
            assert got == pytest.approx(value.item(), abs=1e-4 * len(response), rel=1e-5), (name, rollout)


def test_endpoints_are_the_models_themselves(models):
    _, _, pair = models
    prompts = {"p": [20, 21, 22]}
    sampler = Sampler(pair, prompts, str, SamplingSettings(max_new_tokens=12), 0, 8, 16)
    for rollout in sampler.draw([Request("p", 1.0, i) for i in range(8)]):
        assert rollout.logp_path == pytest.approx(rollout.logp_original, abs=1e-5)
    for rollout in sampler.draw([Request("p", 0.0, i) for i in range(8)]):
        assert rollout.logp_path == pytest.approx(rollout.logp_variant, abs=1e-5)


def test_score_is_the_derivative_of_log_p(models):
    """Path score and variance against finite differences in alpha of log p_alpha of a fixed string."""
    original, variant, pair = models
    sampler = Sampler(pair, {"p": [30, 31]}, str, SamplingSettings(max_new_tokens=10), 3, 8, 16)
    for rollout in sampler.draw([Request("p", 0.35, i) for i in range(8)]):
        tokens = [30, 31, *rollout.tokens]
        a, b = (torch_model_logits(m, tokens)[1:-1] for m in (original, variant))
        index = torch.as_tensor(rollout.tokens)[:, None].long()

        def logp(alpha, a=a, b=b, index=index):
            return torch.log_softmax(alpha * a + (1 - alpha) * b, -1).gather(1, index).sum().item()

        h = 1e-4
        slope = (logp(0.35 + h) - logp(0.35 - h)) / (2 * h)
        bend = (logp(0.35 + h) - 2 * logp(0.35) + logp(0.35 - h)) / h**2
        assert rollout.path_score == pytest.approx(slope, abs=2e-3)
        assert -rollout.path_variance == pytest.approx(bend, abs=2e-2, rel=1e-3)


def test_settings_are_checked():
    for wrong in (
        {"temperature": 0},
        {"max_new_tokens": 0},
        {"top_p": 0},
        {"top_k": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SamplingSettings(**wrong)
    assert dataclasses.replace(SamplingSettings(), top_k=3).truncates
