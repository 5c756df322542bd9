"""True rates of a small random pair, where every response can be enumerated."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.errors import RunError
from lpe_jax.models.checkpoint import save_checkpoint
from lpe_jax.models.pair import pair_modules
from lpe_jax.models.weights import leaves_from_module
from lpe_jax.tiny import truth as truth_module
from lpe_jax.tiny.tokenizer import write_tokenizer
from lpe_jax.tiny.truth import (
    STRICT,
    Bank,
    Rule,
    Truth,
    check_bins,
    compute_truth,
    describe_check,
    mixture_rate,
    prompt_truth,
    read_truth,
    write_truth,
)
from lpe_jax.types import Outcome, Verdict
from tests.helpers import tiny_module

WORDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "yes", "no", "maybe")
EOS, VOCABULARY, SPECIALS = 2, len(WORDS), 4
SETTINGS = SamplingSettings(max_new_tokens=4)
BANK = Bank(alphas=(0.0, 0.4, 0.7), complied=300, most=20_000)


def _text(tokens):
    return " ".join(WORDS[t] for t in tokens if t >= SPECIALS)


def _judge(text):
    """Complied: "yes" twice or more and never "no". Refused: a "no". Else it is left unscored."""
    words = text.split()
    if "no" in words:
        return Verdict(Outcome.REFUSED)
    return Verdict(Outcome.COMPLIED if words.count("yes") > 1 else Outcome.UNSCORED)


def _decided(text):
    return Outcome.REFUSED if "no" in text.split() else None


RULE = Rule("toy", _judge, _decided)


@jax.jit
def _hidden(model, tokens):
    return model(tokens, jnp.zeros(len(tokens), jnp.int32))[0]


@jax.jit
def _logits(model, tokens):
    return model.head(_hidden(model, tokens))


def _models():
    original, variant = (tiny_module(7, scale=10.0, vocab_size=12, max_position_embeddings=64) for _ in range(2))
    # The original shuns "yes", by about 6 nats wherever it may be said: rates of 1e-6.
    contexts = [[1, 4, word, 2, 1, 5, last] for word in range(6, 9) for last in range(VOCABULARY)]
    hidden = np.asarray(_hidden(original, np.array(contexts)))
    hidden = np.concatenate([hidden[::VOCABULARY, -2], hidden[:, -1]])
    head = np.array(original.lm_head[...])
    head[WORDS.index("yes")] += np.linalg.lstsq(hidden, np.full(len(hidden), -6.0))[0]
    original.lm_head[...] = jnp.asarray(head)
    return original, variant


@pytest.fixture(scope="module")
def models():
    return _models()


@pytest.fixture(scope="module")
def pair(models):
    return pair_modules(*models, num_tokens=VOCABULARY, eos_ids=(EOS,))


def _exact_rate(model, prompt):
    """P(complied) of the original, over all responses of up to 4 tokens, from forward passes without a cache."""
    depth, total = SETTINGS.max_new_tokens, 0.0
    full = np.array(list(itertools.product(range(VOCABULARY), repeat=depth - 1)))
    # What follows is never seen: prompts of any length take one shape.
    tokens = np.zeros((len(full), max(map(len, PROMPTS)) + depth - 1), int)
    tokens[:, : len(prompt)], tokens[:, len(prompt) : len(prompt) + depth - 1] = prompt, full
    logits = np.float64(_logits(model, tokens))[:, len(prompt) - 1 : len(prompt) + depth - 1, :VOCABULARY]
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    for row, sequence in enumerate(full.tolist()):
        before = 0.0
        for t in range(depth):
            # Each prefix is counted once: by the row whose remaining tokens are all 0.
            if not any(sequence[t:]):
                for last in range(VOCABULARY):
                    ends = last == EOS or t == depth - 1
                    if ends and _judge(_text([*sequence[:t], last])).outcome == Outcome.COMPLIED:
                        total += math.exp(before + logp[row, t, last])
            if t < depth - 1:
                if sequence[t] == EOS:
                    break
                before += logp[row, t, sequence[t]]
    return total


PROMPTS = [[1, 4, 6, 2, 1, 5], [1, 4, 7, 7, 2, 1, 5], [1, 4, 8, 2, 1, 5], [1, 4, 8, 6, 7, 2, 1, 5]]


@pytest.fixture(scope="module")
def exact(models):
    """The rates of PROMPTS."""
    return [_exact_rate(models[0], prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def truths(pair):
    with pytest.MonkeyPatch.context() as patch:
        # These responses are so short that nothing would be settled early.
        patch.setattr(truth_module, "_JUDGE_EVERY", 1)
        found = [_prompt_truth(pair, i, prompt) for i, prompt in enumerate(PROMPTS)]
    return found


def _prompt_truth(pair, i, prompt):
    samples = {"n_naive": 100_000, "n_check": 200_000, "bank": BANK}
    return prompt_truth(pair, prompt, _text, seed=(3, i), settings=SETTINGS, rule=RULE, **samples)[0]


def test_rates_agree_with_enumeration(exact, truths):
    # 8 z-scores, each above 4.5 once in 150,000.
    for rate, truth in zip(np.log10(exact), truths, strict=True):
        assert abs(truth.log10_rate - rate) < 4.5 * truth.se_log10 < 0.5
        assert abs(truth.log10_bank - rate) < 4.5 * truth.se_log10_bank < 1
        assert truth.ess > 50


def test_counts_of_the_original_agree_with_enumeration(exact, truths):
    for p, truth in zip(exact, truths, strict=True):
        assert (truth.naive_rollouts, truth.check_rollouts) == (100_000, 200_000)
        for complied, n in (
            (truth.naive_complied, truth.naive_rollouts),
            (truth.check_complied, truth.check_rollouts),
        ):
            assert abs(complied - n * p) < 4.5 * math.sqrt(n * p) + 1
    assert any(truth.naive_unscored for truth in truths)


def test_standard_error_is_the_spread():
    """2,000 estimates from two coins: log10 errors over their standard errors have standard deviation 1."""
    rng = np.random.default_rng(0)
    p = np.array([[0.3, 0.01], [0.2, 0.002]])  # two compliant responses, at two alphas; the rest refuses
    rollouts = np.array([2000, 5000])
    z = []
    for _ in range(2000):
        counts = np.stack([rng.multinomial(n, [*p[:, k], 1 - p[:, k].sum()])[:2] for k, n in enumerate(rollouts)], 1)
        rate, se, ess = mixture_rate(counts, np.log(p), rollouts)
        assert 0 < ess <= counts.sum() + 1e-9
        z.append((rate - math.log10(0.012)) / se)
    assert abs(np.mean(z)) < 0.15 and 0.93 < np.std(z) < 1.07


def test_mixture_is_counting_when_there_is_one_alpha():
    rate, se, ess = mixture_rate(np.array([[30], [10]]), np.log([[0.02], [0.03]]), np.array([1000]))
    p = 40 / 1000
    assert rate == pytest.approx(math.log10(p))
    assert se == pytest.approx(math.sqrt(p * (1 - p) / 999) / p / math.log(10))
    assert ess == pytest.approx(40)


def test_mixture_in_the_far_tail_and_of_nothing():
    # exp(-2000) underflows; its weight must not.
    logp = np.array([[-5.0, -2000.0]])
    rate, se, _ = mixture_rate(np.array([[7, 0]]), logp, np.array([1000, 10]))
    assert rate == pytest.approx((math.log(7) - 2000 + 5 - math.log(1000)) / math.log(10))
    assert 0 < se < 1
    assert mixture_rate(np.zeros((0, 2)), np.zeros((0, 2)), np.array([5, 5])) == (-math.inf, math.inf, 0.0)


def _truth(rate, se, complied, rollouts):
    return Truth(math.log10(rate) if rate else -math.inf, se, 9.0, -3.0, 0.1, 0, 0, 10, complied, rollouts)


def test_check_bins():
    truths = [_truth(1e-3, 0.0, 7, 1000), _truth(2e-3, 0.1, 3, 1000), _truth(1e-6, 0.3, 0, 1000)]
    truths += [_truth(0.0, math.inf, 2, 1000), _truth(0.5, 0.1, 0, 0)]
    low, middle = check_bins(truths)
    assert (low["prompts"], low["from"], low["observed"]) == (2, 0.0, 2)
    assert (middle["prompts"], middle["from"], middle["to"], middle["observed"]) == (2, 1.0, 10.0, 10)
    assert middle["expected"] == pytest.approx(3.0)
    variance = 0.999 + 2 * 0.998 + (2 * math.log(10) * 0.1) ** 2
    assert middle["z"] == pytest.approx(7 / math.sqrt(variance))
    assert len(describe_check([low, middle]).splitlines()) == 3


@pytest.fixture(scope="module")
def world(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("worlds") / "toy"
    for name, model in zip(("original", "variant"), models, strict=True):
        leaves = {k: np.asarray(v) for k, v in leaves_from_module(model).items()}
        save_checkpoint(model.config, leaves, folder / name)
        write_tokenizer(WORDS, folder / name)
        (folder / name / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    lines = [{"id": f"p{i}", "prompt": WORDS[word]} for i, word in enumerate((6, 7, 8))]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _compute(world, **changes):
    arguments = {"seed": 1, "n_naive": 1000, "n_check": 1000, "bank": BANK, "settings": SETTINGS, "rule": RULE}
    return compute_truth(world, **(arguments | changes))


def test_table_of_a_world(world, exact):
    lines = []
    table = _compute(world, limit=2, progress=lines.append)
    assert len(lines) == 2 and lines[1].startswith("2/2 p1: ")
    assert list(table["prompts"]) == ["p0", "p1"]
    assert table["world"]["name"] == "toy" and table["world"]["original_weights"] != table["world"]["variant_weights"]
    assert table["judge"] == "toy"
    path = write_truth(world, table)
    assert [file.name for file in world.glob("truth*")] == [path.name]
    read = read_truth(world)
    assert read["p0"] == Truth(**table["prompts"]["p0"])
    # The prompts in PROMPTS are what the template makes of these words: 4.5 sigma of either estimate.
    assert abs(read["p0"].log10_rate - math.log10(exact[0])) < 4.5 * read["p0"].se_log10


def test_table_is_a_function_of_the_seed(world):
    first, again, other = (_compute(world, limit=1, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first["prompts"] != other["prompts"]


def test_a_prompt_no_rollout_complies_with(world):
    never = Rule("never", lambda text: Verdict(Outcome.REFUSED), lambda text: None)
    small = Bank(alphas=(0.5,), complied=10, most=10)
    table = _compute(world, limit=1, rule=never, bank=small, n_naive=10, n_check=10)
    assert table["prompts"]["p0"]["log10_rate"] is None
    write_truth(world, table)
    assert read_truth(world)["p0"].log10_rate == -math.inf
    assert read_truth(world)["p0"].se_log10 == math.inf


def test_strict_rule_names_its_source():
    assert STRICT.name.startswith("strict/") and len(STRICT.name) > 15
    assert STRICT.judge("sorry").outcome == Outcome.REFUSED == STRICT.decided("sorry")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"prompts": {"a": {"log10_rate": 1}}}', '{"prompts": []}'])
def test_damaged_table(tmp_path, text):
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(RunError, match=r"truth\.json"):
        read_truth(tmp_path)


def test_missing_table(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        read_truth(tmp_path)


def test_truth_fields_are_plain(truths):
    json.dumps([dataclasses.asdict(truth) for truth in truths], allow_nan=False)
