"""What the devices' reports say together about a release."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.evidence import LOSS_CAP, chance
from protocol.package import DISCRIMINANT

ALONE = "local"
TOGETHER = "ensemble"
COMBINED = "combined"
ALTERNATIVES = ("discriminant", TOGETHER, ALONE)
"""To the combined one, where the package has a discriminant head."""
LUCK = 0.2
"""Largest chance that the sign of the mean gain is only luck at which the default changes. A device's own
gate asks for far more (SIGNIFICANCE): little is at stake here, but a fleet that goes back and forth around
zero gains nothing, and a single device that boasts must not move it."""
HOPE = 0.4
"""The same for the way back to the ensemble. A package's first releases are hardly better than what it
brought, so that the fleet often begins alone; one device that boasts has a chance of 0.5."""


def first_default(tasks: Collection[str]) -> str:
    """What a package's initial release has, before anybody has reported.

    Args:
        tasks: of the package.
    """
    return COMBINED if DISCRIMINANT in tasks else TOGETHER


def fleet_default(reports: Iterable[Mapping[str, Any]], held: str, tasks: Collection[str] = ()) -> str:
    """What a device should use unless its own held-out windows show otherwise.

    The largest ensemble, until the devices' mean held-out loss shows that something else is better. The
    burden of proof is on that side, because the ensemble is a hedge: training alone is one of its members, so
    that it is rarely much worse. Proof that it is better would come late, in a small fleet never, and all
    would miss the gain meanwhile. The way back needs less than the way out. Devices that hold out nothing
    have no say; each device's own gate has the last word.

    Args:
        reports: fields of Report, one mapping per device.
        held: the default of the release that they report on; one of an earlier version counts as "local".
        tasks: of the package.
    """
    voters = [report for report in reports if report["holdout_windows"]]
    if DISCRIMINANT in tasks:
        return _most_supported(voters, held)
    gains = _gains(voters, TOGETHER)
    if held != TOGETHER:
        return TOGETHER if gains.sum() > 0 and chance(gains) <= HOPE else ALONE
    return ALONE if gains.sum() < 0 and chance(-gains) <= LUCK else TOGETHER


def _most_supported(voters: Sequence[Mapping[str, Any]], held: str) -> str:
    """The combined one, or the best of those that beat it by more than luck."""
    combined = _gains(voters, COMBINED)
    gains = {choice: _gains(voters, choice) for choice in ALTERNATIVES}
    better = [
        choice
        for choice, found in gains.items()
        if (found - combined).sum() > 0 and chance(found - combined) <= (HOPE if choice == held else LUCK)
    ]
    return max(better, key=lambda choice: float(gains[choice].sum()), default=COMBINED)


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


def _gains(voters: Sequence[Mapping[str, Any]], choice: str) -> NDArray[np.float64]:
    """Held-out gains over training alone, float64 [devices]; 0 where a device's version did not know it."""
    found = np.array([voter.get(f"{choice}_gain", 0.0) for voter in voters], np.float64)
    return np.asarray(np.clip(found, -LOSS_CAP, LOSS_CAP))
