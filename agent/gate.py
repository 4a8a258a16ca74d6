"""The gate: which adapter a device uses, decided on its own held-out windows.

A device never gets worse for taking part: another adapter replaces the default only where held-out windows
give evidence (protocol/evidence.py), with the significance shared among the alternatives, so that one lucky
window decides nothing. The default is training alone, until the devices of the fleet together show that the
personal adapter (the release, trained further on the device) is better: what eight windows of one device
cannot tell, those of forty devices can. The release says which default holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.evidence import LOSS_CAP, SIGNIFICANCE, chance


@dataclass(frozen=True)
class Decision:
    """What the gate chose."""

    choice: str
    gain: float
    """Mean held-out loss of training alone minus that of the choice, in nats, each window's capped."""


def decide(losses: Mapping[str, NDArray[np.float64]], default: str = "local") -> Decision:
    """Choose among adapters.

    Args:
        losses: for each candidate the comparable loss of each held-out window, float64 [n], in one order;
            "local" among them.
        default: what stays without evidence.
    """
    alternatives = [name for name in losses if name != default]
    best, best_gain = default, 0.0
    for name in alternatives:
        advantage = gains(losses[default], losses[name])
        gain = mean(advantage)
        if gain > best_gain and chance(advantage) <= SIGNIFICANCE / len(alternatives):
            best, best_gain = name, gain
    return Decision(best, mean(gains(losses["local"], losses[best])))


def gains(reference: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much each window's capped loss is lower under `other`, float64 [n]."""
    return _capped(reference) - _capped(other)


def mean(values: NDArray[np.float64]) -> float:
    """Mean of `values`; 0 where there are none."""
    return float(values.mean()) if len(values) else 0.0


def _capped(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses, float64 [n]; one that is no number counts as wrong as can be."""
    return np.minimum(np.nan_to_num(losses, nan=LOSS_CAP, posinf=LOSS_CAP), LOSS_CAP)
