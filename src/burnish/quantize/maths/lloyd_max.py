"""The scalar quantizer with the smallest mean squared error for a standard normal number.

    level_i = E[x | t_i < x < t_{i+1}] = (φ(t_i) - φ(t_{i+1})) / (Φ(t_{i+1}) - Φ(t_i))
    t_i = (level_{i-1} + level_i) / 2

Both hold at once at the optimum; repeating one after the other converges to it (Lloyd, Least squares quantization in
PCM, 1957 and 1982; Max, Quantizing for minimum distortion, 1960, whose table has the levels up to 36).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

CLOSE = 1e-12
"""Change of a level in an iteration, below which it has converged."""


@cache
def lloyd_max_levels(bits: int) -> Float[np.ndarray, " levels"]:
    """The 2^bits levels in rising order; they are symmetric about zero."""
    from scipy.special import ndtr, ndtri

    levels, change = ndtri((np.arange(2**bits) + 0.5) / 2**bits), 1.0
    while change > CLOSE:
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
        better = (density[:-1] - density[1:]) / np.diff(ndtr(edges))
        levels, change = better, float(np.abs(better - levels).max())
    levels = (levels - levels[::-1]) / 2
    levels.flags.writeable = False  # of the cache
    return levels
