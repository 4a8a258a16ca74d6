"""Rules that pull updates in, after Karimireddy et al. 2021 (arXiv:2012.10333)."""

import numpy as np

from protocol.quantisation import VALUE_BITS
from server.rules.policy import AggregationPolicy
from server.rules.rule import LENGTH_BITS, Fixed, bounded, length, lower_median, shares
from server.rules.spool import Spool

_SCALE_BITS = 16
_LARGEST = (1 << VALUE_BITS) - 1


class CenteredClipping:
    """Mean of the updates, each pulled in towards a centre; the mean is the next centre.

    The first centre is zero: the release before. Each update counts for its weight, up to the median weight.
    An update moves the centre by no more than radius times its share, whatever it holds.
    """

    def __init__(self, parameters: int, policy: AggregationPolicy) -> None:
        """Start with nothing.

        Args:
            parameters: of the adapter.
            policy: radius and iterations.
        """
        self._parameters = parameters
        self._radius = int(policy.clipping_radius * (1 << LENGTH_BITS))
        self._iterations = policy.iterations
        self._spool = Spool(parameters, policy.memory_mib)

    def add(self, update: Fixed, weight: int) -> None:
        """Take an update."""
        self._spool.add(update, weight)

    def mean(self) -> Fixed:
        """The centre so far, int64 [parameters] in units of 2**-30."""
        centre = np.zeros(self._parameters, np.int64)
        if len(self._spool):
            share = shares(bounded(self._spool.weights))
            for _ in range(self._iterations):
                centre = self._step(centre, share)
        return centre

    def _step(self, centre: Fixed, share: list[int]) -> Fixed:
        distances = [length(update - centre) for update in self._spool.rows()]
        radius = self._radius or lower_median(distances)
        # A difference is below 2**37, and times its scale below 2**53; times shares the sum is below 2**61.
        total = np.zeros(self._parameters, np.int64)
        for update, distance, part in zip(self._spool.rows(), distances, share, strict=True):
            difference = update - centre
            if distance > radius:
                scale = (radius << _SCALE_BITS) // distance
                difference = (difference * scale) >> _SCALE_BITS
            total += difference * part
        return np.asarray(np.clip(centre + total // max(1, sum(share)), -_LARGEST, _LARGEST))


class BoundedMean(CenteredClipping):
    """Mean of the updates, none longer and none of more weight than the round's median update.

    One step of centered clipping from zero. The bound of the norm follows the round (the median norm, as in
    Andrew et al. 2021, arXiv:1905.03871), so that a device with a wrong update has no more to say than one
    with an honest update, however large the charter's bound is.
    """

    def __init__(self, parameters: int, policy: AggregationPolicy) -> None:
        """Start with nothing; see `CenteredClipping`."""
        super().__init__(parameters, policy)
        self._radius, self._iterations = 0, 1
