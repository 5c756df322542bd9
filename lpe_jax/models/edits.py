"""Whether one matrix is a low-rank edit of another, measured from their values.

Abliteration takes a direction r out of every matrix W that writes into the residual stream, W' = W − r rᵀ W (Arditi
et al. 2024, arXiv 2406.11717, section 4.1); some tools take out several, or a part. All are W' = P W with
P = I − U C Uᵀ, U [D, E] orthonormal. U is the span of what changed, W' − W, and C the least-squares fit. A pair whose
differing matrices are such edits needs one set of weights (`Edit` in models/qwen3.py).

Matrices are seen as many vectors of the residual stream: rows of the embedding and the head, columns of projections.
Legend as in models/qwen3.py, and X vectors of a matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

MAX_RANK = 3
# Directions followed beyond the largest that may be there, so that a further one shows.
_BESIDE = 5
# What an edit leaves may have this many times the energy of rounding, and its largest singular value this many times
# that of noise of such an energy: more is another change besides. Of the change it may be no more than such a share in
# any case, as a change within rounding is all unexplained.
_MOST_ENERGY, _MOST_SINGULAR, _MOST_LEFT = 4.0, 4.0, 0.2
# Above rounding of the stored values, the error of products in float32 by whoever made the edit.
_FLOAT32_PRODUCTS = 4e-6

# Original and edited values of some vectors at a time, [x, D] each.
Blocks = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The edit of the lowest rank that explains a change, or the best there is.

    Attributes:
      u, a: P = I − u a, [D, E] and [E, D] float64.
      rank: E.
      next_ratio: the next singular value of the change, as a share of the first.
      left: the size (Frobenius norm) of what is unexplained, as a share of that of the change.
      off: by how much an entry of P W is off at most, as a share of the largest of: that entry in W, in W', and the
        root mean square of W, as the fit is off by as much in small entries as in large ones.
      allowed: what next_ratio, left and off may be for the edit to be the whole change: what rounding explains.
    """

    u: np.ndarray
    a: np.ndarray
    next_ratio: float
    left: float
    off: float
    allowed: tuple[float, float, float]

    @property
    def rank(self) -> int:
        return self.u.shape[1]

    @property
    def exact(self) -> bool:
        """Whether the edit is the whole change, up to rounding."""
        return all(
            found <= most for found, most in zip((self.next_ratio, self.left, self.off), self.allowed, strict=True)
        )

    def words(self) -> str:
        """The numbers in a few words."""
        return (
            f"rank {self.rank}, next singular value {self.next_ratio:.1e} of the first, {self.left:.1e} of the change "
            f"left, entries off by up to {self.off:.1e}; rounding explains "
            f"{', '.join(f'{most:.1e}' for most in self.allowed)}"
        )


def measure(blocks: Blocks, size: int, eps: float) -> Measured:
    """The edit that makes one matrix of the other; four passes over their values.

    Args:
      blocks: iterates over all vectors, afresh each time it is called.
      size: D.
      eps: spacing of numbers next to 1 in the dtype the edited values were rounded to, and maybe the others.
    """
    # Subspace iteration on the change's [D, D] Gram matrix, which is never formed.
    basis = np.random.default_rng(0).standard_normal((size, min(size, MAX_RANK + _BESIDE)))
    for _ in range(2):
        basis = np.linalg.qr(basis)[0]
        image, total, typical, entries = np.zeros_like(basis), 0.0, 0.0, 0
        for before, after in blocks():
            change = _wide(after) - _wide(before)
            image += change.T @ (change @ basis)
            total += float(np.sum(np.square(change)))
            typical += float(np.sum(np.square(_wide(before))))
            entries += before.size
        squares, mixing = np.linalg.eigh(basis.T @ image)
        squares, basis_now = np.maximum(squares[::-1], 0.0), basis @ mixing[:, ::-1]
        basis = image
    if not total:  # only signs of zeros differ
        return Measured(np.zeros((size, 1)), np.zeros((1, size)), 0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
    u = basis_now[:, :MAX_RANK]
    ratios = np.sqrt(np.append(squares, 0.0) / squares[0])

    own, moved = np.zeros((u.shape[1],) * 2), np.zeros((u.shape[1],) * 2)
    for before, after in blocks():
        along = _wide(before) @ u  # [x, E]
        own += along.T @ along
        moved += along.T @ ((_wide(after) - _wide(before)) @ u)
    # Several at once: the next rank is looked at only if the one before is not enough, and passes are what costs.
    edits = []
    for rank in range(1, u.shape[1] + 1):
        c = -np.linalg.lstsq(own[:rank, :rank], moved[:rank, :rank], rcond=None)[0].T
        edits.append((u[:, :rank], c @ u[:, :rank].T))
    left, off = np.zeros(len(edits)), np.zeros(len(edits))
    for before, after in blocks():
        before, after = _wide(before), _wide(after)
        scale = np.maximum(np.maximum(np.abs(before), np.abs(after)), np.sqrt(typical / entries))
        for i, (u_i, a_i) in enumerate(edits):
            error = after - before + (before @ a_i.T) @ u_i.T
            left[i] += np.sum(np.square(error))
            off[i] = max(off[i], np.max(np.abs(error) / np.where(scale > 0, scale, 1.0)))
    # Rounding is off by up to half a spacing, evenly.
    noise = np.sqrt(_MOST_ENERGY * typical * (eps**2 / 12 + _FLOAT32_PRODUCTS**2))
    singular = _MOST_SINGULAR * noise * (size**-0.5 + (entries / size) ** -0.5) / np.sqrt(squares[0])
    shares = singular, noise / np.sqrt(total)
    allowed = *(min(float(share), _MOST_LEFT) for share in shares), eps + _FLOAT32_PRODUCTS
    found = [
        Measured(*edit, float(ratios[i + 1]), float(np.sqrt(left[i] / total)), float(off[i]), allowed)
        for i, edit in enumerate(edits)
    ]
    return next((edit for edit in found if edit.exact), min(found, key=lambda edit: edit.left))


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)
