"""Which channels are the x, y and z of one sensor, by their names alone.

`x_acc`, `y_acc`, `z_acc`; `accX`, `accY`, `accZ`; `gyro.x`, `gyro.y`, `gyro.z`. A letter that belongs to a
word ("max", "yaw") is no axis.
"""

import re
from collections.abc import Sequence

LETTER = re.compile(r"(?<![a-z])[xyz](?![a-z])|(?<=[a-z0-9])[XYZ](?![a-z])|(?<![a-zA-Z])[XYZ](?![a-z])")


def axes_of(channels: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """Return the indices of x, y and z for every sensor that has all three, in order of the channels.

    Args:
        channels: names, all different.
    """
    sensors: dict[str, dict[str, int]] = {}
    for index, channel in enumerate(channels):
        found = LETTER.findall(channel)
        if len(found) == 1:
            sensors.setdefault(LETTER.sub("*", channel), {})[found[0].lower()] = index
    return tuple((axes["x"], axes["y"], axes["z"]) for axes in sensors.values() if len(axes) == 3)
