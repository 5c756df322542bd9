"""Rollouts as a prefix tree: each distinct prefix is evaluated once and carries how many rollouts share it.

A node holds a count of rollouts per alpha; its children get multinomial shares of them. Rollouts drawn in this way
are i.i.d. exactly as if they had been drawn one by one, at the cost of the distinct prefixes among them: ten million
rollouts of a model that nearly always says one of a dozen things are a few thousand evaluations.

The tree is walked depth first, a batch of nodes at a time and the newest first, so that what is kept does not
grow with the number of rollouts. A row of the device goes down from a node to the child that most rollouts go to, and
finds its ancestors' keys and values where it left them: once rollouts have parted it draws one as plain sampling does.
The other children wait, and are taken up by rows that come to an end. For them, keys and values are kept in a pool on
the host, one entry per evaluated node. Those of the prompt are computed once and seen by all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.tree_step import Evaluator
from lpe_jax.models.pair import Pair

# Up to this many rollouts are drawn one by one, beyond it as a multinomial; which is faster, nothing else.
_FEW_ROLLOUTS = 8

Decide = Callable[[np.ndarray, np.ndarray], Sequence[object]]


@dataclasses.dataclass(frozen=True)
class Leaves:
    """n distinct responses and how many rollouts drew each.

    Log-probabilities are in nats at the sampling temperature and include the end-of-sequence token.

    Attributes:
      tokens: [n, T] int32, end-of-sequence token included; −1 after the end.
      length: [n] tokens.
      finish: [n] "stop" at an end-of-sequence token, "length" at max_new_tokens, "decided" where `decided` gave a
        label: then the row stands for every response that begins with these tokens.
      label: [n] object, what `decided` said; None elsewhere.
      counts: [n, A] rollouts drawn at each alpha.
      logp: [n, A] log p at each alpha, drawn there or not.
      logp_original, logp_variant: [n]; the latter is NaN if only the original was run.
      path_score: [n, A] d/dalpha log p_alpha; NaN at alphas without a rollout, or if only the original was run.
      path_variance: [n, A] sum over tokens of the variance of original − variant; NaN where path_score is.
      nodes: evaluations of a prefix that these leaves took.
    """

    tokens: np.ndarray
    length: np.ndarray
    finish: np.ndarray
    label: np.ndarray
    counts: np.ndarray
    logp: np.ndarray
    logp_original: np.ndarray
    logp_variant: np.ndarray
    path_score: np.ndarray
    path_variance: np.ndarray
    nodes: int

    def __len__(self) -> int:
        return len(self.length)

    def sequence(self, row: int) -> list[int]:
        """The tokens of one leaf."""
        return self.tokens[row, : self.length[row]].tolist()


@dataclasses.dataclass(frozen=True)
class _Nodes:
    """Prefixes that wait for their evaluation. G = A + 2: the alphas, then 1 and 0."""

    depth: np.ndarray  # [n], tokens of the response so far
    tokens: np.ndarray  # [n, T], −1 after depth
    ancestors: np.ndarray  # [n, T] pool entries of the depth shorter prefixes, the empty one first; 0 after depth
    counts: np.ndarray  # [n, A]
    logp: np.ndarray  # [n, G]
    score: np.ndarray  # [n, A]
    variance: np.ndarray  # [n, A]
    row: np.ndarray  # [n] the row that holds the ancestors' keys and values, if it is taken up at once; else −1

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def last(self) -> np.ndarray:
        """[n] each prefix's last token; of no meaning for the empty one."""
        return self.tokens[np.arange(len(self)), self.depth - 1]

    def __getitem__(self, rows) -> _Nodes:
        return _Nodes(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


def sample_tree(
    pair: Pair,
    prompt: Sequence[int],
    alphas: Sequence[float] | np.ndarray,
    rollouts: Sequence[int] | np.ndarray,
    settings: SamplingSettings,
    *,
    seed: int | Sequence[int],
    decided: Decide | None = None,
    original_only: bool = False,
    batch: int = 128,
    memory_bytes: int = 1 << 28,
) -> Leaves:
    """All leaves of `tree_leaves` at once; same arguments, and memory for every distinct response."""
    parts = list(
        tree_leaves(
            pair,
            prompt,
            alphas,
            rollouts,
            settings,
            seed=seed,
            decided=decided,
            original_only=original_only,
            batch=batch,
            memory_bytes=memory_bytes,
        )
    )
    columns = [f.name for f in dataclasses.fields(Leaves) if f.name != "nodes"]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    return Leaves(**joined, nodes=sum(part.nodes for part in parts))


def tree_leaves(
    pair: Pair,
    prompt: Sequence[int],
    alphas: Sequence[float] | np.ndarray,
    rollouts: Sequence[int] | np.ndarray,
    settings: SamplingSettings,
    *,
    seed: int | Sequence[int],
    decided: Decide | None = None,
    original_only: bool = False,
    batch: int = 128,
    memory_bytes: int = 1 << 28,
) -> Iterator[Leaves]:
    """Draws rollouts[a] i.i.d. rollouts of one prompt at alphas[a], for every a, and yields them as they finish.

    Logits are float32; mixing, softmax and the draw are float64. A next-token probability is off by at most about
    1e-16, absolutely, on top of what the float32 logits are worth.

    Args:
      pair: both models.
      prompt: [P] token ids, at least one.
      alphas: [A] any real numbers; log p is also reported at alphas of which no rollout is drawn.
      rollouts: [A] how many to draw at each, 0 to 2^53.
      settings: temperature and max_new_tokens; truncation is not supported.
      seed: the result is a function of it, of the arguments and of the hardware's rounding.
      decided: given tokens [n, T] (−1 after the end) and length [n] of unfinished prefixes, a label for each, or
        None to go on. A prefix with a label becomes a leaf: right for anything that the prefix settles, such as
        an outcome that no continuation can change.
      original_only: run one model, at about half the cost; every alpha must be 1.
      batch: nodes evaluated at a time, at most. Each keeps keys and values of max_new_tokens tokens on the device.
      memory_bytes: on the host, roughly what waiting nodes and the pool may take together. It sets how many nodes are
        expanded at a time; one by one is the least, which needs max_new_tokens · V waiting nodes at worst.

    Raises:
      ValueError: an argument is not as described.
    """
    alphas = np.asarray(alphas, np.float64)
    rollouts = np.asarray(rollouts, np.int64)
    _check(pair, prompt, alphas, rollouts, settings, original_only, batch)
    rng = np.random.default_rng(seed)
    vocab = min(pair.num_tokens, pair.config.vocab_size)
    widest = _most_waiting(memory_bytes, settings.max_new_tokens, len(alphas)) // vocab - settings.max_new_tokens
    # No wider than the walk can ever be, as every row costs, in use or not; powers of 2 are few shapes to compile.
    rows = 1 << (max(1, min(int(rollouts.sum()), widest)) - 1).bit_length()
    evaluator = Evaluator(pair, prompt, alphas, settings, original_only, min(batch, rows))
    walk = _Walk(evaluator, settings.max_new_tokens, memory_bytes)
    walk.push(_root(alphas, rollouts, settings.max_new_tokens))
    eos = np.array(pair.eos_ids)
    while walk.waiting:
        nodes, entries, own, logz = walk.evaluate()
        children, parent = _grow(rng, nodes, entries, own, logz, alphas)
        finish = np.where(children.depth == settings.max_new_tokens, "length", "").astype("<U7")
        finish[np.isin(children.last, eos)] = "stop"
        label = np.full(len(children), None, object)
        if decided is not None:
            rows = np.flatnonzero(finish == "")
            for row, word in zip(rows, decided(children.tokens[rows], children.depth[rows]), strict=True):
                if word is not None:
                    finish[row], label[row] = "decided", word
        done = finish != ""
        walk.push(*_who_goes_on(children[~done], parent[~done], nodes.row))
        yield _leaves(children[done], finish[done], label[done], original_only, len(nodes))


def _check(pair, prompt, alphas, rollouts, settings, original_only, batch) -> None:
    if not len(prompt) or min(prompt) < 0 or max(prompt) >= pair.config.vocab_size:
        raise ValueError("prompt must be one token id or more, each within the vocabulary")
    if alphas.ndim != 1 or alphas.shape != rollouts.shape or not np.isfinite(alphas).all():
        raise ValueError(f"alphas {alphas.shape} and rollouts {rollouts.shape} must be finite, [A] and of one length")
    if (rollouts < 0).any() or (rollouts > 2**53).any() or not rollouts.any():
        raise ValueError("rollouts must be in 0 … 2^53, and one of them above 0")
    if settings.truncates:
        raise ValueError("the tree sampler does not truncate: top_k must be 0 and top_p 1")
    if original_only and (alphas != 1).any():
        raise ValueError("original_only draws at alpha = 1 only")
    if batch < 1:
        raise ValueError(f"batch = {batch} must be at least 1")


def _root(alphas: np.ndarray, rollouts: np.ndarray, max_new_tokens: int) -> _Nodes:
    a = len(alphas)
    return _Nodes(
        depth=np.zeros(1, np.int64),
        tokens=np.full((1, max_new_tokens), -1, np.int32),
        ancestors=np.zeros((1, max_new_tokens), np.int32),
        counts=rollouts[None, :].copy(),
        logp=np.zeros((1, a + 2)),
        score=np.zeros((1, a)),
        variance=np.zeros((1, a)),
        row=np.full(1, -1),
    )


def _who_goes_on(children: _Nodes, parent: np.ndarray, row: np.ndarray) -> tuple[_Nodes, _Nodes]:
    """(those that wait, those that go on in their parent's row: of each parent the child that most rollouts go to).

    parent: [n] of each child; row: [parents] where each parent was evaluated.
    """
    by_parent = np.lexsort((-children.counts.sum(axis=1), parent))
    goes_on = np.zeros(len(children), bool)
    goes_on[by_parent[np.unique(parent[by_parent], return_index=True)[1]]] = True
    there = dataclasses.replace(children, row=np.where(goes_on, row[parent], -1))
    return there[~goes_on], there[goes_on]


def _most_waiting(memory_bytes: int, max_new_tokens: int, alphas: int) -> int:
    """How many nodes may wait: half the memory is theirs."""
    return memory_bytes // 2 // (8 * max_new_tokens + 8 * (4 * alphas + 4))


class _Walk:
    """The stack of waiting nodes and the pool of keys and values of their ancestors.

    Entry 0 of the pool is never used: padding points at it. Entries are freed by marking what waiting nodes still
    refer to. Popping at least 2 nodes requires room for three descents to the full depth, so popping one by one,
    which takes one descent at a time, never runs out.
    """

    def __init__(self, evaluator: Evaluator, max_new_tokens: int, memory_bytes: int):
        a = len(evaluator.grid) - 2
        self.evaluator, self.depth, self.batch = evaluator, max_new_tokens, evaluator.rows
        self.most_waiting = _most_waiting(memory_bytes, max_new_tokens, a)
        entries = max(memory_bytes // 2 // evaluator.entry_bytes, 4 * max_new_tokens) + 1
        self.pool = np.empty((entries, *evaluator.entry_shape), evaluator.dtype)
        self.pool[0] = 0
        self.free = np.arange(entries - 1, 0, -1)
        self.stack: list[_Nodes] = []
        self.waiting = 0

    def push(self, *parts: _Nodes) -> None:
        for nodes in parts:
            if len(nodes):
                self.stack.append(nodes)
                self.waiting += len(nodes)

    def evaluate(self) -> tuple[_Nodes, np.ndarray, np.ndarray, np.ndarray]:
        """Evaluates the newest nodes: (nodes, their pool entries [n], own logits [M, n, V], log Z [n, G])."""
        nodes = self._settle(self._pop(self._width()))
        entries, self.free = np.split(self.free, [len(nodes)])
        token, depth = np.zeros((2, self.batch), np.int32)
        token[nodes.row], depth[nodes.row] = nodes.last, nodes.depth
        own, logz, kv = self.evaluator(token, depth)
        self.pool[entries] = kv[nodes.row]
        return nodes, entries, own[:, nodes.row].astype(np.float64), logz[nodes.row].astype(np.float64)

    def _settle(self, nodes: _Nodes) -> _Nodes:
        """The nodes, each with a row that holds its ancestors' keys and values."""
        homeless = nodes.row < 0
        free = np.setdiff1d(np.arange(self.batch), nodes.row[~homeless])[: homeless.sum()]
        self.evaluator.load(free, self.pool, nodes.ancestors[homeless])
        if self.stack:  # those of the last step that are not taken up lose their row
            self.stack[-1].row[:] = -1
        row = nodes.row.copy()
        row[homeless] = free
        return dataclasses.replace(nodes, row=row)

    def _width(self) -> int:
        if len(self.free) < self.batch + 3 * self.depth:
            used = np.zeros(len(self.pool), bool)
            used[0] = True
            for nodes in self.stack:
                used[nodes.ancestors] = True
            self.free = np.flatnonzero(~used)
        vocab = self.evaluator.vocab
        by_pool = (len(self.free) - self.depth) // self.depth
        by_stack = (self.most_waiting - self.waiting) // vocab - self.depth
        return max(1, min(self.batch, by_pool, by_stack))

    def _pop(self, width: int) -> _Nodes:
        parts = []
        while width and self.stack:
            top = self.stack.pop()
            if len(top) > width:
                self.stack.append(top[:-width])
                top = top[-width:]
            parts.append(top)
            width -= len(top)
            self.waiting -= len(top)
        if len(parts) == 1:
            return parts[0]
        columns = [f.name for f in dataclasses.fields(_Nodes)]
        return _Nodes(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def _grow(rng, nodes: _Nodes, entries, own, logz, alphas) -> tuple[_Nodes, np.ndarray]:
    """The children that any rollout goes to, and whose each is; own [M, n, V], logz [n, G], alphas [A], entries [n]."""
    original, variant = own[0], own[-1]
    vocab, a = original.shape[1], len(alphas)
    row, column = np.nonzero(nodes.counts)  # [Q]: only these distributions are needed
    at = alphas[column, None]
    p = at * original[row] + (1 - at) * variant[row]  # [Q, V]
    np.exp(p - p.max(axis=1, keepdims=True), out=p)
    p /= p.sum(axis=1, keepdims=True)
    pair, token, count = draw_counts(rng, nodes.counts[row, column], p)

    difference = original - variant  # [n, V]
    mean, variance = np.zeros((2, *nodes.counts.shape))
    d = difference[row]
    mean[row, column] = np.einsum("QV,QV->Q", p, d)
    d -= mean[row, column, None]
    variance[row, column] = np.einsum("QV,QV,QV->Q", p, d, d)

    keys, child = np.unique(row[pair] * vocab + token, return_inverse=True)
    parent, token = np.divmod(keys, vocab)
    counts = np.bincount(child * a + column[pair], weights=count, minlength=len(keys) * a)
    # log p at the grid: logits at the token are mixed as they were on the device, less log Z.
    at_token, other = original[parent, token, None], variant[parent, token, None]
    grid = np.concatenate([alphas, [1.0, 0.0]])
    logp = nodes.logp[parent] + grid * at_token + (1 - grid) * other - logz[parent]
    depth = nodes.depth[parent]
    tokens, ancestors = nodes.tokens[parent], nodes.ancestors[parent]
    tokens[np.arange(len(keys)), depth] = token
    ancestors[np.arange(len(keys)), depth] = entries[parent]
    children = _Nodes(
        depth=depth + 1,
        tokens=tokens,
        ancestors=ancestors,
        counts=counts.reshape(-1, a).astype(np.int64),
        logp=logp,
        score=nodes.score[parent] + difference[parent, token, None] - mean[parent],
        variance=nodes.variance[parent] + variance[parent],
        row=np.full(len(keys), -1),
    )
    return children, parent


def draw_counts(rng: np.random.Generator, n: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, ...]:
    """Multinomial(n[q], p[q]) for each of Q distributions, as the entries that are not zero.

    Sums of conditional binomials run from the largest probability down, and what remains is summed from the
    smallest up: subtracting from 1, as numpy's own multinomial does, would leave rounding errors of 1e-16 in the
    tail and give what is left to the last entry, even one of probability 0.

    Args:
      n: [Q] int, at least 1.
      p: [Q, V] float64, rows that sum to 1 up to rounding.

    Returns:
      q, v, count: [C] each; a (q, v) may come more than once, its counts are to be added.
    """
    few = np.flatnonzero(n <= _FEW_ROLLOUTS)
    edges = np.cumsum(p[few], axis=1)
    drawn = np.repeat(np.arange(len(few)), n[few])
    u = rng.random(len(drawn)) * edges[drawn, -1]
    token = np.sum(edges[drawn] <= u[:, None], axis=1)
    parts = [(few[drawn], token, np.ones(len(drawn), np.int64))]

    many = np.flatnonzero(n > _FEW_ROLLOUTS)
    order = np.argsort(-p[many], axis=1, kind="stable")
    ordered = np.take_along_axis(p[many], order, axis=1)
    remaining = np.cumsum(ordered[:, ::-1], axis=1)[:, ::-1]
    left = n[many]
    for v in range(p.shape[1]):
        open_ = np.flatnonzero(left)
        if not len(open_):
            break
        # At the last entry that is not 0 the quotient is exactly 1, so nothing is ever left for a zero.
        x = rng.binomial(left[open_], ordered[open_, v] / remaining[open_, v])
        left[open_] -= x
        hit = open_[x > 0]
        parts.append((many[hit], order[hit, v], x[x > 0]))
    q, v, count = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return q, v, count


def _leaves(nodes: _Nodes, finish, label, original_only: bool, evaluated: int) -> Leaves:
    unknown = (nodes.counts == 0) | original_only
    return Leaves(
        tokens=nodes.tokens,
        length=nodes.depth,
        finish=finish,
        label=label,
        counts=nodes.counts,
        logp=nodes.logp[:, :-2],
        logp_original=nodes.logp[:, -2],
        logp_variant=np.full(len(nodes), np.nan) if original_only else nodes.logp[:, -1],
        path_score=np.where(unknown, np.nan, nodes.score),
        path_variance=np.where(unknown, np.nan, nodes.variance),
        nodes=evaluated,
    )
