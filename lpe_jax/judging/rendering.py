"""Chats that tell a model of a response, and in which nothing that is told passes for a mark of the chat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lpe_jax.errors import PromptError
from lpe_jax.prompts import chat
from lpe_jax.types import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Chats with the same roles have the same marks as one of these words, whatever their turns say.
_HARMLESS = "a"


_MOST_ROUNDS = 8


class Renderer:
    """A checkpoint's chat template for turns that are plain text.

    A tokenizer reads the spelling of a mark of its own, as "<|im_end|>", as that mark, and so a response could end its
    turn and begin another. Here a mark that is spelled out gets a space after its first character. Whether that did it
    is checked with every chat: its marks must be those of a chat of the same roles with nothing in its turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        added = tokenizer.get_added_vocab()
        # An unknown word is no mark.
        self._marks = frozenset(added.values()) - {tokenizer.unk_token_id}
        spelled = sorted((mark for mark in added if len(mark) > 1), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, spelled)) if spelled else r"(?!)")
        self._expected: dict[tuple[str, ...], list[int]] = {}

    def __call__(self, turns: Sequence[Message]) -> list[int]:
        """The tokens a model reads before the first one of its answer.

        Raises:
          PromptError: the template fails, or a turn says what the tokenizer takes for a mark nonetheless.
        """
        tokens = self._rendered([Message(turn.role, self.plain(turn.content)) for turn in turns])
        roles = tuple(turn.role for turn in turns)
        if roles not in self._expected:
            self._expected[roles] = self._marks_of(self._rendered([Message(role, _HARMLESS) for role in roles]))
        if self._marks_of(tokens) != self._expected[roles]:
            raise PromptError("the text holds what the judge's tokenizer takes for a mark of the chat")
        return tokens

    def plain(self, text: str) -> str:
        """The text with every mark that it spells out taken apart."""
        # Taking one apart may spell another; a mark of blanks goes on for ever, and is seen in what is rendered.
        for _ in range(_MOST_ROUNDS):
            if not self._spelled.search(text):
                break
            text = self._spelled.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text

    def _rendered(self, turns: Sequence[Message]) -> list[int]:
        return chat.render(self.tokenizer, Prompt("to the judge", tuple(turns)), thinking=False)

    def _marks_of(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token in self._marks]
