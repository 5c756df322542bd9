"""What several tests build: tiny Hugging Face checkpoints, tiny modules, a loaded pair."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lpe_jax.models import weights
from lpe_jax.models.checkpoint import open_checkpoint, verified
from lpe_jax.models.config import Qwen3Config
from lpe_jax.models.layout import leaves_of
from lpe_jax.models.pair import Pair, pair_modules
from lpe_jax.models.qwen3 import Qwen3
from lpe_jax.models.weights import module_from_leaves

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 12345.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


def hf_model(seed: int = 0, dtype: str = "float32", **overrides):
    """A random torch Qwen3ForCausalLM. Norm weights are random too: at their initial 1 a swap would go unseen."""
    import torch
    from transformers import Qwen3Config as HFConfig
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(seed)
    fields = TINY | overrides
    theta = fields.pop("rope_theta")
    config = HFConfig(**fields, rope_parameters={"rope_theta": theta, "rope_type": "default"}, bos_token_id=1)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "embed" in name or "lm_head" in name:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 0.2)
    return model.to(getattr(torch, dtype))


CHAT_TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def save_tokenizer(folder: Path, words: tuple[str, ...] = ("at", "th"), template: str = CHAT_TEMPLATE) -> int:
    """A byte-level tokenizer with a few merges and Qwen3's markers; returns the id of <|im_end|>.

    words: each another one, or a byte, and one byte more.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet()) + list(words)
    merges = [(w[:-1], w[-1]) for w in words]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return tokenizer.token_to_id("<|im_end|>")


# As a guard's: it asks for moderation by itself, whether or not it is told to add a generation prompt.
GUARD_TEMPLATE = (
    "{{- '<|im_start|>user\\nBEGIN\\n' }}"
    "{%- for m in messages %}{{- m.role + ': ' + m.content + '\\n' }}{%- endfor %}"
    "{{- 'END\\nSafety: Categories: Refusal:<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}"
)
ANSWER_WORDS = ("Ye", "Yes", "No", "at", "th")


def save_judge(folder: Path, model: Qwen3, template: str = CHAT_TEMPLATE) -> Path:
    """A checkpoint that can judge: a module, a tokenizer whose template makes it a chat model or a guard, its end."""
    weights.save_module(model, folder)
    end = save_tokenizer(folder, ANSWER_WORDS, template)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    return folder


def save_hf_pair(folder: Path, **overrides) -> tuple[Path, Path]:
    """folder/original and folder/variant as transformers saves them: random models, tokenizer, generation config."""
    import torch

    paths = folder / "original", folder / "variant"
    for path in paths:
        model = hf_model(0, **({"vocab_size": 272} | overrides))
        if path.name == "variant":
            with torch.no_grad():
                for layer in model.model.layers:
                    layer.self_attn.o_proj.weight *= -0.5
                    layer.mlp.down_proj.weight *= 1.5
        end = save_tokenizer(path)
        model.generation_config.eos_token_id = [end, end - 2]
        model.save_pretrained(path)
    return paths


def load_module(folder: Path, dtype=jnp.float32, mesh=None) -> Qwen3:
    """One checkpoint through the real loader as a module."""
    return weights.load_module(verified(open_checkpoint(str(folder)), dtype), dtype, mesh)


def tiny_config(**overrides) -> Qwen3Config:
    fields = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
    }
    return Qwen3Config(**(fields | overrides))


def random_module(config: Qwen3Config, seed: int = 0) -> Qwen3:
    """As Qwen3's own initialisation, but drawn by NumPy: jax.random compiles for seconds for each shape."""
    rng, kinds = np.random.default_rng(seed), {}
    for leaf in leaves_of(config):
        kinds.setdefault(leaf.name.split(".")[-1], []).append(leaf)
    leaves = {}
    for kind, alike in kinds.items():
        shape = (len(alike), *alike[0].shape(config))
        values = np.ones(shape) if "norm" in kind else 0.02 * rng.standard_normal(shape)
        leaves |= {leaf.name: jnp.asarray(value, jnp.float32) for leaf, value in zip(alike, values, strict=True)}
    return module_from_leaves(config, leaves)


def tiny_module(seed: int = 0, scale: float = 20.0, **overrides) -> Qwen3:
    """A random module whose next-token distributions are far from uniform."""
    model = random_module(tiny_config(**overrides), seed)
    head = model.embed_tokens if model.config.tie_word_embeddings else model.lm_head
    head[...] = head[...] * scale
    return model


def tiny_pair(num_tokens: int = 60, eos_ids: tuple[int, ...] = (3, 7), **overrides) -> Pair:
    """Original and a variant that differs in o_proj and down_proj."""
    original, variant = tiny_module(0, **overrides), tiny_module(0, **overrides)
    for layer in variant.layers:
        layer.o_proj[...] *= -8.0
        layer.down_proj[...] *= 12.0
    return pair_modules(original, variant, num_tokens=num_tokens, eos_ids=eos_ids)
