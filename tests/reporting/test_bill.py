"""What is still to be paid for, in words; and bytes of a rollout against the writer's."""

import dataclasses

import numpy as np
import pytest

from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.reporting.bill import ROLLOUT_BYTES, TOKEN_BYTES, Calls, Pace, Work, call_words, disk_words, work_words
from lpe_jax.types import Rollout

CALLS = Calls(judge="openai:m", most=1000, exact=False, expected=None, input_tokens=500_000, output_tokens=2000)
PRICES = JudgeSettings(prices=(2.0, 10.0))


def test_money_is_a_product():
    _, money, about = call_words(CALLS, PRICES)
    # 500 and 2,000 tokens a call: 0.001 and 0.02.
    assert money == "money for at most 1,000 calls: 1.00 for what is sent, up to 21.00 with what is answered"
    assert "a call sends about 500 tokens, and an answer may have 2,000" in about
    said = "\n".join(call_words(dataclasses.replace(CALLS, expected=100), PRICES))
    assert (
        "about 100 calls, at most 1,000" in said
        and "money for about 100 calls: 0.10 for what is sent, up to 2.10" in said
    )
    (_, money) = call_words(dataclasses.replace(CALLS, measured=(400.0, 100.0)), PRICES)
    assert money == "money: at most 1.80 in the currency of --judge_prices, at 0.0018 a call, as it was so far"


def test_no_price_is_guessed():
    (_, money) = call_words(CALLS, JudgeSettings())
    assert money.startswith("money: unknown") and "--judge_prices" in money and "about 500 input tokens" in money


def test_no_calls_cost_nothing():
    assert call_words(dataclasses.replace(CALLS, most=0), PRICES) == ["judge openai:m: no calls"]


def test_hours_are_not_guessed():
    work = Work(prompts=2, open=2, stored=0, most=100, expected=40, tokens=36, prompt_bytes=9)
    assert work_words(work, None, "measure it")[-1] == "time: unknown; measure it"
    time = work_words(work, Pace(0.1, "said"), "")[-1]
    assert time.startswith("time: at most 10.0 h, about 4.0 h expected at 0 tokens/s")
    rollouts, tokens, _ = work_words(work, Pace(0.1, "said"), "")
    assert "about 40, at most 100, of 2 prompts" in rollouts and "at most 3,600, 36 a rollout" in tokens


@pytest.mark.parametrize(
    ("size", "words"), [(3, "3 B"), (1234, "1.23 kB"), (29_140_000, "29.1 MB"), (2e12, "2,000 GB")]
)
def test_disk_in_words(size, words):
    assert disk_words(size) == f"disk: at most about {words}"


@pytest.mark.parametrize("tokens", [10, 40, 256])
def test_bytes_of_a_rollout(tmp_path, tokens):
    """Tokens at random of a large vocabulary, and text of five letters for each, with the letters of English."""
    rng, store, n = np.random.default_rng(0), RolloutStore(tmp_path), 2000
    letters = np.array(list("eeeeeeeetttttaaaaaoooooiiiiinnnnssshhhrrrddllucmfpgwybvk      "))
    text = ["".join(rng.choice(letters, 5 * tokens)) for _ in range(n)]
    ids = rng.zipf(1.2, (n, tokens)).clip(max=150_000).astype(np.int32)
    sums = rng.normal(size=(n, 5)).astype(np.float32).tolist()
    store.append([Rollout("p", 0.5, i, ids[i], text[i], "stop", *sums[i]) for i in range(n)])
    store.flush()
    measured = sum(path.stat().st_size for path in tmp_path.iterdir()) / n
    assert measured == pytest.approx(ROLLOUT_BYTES + TOKEN_BYTES * tokens, rel=0.3)
