"""What the devices' reports say together about a release."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from protocol.evidence import LOSS_CAP, SIGNIFICANCE, chance

DOUBT = 0.2
"""Chance that the gains are only luck from which on a default that was won is given up again."""


def fleet_default(reports: Iterable[Mapping[str, Any]], held: str) -> str:
    """What a device should use unless its own held-out windows show otherwise.

    "personal" where the devices' held-out gains of the personal adapter over training alone are together
    more than luck, else "local". Once won, it stays until the gains may well be luck: evidence near the
    threshold would otherwise switch the whole fleet back and forth. Devices that hold out nothing have no
    say.

    Args:
        reports: fields of Report, one mapping per device.
        held: the default of the release that they report on.
    """
    gains = [report["personal_gain"] for report in reports if report["holdout_windows"]]
    bounded = np.clip(np.array(gains, np.float64), -LOSS_CAP, LOSS_CAP)
    threshold = DOUBT if held == "personal" else SIGNIFICANCE
    return "personal" if gains and chance(bounded) <= threshold else "local"
