"""Chat rendering with a small byte-level tokenizer and a template with Qwen3's switches."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lpe_jax.errors import CheckpointError, PromptError
from lpe_jax.prompts import chat
from lpe_jax.types import Message, Prompt

# Past reasoning is dropped from the history, thinking off closes an empty block.
TEMPLATE = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

ASK = Prompt("a", (Message("user", "Fold a boat."),))


def make(folder, *, words=("at", "th"), special=(), template=TEMPLATE, normalizer=None, begin=False):
    """Saves a tokenizer of all bytes, the given merged pairs and Qwen3's markers; returns the folder."""
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet()) + list(words)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(vocabulary)}, merges=[(w[:-1], w[-1]) for w in words if len(w) > 1]
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *special)
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    if begin:  # an encoder that would put a token in front, as Llama's does
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A",
            special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))],
        )
        tokenizer.enable_truncation(4)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return chat.load_tokenizer(make(tmp_path_factory.mktemp("tokenizer")))


def text_of(tokenizer, tokens):
    return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def test_render_asks_for_the_assistants_turn(tokenizer):
    asked = "<|im_start|>user\nFold a boat.<|im_end|>\n<|im_start|>assistant\n"
    tokens = chat.render(tokenizer, ASK, thinking=True)
    assert type(tokens) is list and all(type(t) is int for t in tokens)
    assert text_of(tokenizer, tokens) == asked
    assert text_of(tokenizer, chat.render(tokenizer, ASK, thinking=False)) == asked + "<think>\n\n</think>\n\n"
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_render_keeps_the_whole_history(tokenizer):
    turns = (
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("assistant", "<think>\nHm.\n</think>\n\nHello"),
        Message("user", "Sing."),
    )
    assert text_of(tokenizer, chat.render(tokenizer, Prompt("h", turns), thinking=True)) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nSing.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("thinking", [True, False])
def test_render_gives_what_transformers_gives(tokenizer, thinking):
    prompt = Prompt("u", (Message("user", "that thé, 紙の舟 🛶 <think> \n\n  path"),))
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt.text}],
        add_generation_prompt=True,
        enable_thinking=thinking,
        return_dict=False,
    )
    assert chat.render(tokenizer, prompt, thinking=thinking) == expected


def test_render_neither_adds_special_tokens_nor_cuts(tmp_path):
    tokenizer = chat.load_tokenizer(make(tmp_path, begin=True))
    # The files do ask for a token in front: the check below could fail.
    assert tokenizer("x")["input_ids"][0] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    text = text_of(tokenizer, chat.render(tokenizer, ASK, thinking=True))
    assert text == "<|im_start|>user\nFold a boat.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only\nodd turns') }}",
        "{{ raise_exception('\x1b[2Jcleared') }}",
        "{{ messages[7].content }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for x in range(10**7) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{# says nothing #}",
    ],
)
def test_a_failing_template_names_the_prompt(tmp_path, template):
    tokenizer = chat.load_tokenizer(make(tmp_path, template=template))
    with pytest.raises(PromptError, match=r"^prompt 'a': the chat template") as caught:
        chat.render(tokenizer, ASK, thinking=True)
    assert str(caught.value).isprintable()


def test_a_template_that_loops_is_given_up(tmp_path, monkeypatch):
    loop = "{% for i in range(100) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    tokenizer = chat.load_tokenizer(make(tmp_path, template=loop))
    monkeypatch.setattr(chat, "RENDER_SECONDS", 0.05)
    with pytest.raises(PromptError, match=r"prompt 'a': the chat template did not finish within 0\.05 s"):
        chat.render(tokenizer, ASK, thinking=True)


def test_decode_text_drops_the_end_and_keeps_thinking(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = "<think>\nHm .\n</think>\n\nA boat , folded ."
    tokens = np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], end], np.int32)
    assert chat.decode_text(tokenizer, tokens, (end,)) == text
    assert chat.decode_text(tokenizer, tokens, ()) == text  # a special token also where it is no end
    # An end-of-sequence token that is not marked special goes too.
    closing = tokenizer.convert_tokens_to_ids("</think>")
    assert chat.decode_text(tokenizer, [*tokens[:3], closing], {closing}) == text[:9]
    assert chat.decode_text(tokenizer, [end], (end,)) == ""


def test_decode_text_keeps_spaces_before_punctuation(tmp_path):
    words = "fold the boat , then do not . <|im_end|>".split()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)
    assert fast.decode([0, 1, 2, 3]) == "fold the boat,"  # what its files ask for
    assert chat.decode_text(fast, range(len(words)), (8,)) == "fold the boat , then do not ."


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda t: "<|" not in t))
def test_decode_text_undoes_encoding(tokenizer, text):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat.decode_text(tokenizer, tokens, ()) == text


# Folders.


def test_loading_without_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    folder = make(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert len(chat.load_tokenizer(folder)) == 263


def test_folders_that_hold_no_usable_tokenizer(tmp_path):
    def fails(folder, *parts):
        with pytest.raises(CheckpointError) as caught:
            chat.load_tokenizer(folder)
        message = str(caught.value)
        assert "\n" not in message and str(folder) in message
        assert all(part in message for part in parts), message

    fails(tmp_path / "absent", "no such folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "tokenizer.json")
    fails(make(tmp_path / "plain", template=None), "no chat template", "chat_template.jinja")
    whole = make(tmp_path / "whole")
    for name, damage in {
        "torn": lambda text: text[: len(text) // 2],
        "void": lambda text: "{}",
        "deep": lambda text: "[" * 100_000,
        "model": lambda text: text.replace('"BPE"', '"XYZ"'),
    }.items():
        folder = shutil.copytree(whole, tmp_path / name)
        file = folder / "tokenizer.json"
        file.write_text(damage(file.read_text()))
        fails(folder, "cannot be loaded")


def test_code_in_the_folder_is_not_run(tmp_path):
    folder = make(tmp_path)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {
        "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        "tokenizer_class": "Evil",
    }
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        chat.load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


# Two tokenizers.


def test_equal_tokenizers_have_equal_fingerprints(tmp_path):
    a = chat.load_tokenizer(make(tmp_path / "a"))
    b = chat.load_tokenizer(make(tmp_path / "b"))
    a("some text", truncation=True, max_length=2, padding="do_not_pad")  # leaves its mark on the backend
    assert chat.fingerprint(a) == chat.fingerprint(b)
    assert chat.tokenizer_difference(a, b) is None and chat.template_difference(a, b) is None
    assert chat.fingerprint(a)["length"] == 263


@pytest.mark.parametrize(
    ("options", "changed", "said"),
    [
        ({"words": ("at", "he")}, {"vocabulary", "tokenizer"}, "id 257, 'th' in the original and 'he' in the"),
        (
            {"special": ("<|pad|>",)},
            {"vocabulary", "tokenizer", "length"},
            "263 entries and the variant's 264; the first that differs is id 261, '<think>' in the original",
        ),
        ({"normalizer": normalizers.NFC()}, {"tokenizer"}, "differ in normalizer"),
        ({"template": TEMPLATE.replace("user", "u") + "\n "}, {"chat_template"}, None),
    ],
)
def test_what_differs_is_said(tmp_path, options, changed, said):
    a, b = chat.load_tokenizer(make(tmp_path / "a")), chat.load_tokenizer(make(tmp_path / "b", **options))
    prints = chat.fingerprint(a), chat.fingerprint(b)
    assert {name for name in prints[0] if prints[0][name] != prints[1][name]} == changed
    difference = chat.tokenizer_difference(a, b)
    assert difference is None if said is None else said in difference
    assert (chat.template_difference(a, b) is None) == ("chat_template" not in changed)


def test_merges_alone_can_differ(tmp_path):
    a = chat.load_tokenizer(make(tmp_path / "a"))
    folder = shutil.copytree(tmp_path / "a", tmp_path / "b")
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert "model (merges)" in chat.tokenizer_difference(a, chat.load_tokenizer(folder))


def test_template_difference_names_the_line(tmp_path):
    a = chat.load_tokenizer(make(tmp_path / "a"))
    b = chat.load_tokenizer(make(tmp_path / "b", template=TEMPLATE.replace("'assistant'", "'model'")))
    c = chat.load_tokenizer(make(tmp_path / "c", template=TEMPLATE + "\n{# more #}"))
    assert "from line 3 on" in chat.template_difference(a, b)
    assert f"from line {len(TEMPLATE.splitlines()) + 1} on" in chat.template_difference(a, c)
