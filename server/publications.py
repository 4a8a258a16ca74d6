"""The retained messages that every device reads, made from what the server's store holds."""

import numpy as np

from protocol.messages import BASE_BYTES, Release, Round
from protocol.release_coding import encode_keyframe
from server.intake import RoundTerms
from server.ledger_records import ReleaseRecord
from server.offers import Offers


def release_message(record: ReleaseRecord, package: bytes, offers: Offers) -> Release:
    """The release of the package with SHA-256 `package`, in the fewest bytes.

    The adapter of a package is in the package. Any other one goes as difference, beside an offer of the
    keyframe to devices without the base; where the keyframe is no larger than the difference, it goes itself.
    So does that of a release from before there were differences, and of one that withdraws another: devices
    do not keep what they would have to go back to.
    """
    base, body, steps, keyframe = b"", b"", b"", None
    if record.difference is not None:
        whole = encode_keyframe(record.adapter)
        if len(whole) <= len(record.difference.steps) + len(record.difference.body):
            body = whole
        else:
            base, body, steps = record.parent[:BASE_BYTES], record.difference.body, record.difference.steps
            keyframe = offers.offer_keyframe(whole)
    elif record.round is not None or record.withdraws is not None:
        body = encode_keyframe(record.adapter)
    return Release(
        record.number,
        package,
        base,
        record.sha256,
        body,
        record.updates,
        record.weight,
        {name: _short(value) for name, value in record.metrics.items()},
        record.default_choice,
        steps,
        keyframe,
        -1 if record.withdraws is None else record.withdraws,
        record.domains,
        restores=-1 if record.restores is None else record.restores,
    )


def round_message(terms: RoundTerms, package: bytes, deadline: float) -> Round:
    """The open round of the package with SHA-256 `package`."""
    return Round(terms.number, package, terms.base, tuple(sorted(terms.cohort)), deadline)


def _short(value: float) -> float:
    """Round to half precision, which CBOR writes in three bytes; the store keeps the value itself."""
    return float(np.float16(min(value, 60_000.0)))
