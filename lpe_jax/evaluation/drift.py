"""Style drift whose size is known exactly, added to rollouts after they were drawn.

Real responses run to hundreds of tokens, at each of which original and variant differ a little in ways that have
nothing to do with compliance, so that importance weights between them are wild. Short texts lack that. Here every
rollout at alpha gets one more number that nobody looks at, u ~ N(alpha tau, 1), independent of all else about it. Its
density is part of the rollout's: log p at alpha' gains log N(u; alpha' tau, 1). The path stays a path of exactly
normalised distributions, and no rate changes.

tau is the standard deviation, in nats, that this adds to log p_original / p_variant = tau u - tau² / 2 at any alpha.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lpe_jax.types import Bank


def add_drift(bank: Bank, tau: float, seed: int) -> Bank:
    """The bank with style drift of `tau` >= 0 nats added; tau 0 leaves it as it is. The bank itself is not changed.

    log p at alpha' gains log N(u; alpha' tau, 1), the path score tau (u - alpha tau), the path variance tau², so that
    score and variance are still the first and minus the second derivative of log p by alpha. Drifts of several calls
    with different seeds add up as the root of the sum of squares. Raises ValueError for a tau that is no size.
    """
    if not (math.isfinite(tau) and tau >= 0):
        raise ValueError(f"tau must be a finite number of nats, 0 or more, and is {tau}.")
    if tau == 0:
        return bank
    logp, score, variance = bank.logp.copy(), bank.path_score.copy(), bank.path_variance + np.float32(tau**2)
    for prompt, generator in enumerate(np.random.default_rng(seed).spawn(len(logp))):
        noise = generator.standard_normal(score.shape[1:])  # [A, N]: u - alpha tau
        # u - alpha' tau, whose square makes log N(u; alpha' tau, 1). A prompt at a time: [A, N, A] in float64.
        apart = noise[:, :, None] + (tau * np.subtract.outer(bank.alpha, bank.alpha))[:, None, :]
        logp[prompt] -= 0.5 * apart**2 + 0.5 * math.log(2 * math.pi)
        score[prompt] += tau * noise
    return dataclasses.replace(bank, logp=logp, path_score=score, path_variance=variance)
