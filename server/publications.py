"""The retained messages that every device reads, made from what the server's store holds."""

import zlib

from protocol.messages import Release, Round, adapter_bytes
from server.intake import OpenRound
from server.ledger import ReleaseRecord


def release_message(record: ReleaseRecord, package: bytes) -> Release:
    """The release of the package with SHA-256 `package`."""
    return Release(
        record.number,
        package,
        record.parent,
        record.sha256,
        zlib.compress(adapter_bytes(record.adapter), 9),
        record.updates,
        record.weight,
        dict(record.metrics),
        record.default_choice,
    )


def round_message(current: OpenRound, package: bytes, deadline: float) -> Round:
    """The open round of the package with SHA-256 `package`."""
    return Round(current.number, package, current.base, tuple(sorted(current.cohort)), deadline)
