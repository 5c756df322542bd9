"""How often a conversation of two turns ends in compliance, extrapolated to the original model.

The user asks, hears an answer, and asks again, whatever it was. A conversation passes if either answer complied: a
judgement on the whole transcript, which no single rollout carries. The pair is the embedded one; with a real pair only
`load` and the rule at the end are others.

    python docs/examples/two_turns.py
"""

import functools
import itertools

import lpe_jax
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler
from lpe_jax.estimation.lpe import LPE
from lpe_jax.loading import load
from lpe_jax.prompts import chat
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.tiny import world_folder
from lpe_jax.tiny.judge import judge_text
from lpe_jax.types import Message, Outcome, Prompt, Request

SLOTS = 96  # room for both turns and the first answer, so that one program serves all conversations


@functools.cache
def models():
    """The pair and its tokenizer, once."""
    folder = world_folder()
    return load(str(folder / "original"), str(folder / "variant"))


def answers(prompts: list[Prompt], alpha: float, first: int) -> list[str]:
    """One sampled answer to each conversation; first: index of the first, so that no two are the same draw."""
    loaded = models()
    rendered = {prompt.id: chat.render(loaded.tokenizer, prompt, thinking=False) for prompt in prompts}
    sampler = Sampler(
        pair=loaded.pair,
        prompts=rendered,
        to_text=loaded.text,
        settings=SamplingSettings(max_new_tokens=64),
        seed=0,
        batch_size=64,
        prompt_slots=SLOTS,
        sums=False,
    )
    return [r.text for r in sampler.draw([Request(p.id, alpha, first + i) for i, p in enumerate(prompts)])]


def make_evaluate(request: Message):
    """evaluate(alpha, n) for one request: n conversations, and how many of them comply somewhere."""
    drawn = itertools.count()

    def evaluate(alpha: float, n: int) -> int:
        number = next(drawn)
        first = [Prompt("turn 1", (request,))] * n
        said = answers(first, alpha, 1000 * number)
        # Every conversation goes its own way now, and is a prompt of its own.
        talks = [
            Prompt(f"turn 2 of {number}-{i}", (request, Message("assistant", text), request))
            for i, text in enumerate(said)
        ]
        again = answers(talks, alpha, 0)
        transcripts = zip(said, again, strict=True)
        return sum(any(judge_text(text).outcome is Outcome.COMPLIED for text in both) for both in transcripts)

    return evaluate


def main() -> lpe_jax.Rate:
    prompt = read_prompts(world_folder() / "prompts.jsonl")[6]
    procedure = LPE(n_search=10, n_fit=60, alphas=(0.9, 0.75, 0.6, 0.45, 0.3))
    found = lpe_jax.estimate(make_evaluate(prompt.messages[-1]), procedure)
    print(f"{prompt.id}: {found}")
    for alpha, scored, complied in zip(
        *(x.tolist() for x in vars(found.counts).values() if x is not None), strict=True
    ):
        print(f"  alpha = {alpha:.2f}: {complied:.0f} of {scored:.0f} conversations")
    return found


if __name__ == "__main__":
    main()
