"""The open round: what is counted so far, domain by domain, and the release that is made of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.domains import restacked, stacked
from protocol.package import Manifest
from protocol.release_coding import adapter_sha256, add_difference, decode_difference, encode_difference
from server import optimizers
from server.aggregation import MAX_TOTAL_WEIGHT
from server.evaluation import fleet_default, release_gain
from server.intake import Accepted, Lateness, RoundTerms
from server.ledger_records import ReleaseRecord
from server.rules.policy import AggregationPolicy
from server.tasks import Tasks


class Counting:
    """Aggregates the updates of one round; its memory is bounded, however many come."""

    def __init__(
        self,
        terms: RoundTerms,
        lateness: Lateness,
        manifest: Manifest,
        release_step_ratio: float,
        aggregation: AggregationPolicy,
        *,
        domains: int = 1,
        placement: Mapping[str, int] | None = None,
    ) -> None:
        """Start with nothing.

        Args:
            terms: of the round.
            lateness: how it takes updates of rounds before.
            manifest: of the package, for the adapter's segments.
            release_step_ratio: quantisation step of the release in root mean squares of its difference.
            aggregation: rule and server optimiser.
            domains: adapters that its release will hold.
            placement: domain of the devices whose updates start from a release of one adapter.
        """
        self.terms = terms
        self.lateness = lateness
        self._manifest = manifest
        self._release_step_ratio = release_step_ratio
        self._aggregation = aggregation
        self._placement = placement or {}
        # Each domain is aggregated by itself: a rule sees the updates of its own domain alone.
        self._domains = [Tasks(manifest, aggregation, domains) for _ in range(domains)]
        self._updates, self._weight, self._labelled = 0, 0, 0
        self._loss_before = 0.0
        self._loss_after = 0.0

    def has_room(self, accepted: Accepted) -> bool:
        """Whether the sum can take this update without any risk of overflow."""
        return self._weight + accepted.weight <= MAX_TOTAL_WEIGHT

    def add(self, device: str, accepted: Accepted) -> None:
        """Count an update."""
        domain = self._domains[self._domain_of(device, accepted)]
        if domain.add(accepted.vector, accepted.weight):
            self._labelled += accepted.weight
            self._loss_before += accepted.weight * accepted.loss_before
            self._loss_after += accepted.weight * accepted.loss_after
        self._updates += 1
        self._weight += accepted.weight

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
        is the release's residual, and part of the next difference. A release of one adapter is the base of
        every domain's.

        Args:
            base: the release that the updates started from.
            reports: what the devices reported on it.
            now: Unix seconds.
            coded: False: add the whole mean, as servers with schema version 1 did; for their replay.
        """
        reports = list(reports)
        domains, parameters = len(self._domains), self._manifest.parameters
        target, moments = self._moved(base)
        difference, decoded = None, target
        if coded:
            segments = stacked(self._manifest.slices().values(), parameters, domains)
            ratios = self._manifest.step_ratios(self._release_step_ratio) * domains
            difference = encode_difference(target, segments, ratios)
            decoded = decode_difference(difference, segments, target.size)
        adapter = add_difference(restacked(base.adapter, parameters, domains), decoded)
        weight = max(1, self._labelled)
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
            {
                "loss_before": self._loss_before / weight,
                "loss_after": self._loss_after / weight,
                **release_gain(reports, base.number),
            },
            fleet_default(reports, base.default_choice, self._manifest.tasks),
            difference,
            target - decoded if coded else 0,
            moments,
            domains=domains,
            placement=self._placement if domains != base.domains else None,
        )

    def _domain_of(self, device: str, accepted: Accepted) -> int:
        """Where an update belongs, also one that started before the federation was split."""
        if accepted.domains == len(self._domains):
            return accepted.domain
        return self._placement.get(device, 0) if accepted.domains < len(self._domains) else 0

    def _moved(self, base: ReleaseRecord) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """What the release moves by, all domains stacked, and the optimiser's moments."""
        parameters = self._manifest.parameters
        residual = np.broadcast_to(base.residual, (base.domains * parameters,))
        moved, kept = [], []
        for number, domain in enumerate(self._domains):
            part = slice(number * parameters, (number + 1) * parameters) if base.domains > 1 else slice(None)
            moments = optimizers.moments(
                self._aggregation, parameters, None if base.moments is None else base.moments[:, part]
            )
            step = np.zeros(parameters, np.int64)
            if domain.updates:  # else nobody sent anything: a domain does not move by itself
                step, moments = optimizers.step(self._aggregation, domain.mean(), moments)
            moved.append(step + residual[part])
            if moments is not None:
                kept.append(moments)
        return np.concatenate(moved), np.concatenate(kept, axis=1) if kept else None
