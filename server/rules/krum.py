"""Multi-Krum: Blanchard et al. 2017 (NeurIPS, "Machine Learning with Adversaries")."""

import hashlib
import heapq

import numpy as np

from server.rules.policy import AggregationPolicy
from server.rules.rule import Fixed, square
from server.rules.spool import Spool


class MultiKrum:
    """Mean of the updates that have others near them.

    With n updates of which f are assumed hostile, an update's score is the sum of the squared distances to
    the n - f - 2 updates nearest to it; the n - f updates of least score are averaged. Every update counts
    alike, as in the paper. The theorem needs n >= 2f + 3; with fewer updates f is lowered to what they allow.

    Memory is two updates and n numbers at a time; time grows with n squared.
    """

    def __init__(self, parameters: int, policy: AggregationPolicy) -> None:
        """Start with nothing.

        Args:
            parameters: of the adapter.
            policy: the share to leave out.
        """
        self._parameters = parameters
        self._share = policy.assumed_attackers
        self._spool = Spool(parameters, policy.memory_mib)

    def add(self, update: Fixed, weight: int) -> None:
        """Take an update; its weight is not used."""
        self._spool.add(update, weight)

    def mean(self) -> Fixed:
        """The mean of the chosen updates so far, int64 [parameters] in units of 2**-30."""
        count = len(self._spool)
        total = np.zeros(self._parameters, np.int64)
        if not count:
            return total
        hostile = max(0, min(int(self._share * count), (count - 3) // 2))
        chosen = list(range(count))
        if hostile:
            scores = [self._score(index, count - hostile - 2) for index in range(count)]
            # Of equal scores the lower hash goes first: the order of arrival decides nothing.
            ranks = [(score, self._digest(index), index) for index, score in enumerate(scores)]
            chosen = [index for _, _, index in sorted(ranks)[: count - hostile]]
        for index in chosen:
            total += self._spool.row(index)
        return np.asarray(total // len(chosen))

    def _digest(self, index: int) -> bytes:
        return hashlib.sha256(self._spool.row(index).tobytes()).digest()

    def _score(self, index: int, neighbours: int) -> int:
        own = self._spool.row(index)
        distances = (square(other - own) for place, other in enumerate(self._spool.rows()) if place != index)
        return sum(heapq.nsmallest(neighbours, distances))
