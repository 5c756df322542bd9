"""What a user would run instead: two Hugging Face models in a loop, or `generate` with a logits processor.

Each is as strong as it could be made. Rows go in batches that share a prompt where they can, which is then computed
once; a batch waits for its longest row, and stops when all of its rows have. Takes
torch, so that only runs with peers import it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from transformers import DynamicCache, LogitsProcessorList, StaticCache
from transformers.generation.logits_process import (
    SuppressTokensLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from lpe_jax.benchmark.hugging_face import CACHE, DRAWS, PreallocatedLayer, device, hugging_face, multinomial
from lpe_jax.benchmark.rounds import Work
from lpe_jax.benchmark.workloads import Workload
from lpe_jax.types import Request

# Finished rows are dropped when no more than this share of a batch goes on: to drop them copies the others' cache.
_DROP_AT = 0.75


@dataclasses.dataclass(frozen=True)
class Loop:
    """One way of writing the loop.

    Attributes:
      cache: "dynamic" and "static" are transformers' own; "preallocated" writes in place and hands out a view.
      shared: a prompt that several rows of a batch have is computed once and its cache repeated.
      compiled: steps go through torch.compile.
      drops: rows that have finished leave the batch.
    """

    cache: str = "dynamic"
    shared: bool = True
    compiled: bool = False
    drops: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        words = [f"{self.cache} cache", *["prompts per row"][: not self.shared], *["torch.compile"][: self.compiled]]
        return "HF loop, " + ", ".join([*words, *["drops finished rows"][: self.drops]])


# run.LOOPS names them without torch.
LOOPS = {
    "dynamic": Loop(),
    "per-row": Loop(shared=False),
    "preallocated": Loop("preallocated"),
    "static": Loop("static"),
    "compiled": Loop("static", compiled=True),
}


class TwoModels:
    """Original and variant as Hugging Face models, and the loops that draw from both.

    Attributes:
      draw: how a token is drawn; set it to the fastest of DRAWS.
    """

    def __init__(self, workload: Workload):
        self.workload = workload
        self.models = [hugging_face(m) for m in (workload.original, workload.variant)]
        self.draw: Callable[[torch.Tensor], torch.Tensor] = multinomial
        self.ends = torch.zeros(workload.original.config.vocab_size, dtype=torch.bool, device=device())
        self.ends[list(workload.eos_ids)] = True
        self._static: dict[tuple[int, int], list[StaticCache]] = {}

    @functools.cached_property
    def _compiled(self) -> list[Callable]:
        mode = "reduce-overhead" if device() == "cuda" else "default"
        return [torch.compile(model.forward, dynamic=False, mode=mode) for model in self.models]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Each model's logits [2, T, V] of a prompt."""
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=device())
            return np.stack([model(ids).logits[0].float().cpu().numpy() for model in self.models])

    def pick_draw(self) -> str:
        """Keeps the fastest way of drawing at the workload's shape; its name."""
        logits = torch.randn(self.workload.batch_size, self.workload.num_tokens, device=device())
        self.draw = min(DRAWS, key=lambda draw: _seconds(lambda: draw(logits)))
        return self.draw.__name__

    def pick_threads(self, most: int) -> int:
        """Keeps the number of threads, of 1, 2, 4 … and most, at which a batch of a few tokens is fastest."""
        counts = sorted({*(2**i for i in range(most.bit_length()) if 2**i < most), most})
        seconds = {}
        for count in counts:
            torch.set_num_threads(count)
            seconds[count] = _seconds(lambda: self.run(Loop(), self.first_batch(0), longest=4), repeats=2)
        torch.set_num_threads(best := min(seconds, key=seconds.get))
        return best

    def first_batch(self, number: int) -> list[Request]:
        """So many of a round's requests as fit one batch."""
        return next(_batches(self.workload, self.workload.requests(number)))

    def run(self, loop: Loop, requests: Sequence[Request], longest: int | None = None) -> Work:
        """Draws one rollout per request, at most `longest` tokens each."""
        longest = longest or self.workload.settings.max_new_tokens
        rollouts = [r for batch in _batches(self.workload, requests) for r in self.rollouts(loop, batch, longest)]
        return Work(len(rollouts), sum(len(tokens) for tokens, _ in rollouts))

    @torch.inference_mode()
    def rollouts(self, loop: Loop, batch: Sequence[Request], longest: int) -> list[tuple[list[int], str]]:
        """(tokens, text) of each request of one batch, in its order."""
        where = device()
        prompts, rows = _prompts(batch, loop.shared)
        ids, real = self._padded(prompts)
        index = torch.tensor(rows, device=where)
        alpha = torch.tensor([[r.alpha] for r in batch], dtype=torch.float32, device=where)
        caches = [DynamicCache(config=model.config) for model in self.models]
        start = {} if real is None else {"attention_mask": real, "position_ids": (real.cumsum(-1) - 1).clamp(min=0)}
        logits = [
            model(ids, use_cache=True, logits_to_keep=1, **{CACHE: cache}, **start).logits[:, -1][index]
            for model, cache in zip(self.models, caches, strict=True)
        ]
        slots = ids.shape[1] + longest
        caches = [self._for_decode(loop, i, cache, index, slots) for i, cache in enumerate(caches)]
        steps = self._compiled if loop.compiled else self.models
        position = torch.full((len(batch), 1), ids.shape[1], device=where)
        if real is not None:
            real = real[index]
            position = real.sum(-1, keepdim=True)
            # A static cache is masked to its full width; what is not written yet is hidden by position.
            room = longest if loop.cache == "static" else 0
            real = torch.nn.functional.pad(real, (0, room), value=1)

        said = torch.full((len(batch), longest), -1, dtype=torch.long, device=where)
        row, live = torch.arange(len(batch), device=where), torch.ones(len(batch), dtype=torch.bool, device=where)
        for t in range(longest):
            mixed = torch.lerp(logits[1].float(), logits[0].float(), alpha)[:, : self.workload.num_tokens]
            token = self.draw(mixed)
            said[row[live], t] = token[live]
            live = live & ~self.ends[token]
            going = int(live.sum())
            if not going or t + 1 == longest:
                break
            if loop.drops and going <= _DROP_AT * len(live):
                kept = live.nonzero()[:, 0]
                for cache in caches:
                    cache.batch_select_indices(kept)
                row, live, token, alpha, position = (x[kept] for x in (row, live, token, alpha, position))
                real = None if real is None else real[kept]
            if real is not None and loop.cache != "static":
                real = torch.nn.functional.pad(real, (0, 1), value=1)
            feed = {"attention_mask": real, "position_ids": position + t, "use_cache": True}
            logits = [
                step(token[:, None], **{CACHE: cache}, **feed).logits[:, -1]
                for step, cache in zip(steps, caches, strict=True)
            ]
        responses = [[token for token in tokens if token >= 0] for tokens in said.tolist()]
        return [(tokens, self.workload.to_text(tokens)) for tokens in responses]

    def _padded(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Ids [U, P] of prompts, the end of each in the last column, and which are real; None if all are."""
        tokens = [self.workload.prompts[p] for p in prompts]
        width = max(map(len, tokens))
        ids = torch.tensor([[0] * (width - len(t)) + list(t) for t in tokens], device=device())
        if all(len(t) == width for t in tokens):
            return ids, None
        return ids, torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in tokens], device=device())

    def _for_decode(self, loop: Loop, model: int, cache: DynamicCache, index: torch.Tensor, slots: int):
        """A prompt's cache [U, K, P, H] as that of rows [B], with room for what they will say."""
        if loop.cache == "dynamic":
            cache.batch_select_indices(index)
            return cache
        if loop.cache == "preallocated":
            layers = [PreallocatedLayer(layer.keys[index], layer.values[index], slots) for layer in cache.layers]
            filled = DynamicCache()
            filled.layers = layers
            return filled
        # The same tensors for every batch of a shape: what was compiled holds on to them.
        key = len(index), slots
        if key not in self._static:
            self._static[key] = [StaticCache(config=m.config, max_cache_len=slots) for m in self.models]
        static = self._static[key][model]
        for old, new in zip(static.layers, cache.layers, strict=True):
            keys, values = new.keys[index], new.values[index]
            if not old.is_initialized:
                old.lazy_initialization(keys, values)
            old.keys[:, :, : keys.shape[2]], old.values[:, :, : keys.shape[2]] = keys, values
            old.cumulative_length.fill_(keys.shape[2])
        return static

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> Work:
        """`generate` of the original, its logits mixed with the variant's by transformers' own processor.

        One alpha per call, as the processor takes one.
        """
        workload, original, variant = self.workload, *self.models
        vocabulary, longest = original.config.vocab_size, workload.settings.max_new_tokens
        total = 0
        for alpha in dict.fromkeys(r.alpha for r in requests):
            for batch in _batches(workload, [r for r in requests if r.alpha == alpha]):
                ids, real = self._padded([r.prompt_id for r in batch])
                real = torch.ones_like(ids) if real is None else real
                mix = UnbatchedClassifierFreeGuidanceLogitsProcessor(alpha, variant, ids, real)
                processors = LogitsProcessorList([mix])
                if workload.num_tokens < vocabulary:
                    hidden = list(range(workload.num_tokens, vocabulary))
                    processors.append(SuppressTokensLogitsProcessor(hidden, device=device()))
                said = original.generate(
                    ids,
                    attention_mask=real,
                    logits_processor=processors,
                    do_sample=True,
                    top_k=0,
                    top_p=1.0,
                    temperature=1.0,
                    max_new_tokens=longest,
                    eos_token_id=list(workload.eos_ids) or None,
                    pad_token_id=0,
                )[:, ids.shape[1] :]
                for tokens in said.tolist():
                    own = tokens[: first_end(self.ends[tokens].tolist())]
                    workload.to_text(own)
                    total += len(own)
        return Work(len(requests), total)


def first_end(ends: Sequence[bool]) -> int:
    """How many tokens count: up to and including the first that ends, all if none does."""
    return ends.index(True) + 1 if True in ends else len(ends)


def _batches(workload: Workload, requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Batches of requests, those of a prompt together, and prompts by length, so that little is padded."""
    ordered = sorted(requests, key=lambda r: (len(workload.prompts[r.prompt_id]), r.prompt_id))
    for begin in range(0, len(ordered), workload.batch_size):
        yield ordered[begin : begin + workload.batch_size]


def _prompts(batch: Sequence[Request], shared: bool) -> tuple[list[str], list[int]]:
    """The prompts to compute, and which of them each row of the batch has."""
    if not shared:
        return [r.prompt_id for r in batch], list(range(len(batch)))
    distinct = list(dict.fromkeys(r.prompt_id for r in batch))
    return distinct, [distinct.index(r.prompt_id) for r in batch]


def _seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of several calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if device() == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
