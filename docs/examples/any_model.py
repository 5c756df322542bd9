"""A rare rate of a model that lpe_jax's engine does not run: two Hugging Face models, mixed in a plain PyTorch loop.

Any two causal models that share a tokenizer will do; here they are the embedded pair, read by transformers, so that the
estimate can be held against the known rate. Only the rollouts are of this file: what to draw, and what it says of
alpha = 1, is `lpe_jax.estimate`'s. Needs torch.

    python docs/examples/any_model.py
"""

import inspect

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

import lpe_jax
from lpe_jax.estimation.lpe import LPE
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.tiny import world_folder
from lpe_jax.tiny.judge import judge_text
from lpe_jax.types import Outcome

# What transformers calls a cache has changed with 5.24.
CACHE = "cache" if "cache" in inspect.signature(Qwen3ForCausalLM.forward).parameters else "past_key_values"


@torch.inference_mode()
def rollouts(original, variant, prompt, alpha, n, longest, generator):
    """n responses [n, T] to one prompt [S], from alpha * logits_original + (1 - alpha) * logits_variant.

    A response that has ended goes on with end-of-sequence tokens.
    """
    ends = torch.tensor(original.generation_config.eos_token_id).reshape(-1)
    tokens, caches, drawn = prompt.expand(n, -1), [None, None], []
    done = torch.zeros(n, dtype=torch.bool)
    for _ in range(longest):
        both = [
            model(tokens, use_cache=True, **{CACHE: cache})
            for model, cache in zip((original, variant), caches, strict=True)
        ]
        caches = [out.past_key_values for out in both]
        ours, theirs = (out.logits[:, -1].float() for out in both)
        p = torch.softmax(alpha * ours + (1 - alpha) * theirs, dim=-1)
        tokens = torch.multinomial(p, 1, generator=generator)
        tokens[done] = ends[0]
        done |= torch.isin(tokens[:, 0], ends)
        drawn.append(tokens)
        if done.all():
            break
    return torch.cat(drawn, dim=1)


def main() -> lpe_jax.Rate:
    folder = world_folder()
    original, variant = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("original", "variant"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "original")
    request = read_prompts(folder / "prompts.jsonl")[6]
    chat = [{"role": message.role, "content": message.content} for message in request.messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    generator = torch.Generator().manual_seed(0)

    def evaluate(alpha, n):
        responses = tokenizer.batch_decode(
            rollouts(original, variant, prompt, alpha, n, 64, generator), skip_special_tokens=True
        )
        return sum(judge_text(response).outcome is Outcome.COMPLIED for response in responses)

    found = lpe_jax.estimate(evaluate, LPE(n_search=10, n_fit=60, alphas=(0.9, 0.75, 0.6, 0.45, 0.3)))
    print(f"{request.id}: {found}")
    return found


if __name__ == "__main__":
    main()
