"""What the devices' reports say together about a release."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from protocol.evidence import LOSS_CAP, SIGNIFICANCE, chance


def fleet_default(reports: Iterable[Mapping[str, Any]]) -> str:
    """What a device should use unless its own held-out windows show otherwise.

    "personal" where the devices' held-out gains of the personal adapter over training alone are together
    more than luck, else "local". Devices that hold out nothing have no say.

    Args:
        reports: fields of Report, one mapping per device.
    """
    gains = [report["personal_gain"] for report in reports if report["holdout_windows"]]
    bounded = np.clip(np.array(gains, np.float64), -LOSS_CAP, LOSS_CAP)
    return "personal" if gains and chance(bounded) <= SIGNIFICANCE else "local"
