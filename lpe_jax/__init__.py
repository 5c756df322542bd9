"""Logit Path Extrapolation: rates of rare model behaviours, with intervals, from few rollouts.

The rooms, in the order a rollout passes them: prompts, models, decoding, judging, estimation,
reporting; records is what a run keeps on disk. Importing lpe_jax imports none of them, so that programs can
answer --help before JAX is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lpe_jax.version import __version__

if TYPE_CHECKING:
    from lpe_jax.anything import Rate, estimate

__all__ = ["Rate", "__version__", "estimate"]


def __getattr__(name: str) -> Any:
    """lpe_jax.estimate and what it returns, imported when they are asked for."""
    if name in ("Rate", "estimate"):
        from lpe_jax import anything

        return getattr(anything, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
