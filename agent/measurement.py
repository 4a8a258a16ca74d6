"""Gains of held-out loss: one with what chance may have added, and what several say together."""

import math
from dataclasses import dataclass

DECAY = 0.8
"""What a measurement counts for with each one after it."""
MAX_GAIN, MAX_VARIANCE = 4.0, 16.0
"""Of a measurement; losses are capped at 4 nats."""


@dataclass(frozen=True)
class Gain:
    """By how much a held-out loss fell, in nats."""

    mean: float
    variance: float
    """Of that mean, as far as the windows tell."""

    @property
    def sound(self) -> bool:
        """Whether it can be a measurement at all."""
        return abs(self.mean) <= MAX_GAIN and 0 <= self.variance <= MAX_VARIANCE


@dataclass(frozen=True)
class Evidence:
    """Several measurements of one thing, the newest counting most."""

    count: int = 0
    total: float = 0.0
    """Sum of the measurements' weights."""
    gains: float = 0.0
    """Sum of the weighted means."""
    noise: float = 0.0
    """Sum of the variances, times the squares of the weights."""

    def __post_init__(self) -> None:
        if self.count < 0 or not all(map(math.isfinite, (self.total, self.gains, self.noise))):
            raise ValueError("expected a count and finite sums")

    def add(self, gain: Gain) -> "Evidence":
        """With one more measurement."""
        return Evidence(
            min(self.count + 1, 1 << 20),
            DECAY * self.total + 1,
            DECAY * self.gains + gain.mean,
            DECAY**2 * self.noise + gain.variance,
        )

    @property
    def mean(self) -> float:
        """Mean gain; 0 before the first."""
        return self.gains / self.total if self.total > 0 else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(max(self.noise, 0.0)) / self.total if self.total > 0 else math.inf
