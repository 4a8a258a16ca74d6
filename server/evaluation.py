"""What the devices' reports say together about a release."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.evidence import LOSS_CAP, chance
from protocol.messages import DEFAULTS

LUCK = 0.05
"""Largest accepted chance that the gains of a default are only luck, shared among the candidates. A device's
own gate asks for more (SIGNIFICANCE), for it has fewer windows than a fleet has devices."""
DOUBT = 0.2
"""Chance that the gains are only luck from which on a default that was won is given up again."""
ALONE = "local"
CANDIDATES = tuple(default for default in DEFAULTS if default != ALONE)


def fleet_default(reports: Iterable[Mapping[str, Any]], held: str) -> str:
    """What a device should use unless its own held-out windows show otherwise.

    A candidate wins where the devices' held-out gains over training alone are together more than luck, the
    significance shared among the candidates; else it is "local". Once won, it stays until its gains may well
    be luck, or another candidate is better by more than luck: evidence near the threshold would otherwise
    switch the whole fleet back and forth. Devices that hold out nothing have no say.

    Args:
        reports: fields of Report, one mapping per device.
        held: the default of the release that they report on.
    """
    voters = [report for report in reports if report["holdout_windows"]]
    if not voters:
        return ALONE
    gains = {name: _gains(voters, name) for name in CANDIDATES}
    best = held if held in gains and chance(gains[held]) <= DOUBT else ALONE
    threshold = LUCK / len(CANDIDATES)
    for name in sorted(CANDIDATES, key=lambda name: float(gains[name].mean()), reverse=True):
        over_best = gains[name] - gains[best] if best != ALONE else gains[name]
        if name != best and over_best.mean() > 0 and chance(over_best) <= threshold:
            best = name
    return best


def _gains(voters: list[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """Held-out gains of a candidate, float64 [devices]; 0 for devices of a version that did not know it."""
    found = np.array([voter.get(f"{name}_gain", 0.0) for voter in voters], np.float64)
    return np.asarray(np.clip(found, -LOSS_CAP, LOSS_CAP))
