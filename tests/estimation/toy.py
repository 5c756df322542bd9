"""A pair small enough to enumerate: every sequence of two random models, and what the path makes of it, exactly.

Responses are of the symbols 0, 1 and 2 and end at END or after LENGTH tokens: 121 sequences. A model is a table of
random logits [prefix, symbol], one row for each of the 40 prefixes that can go on. Use inside `float64()`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lpe_jax.types import Counts, Sums

LENGTH, SYMBOLS, END = 4, 4, 3
PREFIXES = [prefix for n in range(LENGTH) for prefix in itertools.product(range(END), repeat=n)]
SEQUENCES = [(*prefix, END) for prefix in PREFIXES] + list(itertools.product(range(END), repeat=LENGTH))


@functools.cache
def _steps():
    """(prefix, symbol, real), each [S, LENGTH]: the path of every sequence through the tables."""
    row = {prefix: i for i, prefix in enumerate(PREFIXES)}
    prefix, symbol, real = (np.zeros((len(SEQUENCES), LENGTH), int) for _ in range(3))
    for i, sequence in enumerate(SEQUENCES):
        for t, token in enumerate(sequence):
            prefix[i, t], symbol[i, t], real[i, t] = row[sequence[:t]], token, 1
    return prefix, symbol, real.astype(bool)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
    """original, variant: logits [prefix, symbol]; complied: [S] bool, an arbitrary set of sequences."""

    original: np.ndarray
    variant: np.ndarray
    complied: np.ndarray

    def _sum(self, table):
        """[S]: a table [prefix, symbol] summed along each sequence."""
        prefix, symbol, real = _steps()
        return jnp.sum(jnp.where(real, jnp.asarray(table)[prefix, symbol], 0.0), axis=1)

    def _next(self, alpha):
        """log p_alpha(symbol | prefix) [prefix, symbol]."""
        return jax.nn.log_softmax(alpha * self.original + (1 - alpha) * self.variant, axis=-1)

    @jax.jit
    def logp(self, alpha):
        """log p_alpha of every sequence [S]; differentiable by alpha."""
        return self._sum(self._next(alpha))

    @jax.jit
    def log_rate(self, alpha):
        """log P_alpha(C), []."""
        return jax.scipy.special.logsumexp(jnp.where(self.complied, self.logp(alpha), -jnp.inf))

    @jax.jit
    def given_complied(self, alpha):
        """p_alpha(sequence | C), [S]."""
        return jnp.where(self.complied, jnp.exp(self.logp(alpha) - self.log_rate(alpha)), 0.0)

    def _moments(self, alpha):
        p, d = jnp.exp(self._next(alpha)), self.original - self.variant
        mean = jnp.sum(p * d, axis=-1, keepdims=True)
        variance = jnp.sum(p * (d - mean) ** 2, axis=-1, keepdims=True)
        return d - mean, jnp.broadcast_to(variance, d.shape)

    @jax.jit
    def path_score(self, alpha):
        """Sum over tokens of D(token) - E_alpha[D], [S]."""
        return self._sum(self._moments(alpha)[0])

    @jax.jit
    def path_variance(self, alpha):
        """Sum over tokens of Var_alpha[D], [S]."""
        return self._sum(self._moments(alpha)[1])

    def draw(self, rng, alphas, rollouts) -> tuple[Counts, Sums]:
        """rollouts[k] rollouts at alphas[k], all scored; a row for every sequence at every alpha, refused ones too."""
        logp = np.stack([self.logp(alpha) for alpha in alphas], axis=-1)  # [S, A]
        drawn = np.stack([rng.multinomial(n, _exact(p)) for n, p in zip(rollouts, np.exp(logp).T, strict=True)])
        return self.table(alphas, rollouts, drawn)

    def table(self, alphas, rollouts, drawn) -> tuple[Counts, Sums]:
        """Counts and sums of sequences drawn [A, S] times."""
        n_cells, n_sequences = drawn.shape
        alphas = np.asarray(alphas, float)
        logp = np.stack([self.logp(alpha) for alpha in alphas], axis=-1)

        def rows(values):  # [S, ...] to [A S, ...]
            return np.concatenate([np.asarray(values)] * n_cells)

        sums = Sums(
            cell=np.repeat(np.arange(n_cells), n_sequences),
            count=drawn.reshape(-1),
            complied=rows(self.complied),
            logp=rows(logp),
            logp_original=rows(self.logp(1.0)),
            logp_variant=rows(self.logp(0.0)),
            path_score=np.concatenate([self.path_score(alpha) for alpha in alphas]),
            path_variance=np.concatenate([self.path_variance(alpha) for alpha in alphas]),
        )
        return Counts(alphas, np.asarray(rollouts), (drawn * self.complied).sum(1)), sums


def _exact(p):
    return p / p.sum()


def make_toy(seed: int, spread: float = 1.0, share: float = 0.3) -> Toy:
    """Two tables of independent normal logits with standard deviation `spread`; about `share` of sequences comply."""
    rng = np.random.default_rng(seed)
    original, variant = spread * rng.standard_normal((2, len(PREFIXES), SYMBOLS))
    complied = rng.random(len(SEQUENCES)) < share
    complied[rng.integers(len(SEQUENCES))] = True
    return Toy(original, variant, complied)
