"""Whether paired gains are more than luck: one test for a device's windows and for a fleet's devices.

A paired permutation test (Fisher 1935; Pitman 1937): were both sides equally good, the sign of each
difference would be a coin toss, so the mean must stand out among those of tossed signs. It assumes no
distribution, and five differences or fewer can never be significant at 0.025.
"""

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE = 0.025
"""Largest accepted chance of a gain that is only luck (one-sided)."""
LOSS_CAP = 4.0
"""Nats; a window that is confidently wrong, or a device that boasts, must not outweigh all others."""
_EXACT = 12
_PATTERNS = 4096
_BLOCK = 64


def chance(gains: NDArray[np.float64]) -> float:
    """One-sided p-value of the mean of `gains`, float64 [n], under random signs; exact up to n = 12."""
    count = len(gains)
    if count <= _EXACT:
        bits = np.arange(1 << count)[:, None] >> np.arange(count)
        return float(np.mean(_reaches(np.asarray(1.0 - 2.0 * (bits & 1), np.float64), gains)))
    random = np.random.Generator(np.random.PCG64(count))
    # The observed signs are one of the patterns, which keeps the test valid (Phipson & Smyth 2010).
    reached = 1
    for start in range(1, _PATTERNS, _BLOCK):  # in blocks, to bound the memory on a device
        rows = min(_BLOCK, _PATTERNS - start)
        signs = np.where(random.integers(0, 2, (rows, count), np.int8) == 0, -1.0, 1.0)
        reached += int(np.count_nonzero(_reaches(signs, gains)))
    return reached / _PATTERNS


def _reaches(signs: NDArray[np.float64], gains: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the sum under each row of signs reaches the observed one; ties count despite round-off."""
    return np.asarray(signs @ gains >= gains.sum() - 1e-12)
