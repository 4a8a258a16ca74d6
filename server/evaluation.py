"""What the devices' reports say together about a release."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.evidence import LOSS_CAP, chance

ALONE = "local"
TOGETHER = "ensemble"
LUCK = 0.2
"""Largest chance that the sign of the mean gain is only luck at which the default changes. A device's own
gate asks for far more (SIGNIFICANCE): little is at stake here, but a fleet that goes back and forth around
zero gains nothing, and a single device that boasts must not move it."""
HOPE = 0.4
"""The same for the way back to the ensemble. A package's first releases are hardly better than what it
brought, so that the fleet often begins alone; one device that boasts has a chance of 0.5."""
FIRST = TOGETHER
"""What a package's initial release has: nobody has reported yet."""


def fleet_default(reports: Iterable[Mapping[str, Any]], held: str) -> str:
    """What a device should use unless its own held-out windows show otherwise.

    The ensemble, until the devices' mean held-out loss shows that training alone is better. The burden of
    proof is on that side, because the ensemble is a hedge: training alone is one of its three members, so
    that it is rarely much worse. Proof that it is better would come late, in a small fleet never, and all
    would miss the gain meanwhile. The way back needs less than the way out. Devices that hold out nothing
    have no say; each device's own gate has the last word.

    Args:
        reports: fields of Report, one mapping per device.
        held: the default of the release that they report on; one of an earlier version counts as "local".
    """
    gains = _gains(report for report in reports if report["holdout_windows"])
    if held != TOGETHER:
        return TOGETHER if gains.sum() > 0 and chance(gains) <= HOPE else ALONE
    return ALONE if gains.sum() < 0 and chance(-gains) <= LUCK else TOGETHER


def release_gain(reports: Iterable[Mapping[str, Any]], release: int) -> dict[str, float]:
    """What a release brought the devices beside the one before: a metric of the next one, or none.

    Devices go by it when they decide whether updates are worth their bytes. An eighth of them is left out on
    each side, so that a few that lie cannot move it far.

    Args:
        reports: fields of Report, one mapping per device.
        release: its number.
    """
    gains = np.sort(
        [
            float(np.clip(report["release_gain"], -LOSS_CAP, LOSS_CAP))
            for report in reports
            if report["holdout_windows"] and report.get("compared_with", -1) == release - 1 >= 0
        ]
    )
    kept = gains[len(gains) // 8 : len(gains) - len(gains) // 8]
    return {"release_gain": float(kept.mean())} if len(kept) else {}


def _gains(voters: Iterable[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Held-out gains of the ensemble, float64 [devices]; 0 for devices of a version that did not know it."""
    found = np.array([voter.get("ensemble_gain", 0.0) for voter in voters], np.float64)
    return np.asarray(np.clip(found, -LOSS_CAP, LOSS_CAP))
