"""Whether an update may be counted: from bytes to a checked integer vector, or a verdict with the reason.

Nothing is trusted: size, signature, fields, round, base, weight, steps and symbols are checked in this order,
and nothing large is allocated before it is known to be wanted. Journal and receipts are not handled here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import entropy_coding
from protocol.errors import ProtocolError
from protocol.messages import BASE_BYTES, TrainingPolicy, Update, unseal
from protocol.package import Manifest
from protocol.quantisation import Quantised, dequantise, dither_seed
from protocol.signing import PublicKey
from protocol.topics import Topics
from server.aggregation import bound_norm


@dataclass(frozen=True)
class Accepted:
    """An update that may be counted."""

    vector: NDArray[np.int64]
    """int64 [parameters], units of 2**-30, its norm bounded."""
    weight: int
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class Rejected:
    """An update that is not counted; the verdict and reason go onto the receipt."""

    verdict: str
    reason: str


@dataclass(frozen=True)
class OpenRound:
    """What updates of the open round must match."""

    number: int
    base: bytes
    cohort: frozenset[str]


def open_update(envelope: bytes, key: PublicKey, topics: Topics, device: str, limit: int) -> Update:
    """Check size, signature and fields of an update.

    Raises:
        ProtocolError: any of them is wrong. Such a message gets no receipt: nobody proved to be its sender.
    """
    return unseal(Update, envelope, key, topics.up(device, "update"), limit=limit)


def examine(
    update: Update,
    device: str,
    current: OpenRound | None,
    *,
    federation: str,
    manifest: Manifest,
    policy: TrainingPolicy,
) -> Accepted | Rejected:
    """Decide on an update whose signature was checked."""
    if current is None or update.round < current.number:
        return Rejected("late", f"round {update.round} is closed")
    rejected = _check_fields(update, device, current, policy)
    if rejected:
        return rejected
    try:
        symbols = entropy_coding.decode(update.body, manifest.parameters)
        vector = dequantise(
            Quantised(update.steps, symbols),
            manifest.slices().values(),
            dither_seed(federation, device, update.round, current.base),
        )
    except ProtocolError as error:
        return Rejected("refused", str(error))
    # Quantisation adds noise to a vector within the bound: half a step of two root mean squares at most
    # doubles its norm, so the decoded vector is scaled only beyond that.
    bounded = bound_norm(vector, policy.clipping_bound * (1 + policy.step_ratio / 2))
    return Accepted(bounded, update.weight, update.loss_before, update.loss_after)


def _check_fields(update: Update, device: str, current: OpenRound, policy: TrainingPolicy) -> Rejected | None:
    if update.round > current.number:
        return Rejected("refused", f"expected round {current.number}, got {update.round}")
    if device not in current.cohort:
        return Rejected("refused", "not in the cohort of this round")
    expected = current.base[:BASE_BYTES]
    if update.base != expected:
        return Rejected("refused", f"expected base {expected.hex()}, got {update.base.hex()}")
    if update.weight > policy.maximum_weight:
        return Rejected("refused", f"expected a weight up to {policy.maximum_weight}, got {update.weight}")
    return None
