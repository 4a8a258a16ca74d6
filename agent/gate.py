"""The gate: which adapter a device uses, decided on its own held-out windows.

A device never gets worse for taking part: training alone is the default, and another adapter replaces it
only where held-out windows give evidence. The test is paired: the same windows under both adapters, their
differences against their own scatter, so that one lucky window decides nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MINIMUM_WINDOWS = 4
"""Fewer held-out windows than this decide nothing."""
EVIDENCE = 1.0
"""Standard errors by which another adapter must win."""
LOSS_CAP = 4.0
"""Nats; one window that is confidently wrong must not outweigh all others."""


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
    if len(reference) < MINIMUM_WINDOWS:
        return best
    for name, values in losses.items():
        gains = reference - np.minimum(values, LOSS_CAP)
        gain = float(gains.mean())
        error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
        if gain > best.gain and gain > EVIDENCE * error:
            best = Decision(name, gain)
    return best
