"""The gate: which adapter a device uses, decided on its own held-out windows.

A device never gets worse for taking part: training alone is the default, and another adapter replaces it
only where held-out windows give evidence. The test is a paired permutation test (Fisher 1935; Pitman 1937):
were both adapters equally good, the sign of each window's difference would be a coin toss, so the mean
difference must stand out among those of tossed signs. It assumes no distribution, and five windows or
fewer can never reach the significance that is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE = 0.025
"""Largest chance of the observed gain, were the adapter no better than the default (one-sided)."""
LOSS_CAP = 4.0
"""Nats; one window that is confidently wrong must not outweigh all others."""
_EXACT_WINDOWS = 12
_PATTERNS = 4096


@dataclass(frozen=True)
class Decision:
    """What the gate chose."""

    choice: str
    gain: float
    """Mean held-out loss of the default minus that of the choice, in nats, each window's capped."""


def decide(losses: Mapping[str, NDArray[np.float64]], default: str = "local") -> Decision:
    """Choose among adapters.

    Args:
        losses: for each candidate the loss of each held-out window, float64 [n], in the same order.
        default: what stays without evidence.
    """
    reference = np.minimum(losses[default], LOSS_CAP)
    best = Decision(default, 0.0)
    for name, values in losses.items():
        gains = reference - np.minimum(values, LOSS_CAP)
        gain = float(gains.mean()) if len(gains) else 0.0
        if gain > best.gain and chance(gains) <= SIGNIFICANCE:
            best = Decision(name, gain)
    return best


def chance(gains: NDArray[np.float64]) -> float:
    """One-sided p-value of a mean gain, float64 [n], under random signs; exact up to 12 windows."""
    count = len(gains)
    if count <= _EXACT_WINDOWS:
        bits = np.arange(1 << count)[:, None] >> np.arange(count)
        signs = 1.0 - 2.0 * (bits & 1)
    else:
        # The observed signs are one of the patterns, which keeps the test valid (Phipson & Smyth 2010).
        random = np.random.Generator(np.random.PCG64(count))
        signs = np.where(random.random((_PATTERNS, count)) < 0.5, -1.0, 1.0)
        signs[0] = 1.0
    tossed = signs @ np.abs(gains)
    return float(np.mean(tossed >= gains.sum() - 1e-12))
