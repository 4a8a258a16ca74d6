"""Per-device normalisation: every channel by mean, or mean and deviation, of the device's own windows.

It takes away what a sensor's offset, or gain and offset, do. The statistics never leave the device. After Li
et al. 2021 (FedBN, arXiv:2102.07623), who keep the statistics of every layer local; here they are those of
the input, as everything before the adapter is frozen.

Mean and deviation, not median and quartiles: a machine that stands still most of the time has quartiles of
nearly nothing, and its few movements would become huge.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.input_schema import DEVICE_MEAN

OUTLIER = 10_000.0
"""Deviations at which a value is cut: no sensor glitch leaves the range of float32."""
RESOLUTION = 1e-6
"""Deviations below this share of the mean are rounding of float32: such a channel is constant."""


@dataclass(frozen=True)
class Statistics:
    """Of each channel of a device."""

    windows: int
    """How many they were taken from."""
    mean: tuple[float, ...]
    """In the unit of the channel."""
    deviation: tuple[float, ...] | None = None
    """Standard deviation in the unit of the channel, 1 where the channel is constant; None: gains stay."""

    def __post_init__(self) -> None:
        deviations = (1.0,) * len(self.mean) if self.deviation is None else self.deviation
        if self.windows < 1 or len(self.mean) != len(deviations):
            raise ValueError(f"expected statistics of windows, a pair for each channel, got {self}")
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in deviations):
            raise ValueError(f"expected finite means and positive deviations, got {self}")

    @property
    def name(self) -> str:
        """16 hexadecimal digits: other statistics have another name."""
        return hashlib.sha256(f"{self.mean} {self.deviation}".encode()).hexdigest()[:16]

    def standardise(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Windows, float32 [n, channels, length], without their device's offset, and gain."""
        values = windows - np.array(self.mean)[:, None]
        limit = float(np.finfo(np.float32).max)
        if self.deviation is not None:
            values, limit = values / np.array(self.deviation)[:, None], OUTLIER
        return np.asarray(np.clip(values, -limit, limit), np.float32)


class Moments:
    """Mean and deviation of a stream of windows, in the memory of a few numbers per channel.

    Parts are joined as in Chan, Golub and LeVeque 1983 (doi:10.1080/00031305.1983.10483115), so that a small
    deviation on a large mean keeps its digits.
    """

    def __init__(self) -> None:
        self.windows = 0
        self._values = 0
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)
        """Sum of squared differences to the mean, by channel."""

    def add(self, windows: NDArray[np.float32]) -> None:
        """Take windows, float32 [n, channels, length], into account."""
        if not windows.size:
            return
        count = len(windows) * windows.shape[2]
        mean = windows.mean((0, 2), np.float64)
        squares = np.zeros(len(mean))
        for window in windows:  # one by one: a long recording is not held in float64
            squares += np.square(window - mean[:, None]).sum(1)
        if not self.windows:
            self._mean, self._squares = mean, squares
        else:
            difference, total = mean - self._mean, self._values + count
            self._squares = self._squares + squares + difference**2 * (self._values * count / total)
            self._mean = self._mean + difference * (count / total)
        self.windows += len(windows)
        self._values += count

    def statistics(self, normalisation: str) -> Statistics | None:
        """Take those that a normalisation needs, of all windows so far; None if there were none."""
        if not self.windows:
            return None
        if normalisation == DEVICE_MEAN:
            return Statistics(self.windows, tuple(self._mean.tolist()))
        deviation = np.sqrt(self._squares / self._values)
        deviation[deviation <= RESOLUTION * np.abs(self._mean)] = 1.0
        return Statistics(self.windows, tuple(self._mean.tolist()), tuple(deviation.tolist()))
