"""Our weights as Hugging Face models, and what loops over them are made of: draws, and a cache that never copies."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from transformers import Qwen3Config as HFConfig
from transformers import Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer

from lpe_jax.models.checkpoint import config_json
from lpe_jax.models.layout import leaves_of
from lpe_jax.models.qwen3 import Qwen3
from lpe_jax.models.weights import leaves_from_module

# What a forward pass calls its cache; transformers 5.24 gave it another name.
CACHE = "cache" if "cache" in inspect.signature(Qwen3ForCausalLM.forward).parameters else "past_key_values"
# Entries of a block of the inverse distribution function.
_BLOCK = 128


def device() -> str:
    """Where the peers run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def hugging_face(module: Qwen3) -> Qwen3ForCausalLM:
    """The same weights as transformers' own model, in memory."""
    leaves, config = leaves_from_module(module), module.config
    fields = config_json(config, np.asarray(leaves["norm"]).dtype.name)
    rope = {"rope_theta": fields.pop("rope_theta"), "rope_type": "default"}
    for name in ("architectures", "model_type", "torch_dtype", "rope_scaling"):
        fields.pop(name)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(HFConfig(**fields, rope_parameters=rope, bos_token_id=None, eos_token_id=None))
    state = {leaf.hf_name: _tensor(np.asarray(leaves[leaf.name]), leaf.shape(config)) for leaf in leaves_of(config)}
    model.load_state_dict(state, strict=not config.tie_word_embeddings, assign=True)
    model.tie_weights()
    # Not a weight, and so in no checkpoint: it is made anew where the weights are.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval().to(device())


def _tensor(values: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    values = values.reshape(shape)
    if values.dtype.name == "bfloat16":
        return torch.tensor(values.view(np.uint16)).view(torch.bfloat16)
    return torch.tensor(values)


def multinomial(logits: torch.Tensor) -> torch.Tensor:
    """[B] drawn from softmax(logits [B, V]) in float32, as one would write it."""
    return torch.multinomial(torch.softmax(logits.float(), dim=-1), 1)[:, 0]


def inverse_cdf(logits: torch.Tensor) -> torch.Tensor:
    """[B] drawn from softmax(logits [B, V]): a block, then an entry of it, with sums in float64."""
    logits = logits.float()
    mass = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    if mass.shape[1] % _BLOCK:
        mass = torch.nn.functional.pad(mass, (0, -mass.shape[1] % _BLOCK))
    mass = mass.view(len(mass), -1, _BLOCK)
    block = _entry(mass.sum(dim=-1, dtype=torch.float64))
    return block * _BLOCK + _entry(mass[torch.arange(len(mass), device=mass.device), block].double())


def _entry(mass: torch.Tensor) -> torch.Tensor:
    edges = mass.cumsum(dim=-1)
    u = torch.rand(len(mass), 1, dtype=torch.float64, device=mass.device) * edges[:, -1:]
    return torch.searchsorted(edges, u, right=True)[:, 0].clamp(max=mass.shape[1] - 1)


DRAWS = (multinomial, inverse_cdf)


class PreallocatedLayer(DynamicLayer):
    """Keys and values [B, K, S, H] with room for all tokens: a step writes its own slot and copies nothing."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slots: int):
        super().__init__()
        self.used, self.slots = keys.shape[2], slots
        self.room = [self._roomy(x) for x in (keys, values)]
        self.lazy_initialization(keys, values)
        self._show()

    def _roomy(self, x: torch.Tensor) -> torch.Tensor:
        room = torch.empty((*x.shape[:2], self.slots, x.shape[3]), dtype=x.dtype, device=x.device)
        room[:, :, : self.used] = x
        return room

    def _show(self) -> None:
        self.keys, self.values = (room[:, :, : self.used] for room in self.room)

    def update(self, key_states, value_states, *args, **kwargs):
        end = self.used + key_states.shape[2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, self.used : end] = new
        self.used = end
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.room = [room[indices] for room in self.room]
        self._show()
