"""Whether the federation is split into domains now, and which device goes where.

Clustered federated learning (Sattler et al. 2020, arXiv:1910.01991). While there is one domain, the updates
of all devices start from one adapter, so their cosines tell who pulls the same way. Where groups repeat from
round to round by more than luck (relatedness/groups.py), the next release holds an adapter for each of them.
From then on a device chooses its domain itself, by its own windows, and so does one that joins later (as in
IFCA, Ghosh et al. 2020, arXiv:2006.04088): the server need not tell anybody where it belongs.
"""

import hashlib
import logging
from collections.abc import Mapping

import numpy as np

from protocol import records
from protocol.package import MAX_PARAMETERS, Manifest
from server.ledger import Ledger
from server.ledger_records import ReleaseRecord, RoundRecord
from server.relatedness.directions import Directions, Matrix
from server.relatedness.from_journal import directions
from server.relatedness.groups import Groups, suggest
from server.rules.policy import AggregationPolicy

log = logging.getLogger(__name__)

ROUNDS = 4
"""Rounds of a package within which it is split, or not at all: the longer a federation learned one adapter,
the less do updates differ by domain."""
SAMPLE = 256
"""Devices that groups are looked for among; all others join the group that they are most like."""


def placement(
    store: Ledger, record: RoundRecord, base: ReleaseRecord, manifest: Manifest, federation: str
) -> Mapping[str, int] | None:
    """Domain of each device if the release of a round is to split the federation; None: it is not.

    Args:
        store: of the federation.
        record: the round that ends.
        base: the release that it started from.
        manifest: of the package.
        federation: its name.
    """
    policy = records.from_named(AggregationPolicy, record.aggregation)
    most = min(policy.maximum_domains, MAX_PARAMETERS // manifest.parameters)
    if base.domains > 1 or most < 2 or store.rounds_done(record.package_version) >= ROUNDS:
        return None
    found = directions(store, federation, record.package_version, manifest, ROUNDS)
    sample = sorted(found.in_both_halves(), key=lambda name: hashlib.sha256(name.encode()).digest())[:SAMPLE]
    groups = suggest(found.relatedness(sample), most)
    log.info("round=%d domains=%d: %s", record.number, groups.count, groups.reason)
    return place(found, sorted(sample), groups) if groups.count > 1 else None


def place(found: Directions, sample: list[str], groups: Groups) -> dict[str, int]:
    """Domain of every device: the sample's own groups, and for others the group that they are most like.

    Args:
        found: where all devices' updates point.
        sample: the devices that were grouped, in alphabetical order.
        groups: their groups.
    """
    labels = np.array(groups.labels)
    units = np.stack([_unit(found.sum_of(device)) for device in sample])
    centres = np.stack([_unit(units[labels == group].sum(0)) for group in range(groups.count)])
    known = dict(zip(sample, groups.labels, strict=True))
    return {
        device: known[device] if device in known else int(np.argmax(centres @ _unit(found.sum_of(device))))
        for device in found.devices
    }


def _unit(vector: Matrix) -> Matrix:
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector
