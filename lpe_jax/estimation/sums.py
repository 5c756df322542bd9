"""What can be wrong with rollouts' sums that came from elsewhere, said before anything is weighted by them."""

from __future__ import annotations

import numpy as np

from lpe_jax.types import Counts, Sums


def check_sums(counts: Counts, sums: Sums) -> Sums:
    """The same sums as NumPy arrays, or a ValueError that names the first thing wrong.

    Checked on the host, before any jit, against counts [..., A] that `counts.check_counts` has passed: the shapes
    [..., N] and logp [..., N, A]; counts of rows whole and not negative; and in rows of count > 0, cells within the
    counts, log-probabilities finite, compliant rows as many as complied at each alpha, and no more rows than scored.
    """
    n_cells = np.shape(counts.alpha)[-1]
    count = np.asarray(sums.count, np.float64)
    shape, batch = count.shape, np.shape(counts.alpha)[:-1]
    if count.ndim != len(batch) + 1 or shape[:-1] != batch:
        raise ValueError(
            f"count must have shape {batch} + (N,), as the counts have {np.shape(counts.alpha)}: it has {shape}."
        )
    fields = {name: np.asarray(getattr(sums, name)) for name in Sums.__dataclass_fields__}
    for name, values in fields.items():
        wanted = (*shape, n_cells) if name == "logp" else shape
        if values.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, a row for each count, and has {values.shape}.")
    wrong = ~(np.isfinite(count) & (count >= 0) & (count == np.round(count)))
    if wrong.any():
        raise ValueError(f"count must be a whole number >= 0, and is {count[wrong][0]} {_where(wrong)}.")

    used = count > 0
    cell = fields["cell"]
    wrong = used & ~((cell >= 0) & (cell < n_cells) & (cell == np.round(cell)))
    if wrong.any():
        raise ValueError(f"cell must index one of the {n_cells} alphas, and is {cell[wrong][0]} {_where(wrong)}.")
    for name in ("logp", "logp_original", "logp_variant"):
        finite = np.isfinite(fields[name])
        wrong = used & ~(finite.all(axis=-1) if name == "logp" else finite)
        if wrong.any():
            raise ValueError(f"{name} must be finite, and is not {_where(wrong)}: give rows to be ignored count 0.")

    here = np.where(used, cell, 0).astype(int)[..., None] == np.arange(n_cells)  # [..., N, A]
    complied, refused = (
        (here * np.where(kind & used, count, 0.0)[..., None]).sum(axis=-2)
        for kind in (fields["complied"].astype(bool), ~fields["complied"].astype(bool))
    )
    alpha = np.asarray(counts.alpha, float)
    wrong = complied != np.asarray(counts.complied)
    if wrong.any():
        raise ValueError(
            f"compliant rows must be complete, and at alpha {alpha[wrong][0]} they stand for {complied[wrong][0]:.0f} "
            f"rollouts where {np.asarray(counts.complied)[wrong][0]:.0f} complied."
        )
    wrong = complied + refused > np.asarray(counts.scored)
    if wrong.any():
        raise ValueError(
            f"rows must be of scored rollouts, and at alpha {alpha[wrong][0]} they stand for "
            f"{(complied + refused)[wrong][0]:.0f} where {np.asarray(counts.scored)[wrong][0]:.0f} were scored."
        )
    return Sums(
        **{**fields, "cell": np.where(used, cell, 0).astype(np.int32), "complied": fields["complied"].astype(bool)}
    )


def _where(wrong: np.ndarray) -> str:
    row = np.argwhere(wrong)[0]
    return f"in row {row[-1]}" + (f" of prompt {tuple(int(i) for i in row[:-1])}" if len(row) > 1 else "")
