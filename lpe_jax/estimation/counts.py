"""What can be wrong with counts that came from elsewhere, said before anything is fitted to them."""

from __future__ import annotations

import numpy as np

from lpe_jax.types import Counts


def check_counts(counts: Counts) -> Counts:
    """The same counts as NumPy float64 arrays [..., A], or a ValueError that names the first thing wrong.

    Checked on the host, before any jit: one alpha per cell, finite, no two alike; scored and complied whole,
    non-negative numbers with complied <= scored.
    """
    alpha, scored, complied = (np.asarray(x, np.float64) for x in (counts.alpha, counts.scored, counts.complied))
    if alpha.ndim == 0 or alpha.size == 0:
        raise ValueError(f"counts need at least one alpha on their last axis, and alpha has shape {alpha.shape}.")
    if not alpha.shape == scored.shape == complied.shape:
        raise ValueError(
            "alpha, scored and complied must have one shape, and have "
            f"{alpha.shape}, {scored.shape} and {complied.shape}."
        )
    if not np.isfinite(alpha).all():
        raise ValueError(f"alpha must be finite, and is {alpha[~np.isfinite(alpha)][0]} in one cell.")
    if (np.diff(np.sort(alpha, axis=-1), axis=-1) == 0).any():
        raise ValueError("each alpha must appear once: add up the counts of cells that share an alpha.")
    for name, values in (("scored", scored), ("complied", complied)):
        wrong = ~(np.isfinite(values) & (values >= 0) & (values == np.round(values)))
        if wrong.any():
            raise ValueError(
                f"{name} must be a whole number >= 0, and is {values[wrong][0]} at alpha {alpha[wrong][0]}."
            )
    more = complied > scored
    if more.any():
        raise ValueError(
            f"complied must not exceed scored, and at alpha {alpha[more][0]} it is "
            f"{complied[more][0]:.0f} of {scored[more][0]:.0f}."
        )
    if counts.tokens is not None and np.shape(counts.tokens) != alpha.shape:
        raise ValueError(f"tokens must have the shape of alpha, {alpha.shape}, and have {np.shape(counts.tokens)}.")
    return Counts(alpha, scored, complied, counts.tokens)
