"""Whether paired gains are more than luck: one test for a device's windows and for a fleet's devices.

A paired permutation test (Fisher 1935; Pitman 1937): were both sides equally good, the sign of each
difference would be a coin toss, so the mean must stand out among those of tossed signs. It assumes no
distribution, and five differences or fewer can never be significant at 0.025.
"""

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE = 0.025
"""Largest accepted chance of a gain that is only luck (one-sided)."""
_EXACT = 12
_PATTERNS = 4096


def chance(gains: NDArray[np.float64]) -> float:
    """One-sided p-value of the mean of `gains`, float64 [n], under random signs; exact up to n = 12."""
    count = len(gains)
    if count <= _EXACT:
        bits = np.arange(1 << count)[:, None] >> np.arange(count)
        signs = 1.0 - 2.0 * (bits & 1)
    else:
        # The observed signs are one of the patterns, which keeps the test valid (Phipson & Smyth 2010).
        random = np.random.Generator(np.random.PCG64(count))
        signs = np.where(random.integers(0, 2, (_PATTERNS, count)) == 0, -1.0, 1.0)
        signs[0] = 1.0
    tossed = signs @ gains
    return float(np.mean(tossed >= gains.sum() - 1e-12))
