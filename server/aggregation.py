"""Weighted mean of updates in integer arithmetic, after McMahan et al. 2017 (arXiv:1602.05629).

Updates are int64 vectors in units of 2**-30 (see protocol.quantisation) with integer weights. Sums of
integers have the same bits in every order of arrival and any split over workers. Overflow is impossible: a
value stays below 2**36, the total weight below 2**27.

Each update's norm is bounded first: an update longer than the bound is scaled down to it, so that no device
moves the mean by more than its share ("norm clipping", Sun et al. 2019, arXiv:1911.07963).
"""

import math

import numpy as np
from numpy.typing import NDArray

from protocol.quantisation import FRACTION_BITS, VALUE_BITS
from server.errors import ServerError

MAX_TOTAL_WEIGHT = (1 << (63 - VALUE_BITS)) - 1
_SCALE_BITS = 16
_NORM_SHIFT = 14


def bound_norm(update: NDArray[np.int64], bound: float) -> NDArray[np.int64]:
    """Scale an update down to an L2 norm of at most `bound`; one within the bound is returned as it is.

    Args:
        update: int64 [parameters], units of 2**-30, below 2**36 in magnitude, at most 4,000,000 parameters.
        bound: in the units of the adapter (not fixed point).
    """
    norm = math.isqrt(sum_of_squares(np.abs(update) >> _NORM_SHIFT, 11))  # 22 bits a value
    limit = int(bound * (1 << (FRACTION_BITS - _NORM_SHIFT)))
    if norm <= limit:
        return update
    scale = (limit << _SCALE_BITS) // norm
    return (update * scale) >> _SCALE_BITS


def sum_of_squares(values: NDArray[np.int64], half_bits: int) -> int:
    """Sum of squares of values, exactly, where squares and their sum may exceed int64.

    Args:
        values: int64 [n], 0 or more, below 2**(2 * half_bits), at most 4,000,000 of them.
        half_bits: where values are cut in two, 16 at most: products of 32 bits times 4 million (22 bits) fit
            into int64.
    """
    high, low = values >> half_bits, values & ((1 << half_bits) - 1)
    return (
        (int(np.sum(high * high)) << (2 * half_bits))
        + (int(np.sum(high * low)) << (half_bits + 1))
        + int(np.sum(low * low))
    )


class WeightedMean:
    """Running sum of updates; its memory is one vector, however many updates come."""

    def __init__(self, parameters: int) -> None:
        self.total = np.zeros(parameters, np.int64)
        """Sum of updates times weights, int64 [parameters], units of 2**-30."""
        self.weight = 0
        """Total weight so far."""
        self.updates = 0
        """Updates so far."""

    def add(self, update: NDArray[np.int64], weight: int) -> None:
        """Add an update, int64 [parameters] in units of 2**-30, below 2**36 in magnitude.

        Raises:
            ServerError: the total weight would leave the range that cannot overflow.
        """
        if self.weight + weight > MAX_TOTAL_WEIGHT:
            raise ServerError(f"total weight of a round would exceed {MAX_TOTAL_WEIGHT}")
        self.total += update * weight
        self.weight += weight
        self.updates += 1

    def merge(self, other: "WeightedMean") -> None:
        """Add what another worker has summed.

        Raises:
            ServerError: as `add`.
        """
        if self.weight + other.weight > MAX_TOTAL_WEIGHT:
            raise ServerError(f"total weight of a round would exceed {MAX_TOTAL_WEIGHT}")
        self.total += other.total
        self.weight += other.weight
        self.updates += other.updates

    def mean(self) -> NDArray[np.int64]:
        """The mean so far, int64 [parameters] in units of 2**-30, below 2**36 in magnitude."""
        return self.total // max(1, self.weight)
