"""Geometric median of the updates: RFA, Pillutla et al. 2019 (arXiv:1912.13445)."""

import numpy as np

from server.rules.policy import AggregationPolicy
from server.rules.rule import LENGTH_BITS, SHARE_BITS, Fixed, bounded, length, shares
from server.rules.spool import Spool

_SMOOTHING = (1 << LENGTH_BITS) // 1_000_000
"""Distance below which an update counts as this far away: nothing is divided by zero (their nu, 1e-6)."""


class GeometricMedian:
    """The point with the least sum of distances to the updates, by the smoothed Weiszfeld algorithm.

    It starts from the mean. Each update counts for its weight, up to the median weight.
    """

    def __init__(self, parameters: int, policy: AggregationPolicy) -> None:
        """Start with nothing.

        Args:
            parameters: of the adapter.
            policy: iterations.
        """
        self._parameters = parameters
        self._iterations = policy.iterations
        self._spool = Spool(parameters, policy.memory_mib)

    def add(self, update: Fixed, weight: int) -> None:
        """Take an update."""
        self._spool.add(update, weight)

    def mean(self) -> Fixed:
        """The median so far, int64 [parameters] in units of 2**-30."""
        if not len(self._spool):
            return np.zeros(self._parameters, np.int64)
        weights = bounded(self._spool.weights)
        centre = self._mean(shares(weights))
        for _ in range(self._iterations):
            distances = [max(_SMOOTHING, length(update - centre)) for update in self._spool.rows()]
            # Python's integers are unbounded: weight / distance with as many bits as it takes.
            nearness = [
                (weight << (2 * LENGTH_BITS + SHARE_BITS)) // distance
                for weight, distance in zip(weights, distances, strict=True)
            ]
            centre = self._mean(shares(nearness))
        return centre

    def _mean(self, share: list[int]) -> Fixed:
        """Below 2**36 each times shares that sum up to 2**24 at most: no sum can overflow."""
        total = np.zeros(self._parameters, np.int64)
        for update, part in zip(self._spool.rows(), share, strict=True):
            total += update * part
        return np.asarray(total // max(1, sum(share)))
