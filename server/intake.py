"""Whether an update may be counted: from bytes to a checked integer vector, or a verdict with the reason.

Nothing is trusted: size, signature, fields, round, base, weight, steps and symbols are checked in this order,
and nothing large is allocated before it is known to be wanted. Journal and receipts are not handled here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import entropy_coding
from protocol.charter import StalenessPolicy, TrainingPolicy
from protocol.errors import ProtocolError
from protocol.messages import BASE_BYTES, Update, verify_message
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
    """What it counts for, less than it asks for where it is late."""
    loss_before: float
    loss_after: float
    staleness: int = 0
    """Releases since its round."""
    domain: int = 0
    """Whose adapter it is relative to, in the release that it started from."""
    domains: int = 1
    """Adapters that that release holds."""


@dataclass(frozen=True)
class Rejected:
    """An update that is not counted; the verdict and reason go onto the receipt."""

    verdict: str
    reason: str


@dataclass(frozen=True)
class RoundTerms:
    """What the updates of a round must match; it stays the same when the round is closed."""

    number: int
    release: int
    """Number of the release that they start from."""
    base: bytes
    """SHA-256 of its adapter."""
    cohort: frozenset[str]
    policy: TrainingPolicy
    domains: int = 1
    """Adapters that the release holds."""


@dataclass(frozen=True)
class Lateness:
    """How updates of closed rounds are taken now."""

    release: int
    """Number of the newest release: late updates are added to it."""
    policy: StalenessPolicy

    def of(self, terms: RoundTerms) -> int:
        """Releases since a round."""
        return self.release - terms.release


def open_update(envelope: bytes, key: PublicKey, topics: Topics, device: str, limit: int) -> Update:
    """Check size, signature and fields of an update.

    Raises:
        ProtocolError: any of them is wrong. Such a message gets no receipt: nobody proved to be its sender.
    """
    return verify_message(Update, envelope, key, topics.up(device, "update"), limit=limit)


def examine(
    update: Update,
    device: str,
    terms: RoundTerms | None,
    lateness: Lateness,
    *,
    federation: str,
    manifest: Manifest,
) -> Accepted | Rejected:
    """Decide on an update whose signature was checked.

    Args:
        update: the update.
        device: who signed it.
        terms: of the round that it answers; None: nobody knows them any more.
        lateness: how it is taken if that round is closed.
        federation: its name.
        manifest: of the package that the federation runs.
    """
    if terms is None:
        return Rejected("late", f"round {update.round} is closed")
    staleness = lateness.of(terms)
    if staleness > lateness.policy.maximum:
        return Rejected("late", _too_late(update.round, staleness, lateness.policy.maximum))
    rejected = _check_fields(update, device, terms)
    if rejected:
        return rejected
    try:
        symbols = entropy_coding.decode(update.body, manifest.parameters)
        vector = dequantise(
            Quantised(update.steps, symbols),
            manifest.slices().values(),
            dither_seed(federation, device, update.round, terms.base),
        )
    except ProtocolError as error:
        return Rejected("refused", str(error))
    bounded = bound_norm(vector, largest_norm(terms.policy))
    weight = lateness.policy.weight(update.weight, staleness)
    return Accepted(
        bounded, weight, update.loss_before, update.loss_after, staleness, update.domain, terms.domains
    )


def largest_norm(policy: TrainingPolicy) -> float:
    """L2 norm beyond which a decoded update is scaled down.

    Quantisation adds noise to a vector within the clipping bound: at most half a step, in root mean squares
    of the vector, on every value.
    """
    return policy.clipping_bound * (1 + policy.step_ratio / 2)


def _check_fields(update: Update, device: str, terms: RoundTerms) -> Rejected | None:
    if update.round != terms.number:
        return Rejected("refused", f"expected round {terms.number}, got {update.round}")
    if device not in terms.cohort:
        return Rejected("refused", "not in the cohort of this round")
    expected = terms.base[:BASE_BYTES]
    if update.base != expected:
        return Rejected("refused", f"expected base {expected.hex()}, got {update.base.hex()}")
    if update.domain >= terms.domains:
        return Rejected("refused", f"expected a domain up to {terms.domains - 1}, got {update.domain}")
    heaviest = terms.policy.maximum_weight
    if update.weight > heaviest:
        return Rejected("refused", f"expected a weight up to {heaviest}, got {update.weight}")
    return None


def _too_late(number: int, staleness: int, maximum: int) -> str:
    if not maximum:
        return f"round {number} is closed"
    return f"round {number} is closed for {staleness} releases; updates count up to {maximum} releases later"
