"""What an aggregation rule is, and the integer arithmetic that rules share."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.quantisation import FRACTION_BITS
from server.aggregation import sum_of_squares

Fixed = NDArray[np.int64]
"""int64 [parameters], units of 2**-30."""

_LENGTH_SHIFT = 6
LENGTH_BITS = FRACTION_BITS - _LENGTH_SHIFT
"""Lengths are integers in units of 2**-LENGTH_BITS."""
SHARE_BITS = 24
"""Shares of updates are integers that sum up to at most 2**SHARE_BITS: times a difference of two values,
which is below 2**37, a sum stays below 2**61."""


class Rule(Protocol):
    """Takes the updates of one round and gives their aggregate."""

    def add(self, update: Fixed, weight: int) -> None:
        """Take an update.

        Args:
            update: int64 [parameters], units of 2**-30, below 2**36 in magnitude.
            weight: what it claims to count for, 1 or more.
        """

    def mean(self) -> Fixed:
        """The aggregate so far, int64 [parameters], units of 2**-30, below 2**36; zeros without updates."""


def length(vector: Fixed) -> int:
    """L2 norm of a vector in units of 2**-24, rounded down, without any floating point.

    Args:
        vector: int64 [parameters], units of 2**-30, below 2**37 in magnitude, at most 4,000,000 parameters.
    """
    return math.isqrt(square(vector))


def square(vector: Fixed) -> int:
    """Square of `length`, in units of 2**-48."""
    return sum_of_squares(np.abs(vector) >> _LENGTH_SHIFT, 16)  # 31 bits a value


def lower_median(values: Sequence[int]) -> int:
    """The middle value; of an even number the lower of the two, so that half of them cannot raise it.

    Raises:
        IndexError: there are no values.
    """
    return sorted(values)[(len(values) - 1) // 2]


def shares(weights: Sequence[int]) -> list[int]:
    """Weights in proportion, integers that sum up to at most 2**24.

    One that is less than 2**-24 of the whole comes to 0.
    """
    total = sum(weights)
    return [(weight << SHARE_BITS) // total for weight in weights]


def bounded(weights: Sequence[int]) -> list[int]:
    """Weights of at most their median: a device claims its weight, and nobody can check the claim."""
    most = lower_median(weights)
    return [min(weight, most) for weight in weights]
