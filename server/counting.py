"""The open round: what is counted so far, and the release that rule and optimiser make of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from protocol.package import Manifest
from protocol.release_coding import adapter_sha256, add_difference, decode_difference, encode_difference
from server import optimizers, rules
from server.aggregation import MAX_TOTAL_WEIGHT
from server.evaluation import fleet_default
from server.intake import Accepted, Lateness, RoundTerms
from server.ledger_records import ReleaseRecord
from server.rules.policy import AggregationPolicy


class Counting:
    """Aggregates the updates of one round; its memory is bounded, however many come."""

    def __init__(
        self,
        terms: RoundTerms,
        lateness: Lateness,
        manifest: Manifest,
        release_step_ratio: float,
        aggregation: AggregationPolicy,
    ) -> None:
        """Start with nothing.

        Args:
            terms: of the round.
            lateness: how it takes updates of rounds before.
            manifest: of the package, for the adapter's segments.
            release_step_ratio: quantisation step of the release in root mean squares of its difference.
            aggregation: rule and server optimiser.
        """
        self.terms = terms
        self.lateness = lateness
        self._segments = list(manifest.slices().values())
        self._release_step_ratio = release_step_ratio
        self._aggregation = aggregation
        self._rule = rules.make(aggregation, manifest.parameters)
        self._updates, self._weight = 0, 0
        self._loss_before = 0.0
        self._loss_after = 0.0

    def has_room(self, accepted: Accepted) -> bool:
        """Whether the sum can take this update without any risk of overflow."""
        return self._weight + accepted.weight <= MAX_TOTAL_WEIGHT

    def add(self, accepted: Accepted) -> None:
        """Count an update."""
        self._rule.add(accepted.vector, accepted.weight)
        self._updates += 1
        self._weight += accepted.weight
        self._loss_before += accepted.weight * accepted.loss_before
        self._loss_after += accepted.weight * accepted.loss_after

    def release(
        self,
        base: ReleaseRecord,
        reports: Iterable[Mapping[str, Any]],
        now: float,
        *,
        coded: bool = True,
    ) -> ReleaseRecord:
        """Make the release of what is counted.

        The release is the one before plus the difference that devices decode. What quantisation leaves over
        is the release's residual, and part of the next difference.

        Args:
            base: the release that the updates started from.
            reports: what the devices reported on it.
            now: Unix seconds.
            coded: False: add the whole mean, as servers with schema version 1 did; for their replay.
        """
        moved, moments = optimizers.step(self._aggregation, self._rule.mean(), base.moments)
        target = moved + base.residual
        difference, decoded = None, target
        if coded:
            difference = encode_difference(target, self._segments, self._release_step_ratio)
            decoded = decode_difference(difference, self._segments, target.size)
        adapter = add_difference(base.adapter, decoded)
        weight = max(1, self._weight)
        return ReleaseRecord(
            base.number + 1,
            base.package_version,
            self.terms.number,
            base.sha256,
            adapter_sha256(adapter),
            adapter,
            now,
            self._updates,
            self._weight,
            {"loss_before": self._loss_before / weight, "loss_after": self._loss_after / weight},
            fleet_default(reports, base.default_choice),
            difference,
            target - decoded if coded else 0,
            moments,
        )
