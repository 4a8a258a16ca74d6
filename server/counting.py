"""The open round's running sum: what is counted so far, and the release that it makes."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from protocol.messages import TrainingPolicy, adapter_bytes
from server.aggregation import MAX_TOTAL_WEIGHT, WeightedMean
from server.evaluation import fleet_default
from server.intake import Accepted, OpenRound
from server.ledger import ReleaseRecord


class Counting:
    """Sums the updates of one round; its memory is one vector, however many come."""

    def __init__(self, current: OpenRound, parameters: int, policy: TrainingPolicy) -> None:
        """Start with nothing.

        Args:
            current: the round.
            parameters: length of the adapter vector.
            policy: that updates of this round are held to.
        """
        self.current = current
        self.policy = policy
        self._mean = WeightedMean(parameters)
        self._loss_before = 0.0
        self._loss_after = 0.0

    def has_room(self, accepted: Accepted) -> bool:
        """Whether the sum can take this update without any risk of overflow."""
        return self._mean.weight + accepted.weight <= MAX_TOTAL_WEIGHT

    def add(self, accepted: Accepted) -> None:
        """Count an update."""
        self._mean.add(accepted.vector, accepted.weight)
        self._loss_before += accepted.weight * accepted.loss_before
        self._loss_after += accepted.weight * accepted.loss_after

    def release(self, base: ReleaseRecord, reports: Iterable[Mapping[str, Any]], now: float) -> ReleaseRecord:
        """Make the release of what is counted.

        Args:
            base: the release that the updates started from.
            reports: what the devices reported on it.
            now: Unix seconds.
        """
        adapter = self._mean.apply(base.adapter)
        weight = max(1, self._mean.weight)
        return ReleaseRecord(
            base.number + 1,
            base.package_version,
            self.current.number,
            base.sha256,
            hashlib.sha256(adapter_bytes(adapter)).digest(),
            adapter,
            now,
            self._mean.updates,
            self._mean.weight,
            {"loss_before": self._loss_before / weight, "loss_after": self._loss_after / weight},
            fleet_default(reports),
        )
