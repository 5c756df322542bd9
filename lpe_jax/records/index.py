"""Where the rollouts of a store lie, in sixteen bytes each, so that none has to be in memory before it is asked for."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from lpe_jax.types import Request, Rollout

# A shard as columns: all of them, or those that are named.
ReadShard = Callable[..., pa.Table]
# Shards of so many bytes stay in memory: rollouts that are asked for together were mostly written together.
_OPEN_BYTES = 1 << 27


class Index:
    """Rollouts by (prompt id, alpha, index), each at a place: its number in the order in which all were written.

    Making it reads every shard once and verifies it; what is fetched is read again from its shard, and verified again.
    Where a rollout was drawn twice, by two processes that did not see one folder, the first one counts.
    """

    def __init__(self, shards: Sequence[ReadShard], rows: Callable[[pa.Table], Iterator[Rollout]]):
        """
        Args:
          shards: reads each, whole or some columns.
          rows: the rollouts of a shard's table.

        Raises:
          RunError: a shard is missing or damaged.
        """
        self._shards, self._rows = shards, rows
        self._open: collections.OrderedDict[int, pa.Table] = collections.OrderedDict()
        self._bytes = 0
        self._prompts: dict[str, int] = {}
        read = [self._columns(read(["prompt_id", "alpha", "index"])) for read in shards]
        self._starts = np.cumsum([0, *(len(index) for _, _, index in read)])
        self.total = int(self._starts[-1])  # rows, also those of rollouts that are there twice
        none = np.zeros(0, np.int32), np.zeros(0), np.zeros(0, np.int32)
        prompt, alpha, index = (np.concatenate(column) for column in zip(none, *read, strict=True))
        del read
        self._alpha, alpha = np.unique(alpha, return_inverse=True)
        self._alphas = {alpha: number for number, alpha in enumerate(self._alpha.tolist())}
        key = self._key_of(prompt, alpha, index)
        del prompt, alpha, index
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.ones(len(key), bool)
        first[1:] = key[1:] != key[:-1]
        self._key, self._place = key[first], order[first]  # [N] each, ascending by key

    def __len__(self) -> int:
        """Distinct rollouts."""
        return len(self._key)

    def places(self) -> np.ndarray:
        """Of all distinct rollouts [N], ascending."""
        return np.sort(self._place)

    def find(self, requests: Sequence[Request]) -> np.ndarray:
        """The places of rollouts [n], -1 where there is none."""
        if not len(self):
            return np.full(len(requests), -1)
        cells = [(self._prompts.get(r.prompt_id, -1), self._alphas.get(r.alpha, -1), r.index) for r in requests]
        prompt, alpha, index = np.array(cells, np.int64).reshape(-1, 3).T
        key = self._key_of(prompt, alpha, index)
        at = np.minimum(np.searchsorted(self._key, key), len(self) - 1)
        known = (prompt >= 0) & (alpha >= 0) & (self._key[at] == key)
        return np.where(known, self._place[at], -1)

    def of_prompt(self, prompt_id: str) -> tuple[np.ndarray, np.ndarray]:
        """The alphas [n] and places [n] of a prompt's rollouts, in the order in which they were written."""
        if (prompt := self._prompts.get(prompt_id)) is None:
            return np.zeros(0), np.zeros(0, np.int64)
        begin, end = np.searchsorted(self._key, [self._key_of(prompt, 0, 0), self._key_of(prompt + 1, 0, 0)])
        alphas = self._alpha[(self._key[begin:end] >> _INDEX_BITS) - prompt * len(self._alpha)]
        order = np.argsort(self._place[begin:end])
        return alphas[order], self._place[begin:end][order]

    def fetch(self, places: Sequence[int] | np.ndarray) -> list[Rollout]:
        """The rollouts at these places, in this order.

        Raises:
          RunError: a shard is missing or damaged.
        """
        places = np.asarray(places, np.int64)
        found: list[Rollout] = [None] * len(places)
        shard_of = np.searchsorted(self._starts, places, side="right") - 1
        for shard in np.unique(shard_of).tolist():
            at = np.flatnonzero(shard_of == shard)
            table = self._table(shard).take(pa.array(places[at] - self._starts[shard]))
            for i, rollout in zip(at.tolist(), self._rows(table), strict=True):
                found[i] = rollout
        return found

    def _table(self, shard: int) -> pa.Table:
        """A shard, which stays open until there is no room for it beside what was asked for since."""
        if shard not in self._open:
            self._open[shard] = self._shards[shard]()
            self._bytes += self._open[shard].nbytes
            while len(self._open) > 1 and self._bytes > _OPEN_BYTES:
                self._bytes -= self._open.popitem(last=False)[1].nbytes
        self._open.move_to_end(shard)
        return self._open[shard]

    def _columns(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of prompts, alphas and indices: [R] each. A prompt that is new gets a number."""
        ids = table.column("prompt_id").combine_chunks()
        prompts = [self._prompts.setdefault(name, len(self._prompts)) for name in ids.dictionary.to_pylist()]
        # Copies, as what they are views of is larger.
        alpha, index = (np.array(table.column(name)) for name in ("alpha", "index"))
        return np.array(prompts, np.int32)[ids.indices.to_numpy()], alpha, index

    def _key_of(self, prompt, alpha, index):
        """One number for all three: the cell, then the index in it."""
        return (np.int64(prompt) * len(self._alpha) + alpha << _INDEX_BITS) | index


_INDEX_BITS = 31
