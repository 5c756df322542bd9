"""Judges on the device against PyTorch, through checkpoint folders as transformers saves them."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lpe_jax.judging.on_device import load_judge
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.types import Message, Prompt
from tests.helpers import ANSWER_WORDS, CHAT_TEMPLATE, GUARD_TEMPLATE, hf_model, save_tokenizer

PROMPTS = (
    Prompt("boat", (Message("user", "How do I fold that boat?"),)),
    Prompt("turns", (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))),
)
# Tokens that end a reply. Random weights would hardly ever say <|im_end|>.
ENDS = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A guard and a chat model; random, with the same weights."""
    made = {}
    for kind, template in (("guard", GUARD_TEMPLATE), ("chat", CHAT_TEMPLATE)):
        folder = made[kind] = tmp_path_factory.mktemp(kind)
        end = save_tokenizer(folder, ANSWER_WORDS, template)
        model = hf_model(2, vocab_size=end + 3)
        ends = np.random.default_rng(0).choice(end, ENDS, replace=False).tolist()
        model.generation_config.eos_token_id = [end, *ends]
        model.save_pretrained(folder)
    return made


def items():
    """Responses of all lengths up to some that need 1024 slots."""
    rng = np.random.default_rng(1)
    letters = list("abcdefghij that .,!?")
    lengths = [1, 2, 40, 90, 150, 200, 260, 420, 700, *rng.integers(1, 120, 7)]
    return [(PROMPTS[i % 2], "x" + "".join(rng.choice(letters, n))) for i, n in enumerate(lengths)]


def test_greedy_replies_are_those_of_generate(folders):
    folder = folders["guard"]
    judge = load_judge(str(folder), JudgeSettings(batch_size=4))
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts, expected = [], []
    for prompt, text in items():
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": text}], tokenize=False)
        tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            said = theirs.generate(**tokens, do_sample=False, max_new_tokens=64, pad_token_id=0)
        prompts.append(tokens["input_ids"][0].tolist())
        expected.append(said[0, len(prompts[-1]) :].tolist())
    assert [judge.render(judge.how.turns(prompt, text)) for prompt, text in items()] == prompts
    assert judge.model.replies(prompts, 64) == expected
    # Some end at once, some later, some never; and the prompts are padded to different lengths.
    lengths = {len(reply) for reply in expected}
    assert len(lengths) > 3 and 64 in lengths and min(lengths) < 5, lengths
    slots = {1 << (len(tokens) - 1).bit_length() for tokens in prompts}
    assert {256, 512, 1024} <= slots, slots


def test_yes_and_no_are_as_likely_as_they_are(folders):
    folder = folders["chat"]
    judge = load_judge(str(folder), JudgeSettings(batch_size=4))
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No")]
    verdicts = judge(items())
    for (prompt, text), verdict in zip(items(), verdicts, strict=True):
        question = [{"role": "user", "content": judge.how.turns(prompt, text)[0].content}]
        tokens = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, enable_thinking=False, return_dict=False, return_tensors="pt"
        )
        with torch.no_grad():
            logits = theirs(tokens).logits[0, -1].double()
        assert verdict.fields["p_yes"] == pytest.approx(torch.softmax(logits[ids], 0)[0].item(), abs=1e-5)
        assert verdict.fields["p_either"] == pytest.approx(torch.softmax(logits, 0)[ids].sum().item(), abs=1e-5)
        # Weights of chance prefer other words.
        assert verdict.outcome == "unscored" and verdict.fields["p_either"] < 0.5
    assert np.ptp([verdict.fields["p_yes"] for verdict in verdicts]) > 0.01
