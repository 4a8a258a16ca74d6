"""The discriminant head of an adapter: what devices share to tell classes apart from few labels.

Two-covariance PLDA (Ioffe 2006; Kenny 2010; Brümmer and de Villiers 2010) on a frozen embedding. Windows of a
class on a device scatter about the class's mean there, and these means scatter about the fleet's mean of the
class, in part all together: a sensor that is mounted elsewhere moves every class alike. How windows scatter
is alike for all classes and devices: a handful of labels of one device say little about it, those of a whole
fleet say much. The head holds, each in a segment of its own,

    discriminant.within    the covariance of windows about their device's class mean, upper triangle by rows
    discriminant.means     the fleet's mean of each class
    discriminant.between   for each class, the variance of devices' means where that of windows is 1;
                           behind them, the part of it that all classes of a device have in common
    discriminant.rounds    how many releases its statistics are made of

all divided by the dimension, so that no update of it is much longer than 1. Every device's step goes to its
own statistics, so the mean of the steps is the step to the statistics of all: what the server does with
adapters is what is to be done here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

WITHIN, MEANS, BETWEEN, ROUNDS = (f"discriminant.{part}" for part in ("within", "means", "between", "rounds"))
SEGMENTS = (WITHIN, MEANS, BETWEEN, ROUNDS)
STEP_RATIO = 0.75
"""Quantisation step of its segments, in root mean squares: 2.5 bits per parameter."""
MAX_DIMENSION = 1024
LARGEST_BETWEEN = 10.0
"""Variance of devices' means above which the fleet's mean says nothing any more."""
MOST_ROUNDS = 1000.0


@dataclass(frozen=True)
class Statistics:
    """What a head says."""

    within: Doubles
    """float64 [dimension, dimension], symmetric."""
    means: Doubles
    """float64 [classes, dimension]."""
    between: Doubles
    """float64 [classes]."""
    shared: float = 0.0
    """The part of `between` that all classes of a device have in common."""
    rounds: float = 0.0

    @classmethod
    def of(cls, head: NDArray[np.float32], dimension: int) -> "Statistics":
        """Read a head, float32 [parameters]; what is not finite counts as zero."""
        values = np.nan_to_num(head.astype(np.float64), posinf=0.0, neginf=0.0) * dimension
        classes = classes_of(len(values), dimension)
        triangle = dimension * (dimension + 1) // 2
        within = np.zeros((dimension, dimension))
        within[np.triu_indices(dimension)] = values[:triangle]
        within = within + np.triu(within, 1).T
        means = values[triangle : triangle + classes * dimension].reshape(classes, dimension)
        *between, shared = np.clip(values[-2 - classes : -1], 0.0, LARGEST_BETWEEN)
        rounds = float(np.clip(values[-1], 0.0, MOST_ROUNDS))
        return cls(within, means, np.array(between), float(shared), rounds)

    def head(self) -> NDArray[np.float32]:
        """Write the head, float32 [parameters]."""
        dimension = len(self.within)
        numbers = np.array([self.shared, self.rounds])
        parts = [
            self.within[np.triu_indices(dimension)],
            self.means.reshape(-1),
            self.between,
            numbers,
        ]
        return np.asarray(np.concatenate(parts) / dimension, np.float32)


def sizes(dimension: int, classes: int) -> dict[str, int]:
    """Parameters of each segment."""
    triangle = dimension * (dimension + 1) // 2
    return {WITHIN: triangle, MEANS: classes * dimension, BETWEEN: classes + 1, ROUNDS: 1}


def classes_of(parameters: int, dimension: int) -> int:
    """How many classes a head of so many parameters has.

    Raises:
        ValueError: no head of this dimension has as many.
    """
    classes, left = divmod(parameters - 2 - dimension * (dimension + 1) // 2, dimension + 1)
    if classes < 1 or left:
        raise ValueError(
            f"expected a discriminant head of dimension {dimension}, got {parameters} parameters"
        )
    return classes


def dimension_of(within: slice) -> int:
    """Dimension of the embedding, of where the covariance stands in an adapter."""
    return (math.isqrt(8 * int(within.stop - within.start) + 1) - 1) // 2


def check_sizes(found: Mapping[str, int], classes: int) -> None:
    """Check the sizes of the segments, by name.

    Raises:
        ValueError: they do not fit together.
    """
    dimension = dimension_of(slice(0, found[WITHIN]))
    expected = sizes(dimension, classes)
    if not 1 <= dimension <= MAX_DIMENSION or any(found[name] != size for name, size in expected.items()):
        got = ", ".join(f"{name} {found[name]}" for name in SEGMENTS)
        raise ValueError(
            f"segments: expected those of a discriminant head of {classes} classes and up to "
            f"{MAX_DIMENSION} dimensions, got {got}"
        )
