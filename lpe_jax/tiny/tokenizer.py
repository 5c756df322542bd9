"""The tiny world's tokenizer: one token per word, in the files that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lpe_jax.tiny.grammar import BEGIN, END, PAD, SPECIALS, UNKNOWN

# ChatML as Qwen3 writes it. There is no thinking to switch off: enable_thinking is accepted and changes nothing.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def write_tokenizer(words: Sequence[str], folder: Path, template: str = CHAT_TEMPLATE, *, lines: bool = False) -> None:
    """Writes tokenizer.json and tokenizer_config.json; a word's place in `words` is its id.

    Text is split at white space and joined with single spaces, so that punctuation is a word of its own; a word
    that is not in the vocabulary becomes <unk>. With lines, the end of a line is a word as well.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lines:
        apart = pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(apart))
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "additional_special_tokens": [BEGIN],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
