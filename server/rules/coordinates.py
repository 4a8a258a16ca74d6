"""Rules by coordinate: trimmed mean and median of each parameter (Yin et al. 2018, arXiv:1803.01498).

Every update counts alike, as in the paper: a claimed weight would let an attacker count for many. They work
on one range of parameters after another, so memory does not grow with the adapter.
"""

import numpy as np
from numpy.typing import NDArray

from server.rules.policy import AggregationPolicy
from server.rules.rule import Fixed
from server.rules.spool import Spool


class TrimmedMean:
    """Mean of each parameter without its largest and smallest values."""

    def __init__(self, parameters: int, policy: AggregationPolicy) -> None:
        """Start with nothing.

        Args:
            parameters: of the adapter.
            policy: the share to leave out at each end.
        """
        self._parameters = parameters
        self._share = policy.assumed_attackers
        self._spool = Spool(parameters, policy.memory_mib)

    def add(self, update: Fixed, weight: int) -> None:
        """Take an update; its weight is not used."""
        self._spool.add(update, weight)

    def mean(self) -> Fixed:
        """The trimmed mean so far, int64 [parameters] in units of 2**-30."""
        result = np.zeros(self._parameters, np.int64)
        if len(self._spool):
            for part, values in self._spool.columns():
                values.sort(axis=0)
                result[part] = self._middle(values)
        return result

    def _middle(self, values: NDArray[np.int64]) -> Fixed:
        """Mean of sorted values, int64 [updates, range]; below 2**36, so 2**27 of them cannot overflow."""
        count = len(values)
        trimmed = min(int(self._share * count), (count - 1) // 2)
        kept = values[trimmed : count - trimmed]
        return np.asarray(kept.sum(axis=0) // len(kept))


class CoordinateMedian(TrimmedMean):
    """Median of each parameter; of an even number of values the mean of the middle two."""

    def _middle(self, values: NDArray[np.int64]) -> Fixed:
        """Median of sorted values, int64 [updates, range]."""
        return np.asarray((values[(len(values) - 1) // 2] + values[len(values) // 2]) // 2)
