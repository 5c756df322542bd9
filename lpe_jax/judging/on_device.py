"""Judges that are Qwen3 checkpoints on this machine's device: guard models, and chat models that are asked yes or no.

Which of the two a checkpoint is follows from its chat template (lpe_jax.judging.guard.is_guard), never from its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpe_jax.errors import CheckpointError, JudgeError, PromptError, UserError
from lpe_jax.judging import guard, judge_model, rendering, yes_no
from lpe_jax.judging.base import source_digest, unscored
from lpe_jax.judging.guard import Guard
from lpe_jax.judging.judge_model import JudgeModel
from lpe_jax.judging.rendering import Renderer
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.judging.yes_no import YesNo
from lpe_jax.models.checkpoint import check_unchanged, open_checkpoint, verified
from lpe_jax.models.config import read_eos_ids
from lpe_jax.models.origin import check_origin
from lpe_jax.models.qwen3 import Qwen3
from lpe_jax.models.weights import DTYPES, dtype_of, load_module
from lpe_jax.prompts import chat
from lpe_jax.types import Message, Prompt, Verdict

# Two responses that differ in length by more than the marks that the question puts around them.
_TRIAL, _TRIAL_WORDS = Prompt("trial", (Message("user", "a"),)), 200
_TRIAL_TEXTS = "a", " ".join("a" * _TRIAL_WORDS)


@dataclasses.dataclass(frozen=True)
class OnDeviceJudge:
    """A checkpoint that judges, in batches of few shapes; nothing is drawn at random.

    What cannot be rendered or is too long is unscored, and so is a response without a word.
    """

    identity: str
    note: str
    model: JudgeModel
    render: Renderer
    how: Guard | YesNo

    @property
    def at_once(self) -> int:
        """So many items are judged at the price of one."""
        return self.model.rows

    def __call__(self, items: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        longest = self.model.longest(self.how.reply_tokens)
        verdicts: dict[int, Verdict] = {}
        asked: dict[int, list[int]] = {}
        for i, (prompt, text) in enumerate(items):
            if not text.strip():
                verdicts[i] = unscored("empty")
                continue
            try:
                tokens = self.render(self.how.turns(prompt, text))
            except PromptError as error:
                verdicts[i] = unscored(str(error))
                continue
            if len(tokens) > longest:
                verdicts[i] = unscored(f"too long for the judge, which reads {longest} tokens", tokens=len(tokens))
            else:
                asked[i] = tokens
        answers = self.how.verdicts(self.model, self.render.tokenizer, list(asked.values()))
        verdicts |= dict(zip(asked, answers, strict=True))
        return [verdicts[i] for i in range(len(items))]


def load_judge(source: str, settings: JudgeSettings) -> OnDeviceJudge:
    """A judge, checked as the models that are sampled are. Its weights are loaded when it is first asked.

    Args:
      source: a local folder or a hub id `org/name[@revision]`; Qwen3ForCausalLM with a chat template.

    Raises:
      JudgeError: it cannot be loaded, or not be a judge; the message says why.
    """
    try:
        return _load(source, settings)
    except UserError as error:
        raise JudgeError(f"judge 'jax:{source}': {error}") from None


def _load(source: str, settings: JudgeSettings) -> OnDeviceJudge:
    checkpoint = open_checkpoint(source)
    check_origin(checkpoint.folder, checkpoint.origin, checkpoint.origin.hashes)
    tokenizer = chat.load_tokenizer(checkpoint.folder)
    num_tokens = chat.number_of_tokens(tokenizer)
    if num_tokens > checkpoint.config.vocab_size:
        raise CheckpointError(
            f"its tokenizer has {num_tokens} entries, more than the {checkpoint.config.vocab_size} rows of its "
            "embedding; it belongs to another checkpoint"
        )
    eos_ids = read_eos_ids(checkpoint.folder, checkpoint.config.vocab_size)
    how = Guard(settings.mapping) if guard.is_guard(tokenizer.get_chat_template()) else YesNo.of(tokenizer)
    if isinstance(how, YesNo) and settings.mapping != JudgeSettings.mapping:
        raise JudgeError(f"--judge_mapping={settings.mapping} is for guard models, and it is {how.note}")
    render = Renderer(tokenizer)
    _try_out(render, how)
    dtype = dtype_of("auto")
    checkpoint = verified(checkpoint, DTYPES[dtype])

    def load() -> Qwen3:
        module = load_module(checkpoint, DTYPES[dtype])
        check_unchanged(checkpoint)
        return module

    tokens = chat.fingerprint(tokenizer)
    parts = {
        "model": _digest([checkpoint.fingerprint, dataclasses.asdict(checkpoint.config), eos_ids]),
        "tokenizer": _digest([tokens["vocabulary"], tokens["tokenizer"]]),
        "template": tokens["chat_template"][:16],
        "dtype": dtype,
        # The compiled shape, by which sums round.
        "rows": settings.batch_size,
    }
    described = ";".join([*(f"{name}={value}" for name, value in parts.items()), how.identity])
    source_files = [Path(module.__file__) for module in (judge_model, guard, rendering, yes_no, chat)]
    return OnDeviceJudge(
        identity=f"jax:{how.kind};{described}@{source_digest([Path(__file__), *source_files])}",
        note=f"judge {source}: {how.note}",
        model=JudgeModel(
            load=load,
            positions=checkpoint.config.max_position_embeddings,
            num_tokens=num_tokens,
            eos_ids=eos_ids,
            rows=settings.batch_size,
        ),
        render=render,
        how=how,
    )


def _try_out(render: Renderer, how: Guard | YesNo) -> None:
    """Raises JudgeError unless the template tells the judge of a response and then lets it answer at once."""
    try:
        shorter, longer = (render(how.turns(_TRIAL, text)) for text in _TRIAL_TEXTS)
    except PromptError as error:
        raise JudgeError(f"it cannot be asked: {error}") from None
    if len(longer) < len(shorter) + _TRIAL_WORDS // 2:
        raise JudgeError("its chat template does not pass on a response, so that it would judge without having read it")
    text = render.tokenizer.decode(shorter)
    if text.rfind("<think>") > text.rfind("</think>"):
        raise JudgeError("its chat template has it reason first, even with enable_thinking off; take one that answers")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
