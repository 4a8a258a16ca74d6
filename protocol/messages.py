"""The messages between devices and server: one frozen dataclass each, checked when built.

A message travels as CBOR map of numbered fields (see records.py: fields are only ever appended) inside a
COSE_Sign1 envelope whose signature is bound to the topic. So the topic tells kind, federation, direction
and device, and none of them can be changed on the way.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol import cbor, records
from protocol.artifacts import Artifact
from protocol.charter import (
    SchedulePolicy,
    SendingPolicy,
    StalenessPolicy,
    TrainingPolicy,
    WithdrawalPolicy,
)
from protocol.domains import MAX_DOMAINS
from protocol.errors import shown
from protocol.field_checks import check_hash, check_range, check_times
from protocol.identity import CertificateResponse, EnrolmentRequest, RenewalRequest, Trust
from protocol.signing import PrivateKey, PublicKey, sign, signed_payload, verify
from protocol.topics import check_name, context

Message = TypeVar("Message")

VERDICTS = ("counted", "duplicate", "late", "refused")
MAX_COUNT = (1 << 63) - 1
"""Of numbers that a database keeps."""
BASE_BYTES = 8
"""Of a release's name in a message: enough to notice a mix-up, and the signature covers the rest."""
CHOICES = ("backbone", "local", "global", "personal", "ensemble", "discriminant", "combined")
DEFAULTS = ("local", "personal", "ensemble", "discriminant", "combined")


@dataclass(frozen=True)
class DeviceState:
    """up/{device}/state, retained: birth, last will, and every change of what a device runs."""

    online: bool
    session: int
    """Start of the agent, Unix milliseconds: tells a new life from a late last will."""
    public_key: bytes
    agent_version: str = ""
    package: bytes = b""
    """SHA-256 of the installed package; empty while there is none."""
    release: int = -1
    """Number of the newest release that the device holds."""
    labelled_windows: int = 0
    """Labelled windows that the device can train on now."""
    waits: str = ""
    """Why the device sends no updates at the moment (see agent/sending.py); empty: it sends them."""
    firmware: str = ""
    """Version of the image that runs; empty: the device is none of an image."""
    firmware_update: str = ""
    """What became of the last update of the image, in a line."""

    def __post_init__(self) -> None:
        check_hash("public_key", self.public_key)
        check_hash("package", self.package, empty=True)
        check_range("session", self.session, 0, MAX_COUNT)
        check_range("release", self.release, -1, MAX_COUNT)
        check_range("labelled_windows", self.labelled_windows, 0, MAX_COUNT)
        if len(self.agent_version) > 64:
            raise ValueError("agent_version: expected at most 64 characters")
        for name, most in (("waits", 64), ("firmware", 64), ("firmware_update", 200)):
            if len(getattr(self, name)) > most:
                raise ValueError(f"{name}: expected at most {most} characters")


@dataclass(frozen=True)
class Announcement:
    """all/announcement, retained: the package that the federation runs, and how to train with it."""

    version: int
    """Grows with every push; a device never goes back."""
    name: str
    package: Artifact
    training: TrainingPolicy
    sending: SendingPolicy = field(default_factory=SendingPolicy)
    staleness: StalenessPolicy = field(default_factory=StalenessPolicy)
    withdrawal: WithdrawalPolicy = field(default_factory=WithdrawalPolicy)
    schedule: SchedulePolicy = field(default_factory=SchedulePolicy)
    issued: float = 0.0
    """When it was signed, Unix seconds."""
    expires: float = 0.0
    """Unix seconds after which no device begins to follow it; 0: never. The server renews it."""
    rollback: bytes = b""
    """Signed order to go back to an older version of the package (see rollback.py); empty: it is none."""

    def __post_init__(self) -> None:
        check_range("version", self.version, 1, (1 << 40) - 1)
        check_times(self.issued, self.expires)


@dataclass(frozen=True)
class ChunkRequest:
    """up/{device}/get: asks for chunks of an announced artifact."""

    artifact: bytes
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        check_hash("artifact", self.artifact)
        check_range("number of indices", len(self.indices), 1, 16)


@dataclass(frozen=True)
class Chunk:
    """dn/{device}/chunk: one chunk of an artifact."""

    artifact: bytes
    index: int
    data: bytes

    def __post_init__(self) -> None:
        check_hash("artifact", self.artifact)


@dataclass(frozen=True)
class Round:
    """all/round, retained: the round that is open."""

    number: int
    package: bytes
    base: bytes
    """SHA-256 of the release's adapter that updates must start from."""
    cohort: tuple[str, ...]
    """Devices that take part."""
    deadline: float
    """Unix seconds by the server's clock; for information, the server alone closes a round."""

    def __post_init__(self) -> None:
        check_range("number", self.number, 1, (1 << 40) - 1)
        check_hash("package", self.package)
        check_hash("base", self.base)
        for device in self.cohort:
            check_name(device)


@dataclass(frozen=True)
class Update:
    """up/{device}/update: what a device learned, relative to the release it started from."""

    round: int
    base: bytes
    """First 8 bytes of the SHA-256 of the release's adapter that the device started from."""
    weight: int
    """Labelled windows that it was trained on, at most the policy's maximum."""
    steps: bytes
    """Quantisation step of each segment (see quantisation.py)."""
    body: bytes
    """Entropy-coded symbols (see entropy_coding.py)."""
    loss_before: float = 0.0
    loss_after: float = 0.0
    domain: int = 0
    """Whose adapter in the release it is relative to (see domains.py)."""

    def __post_init__(self) -> None:
        check_range("round", self.round, 1, (1 << 40) - 1)
        check_range("domain", self.domain, 0, MAX_DOMAINS - 1)
        if len(self.base) != BASE_BYTES:
            raise ValueError(f"base: expected {BASE_BYTES} bytes, got {len(self.base)}")
        check_range("weight", self.weight, 1, 1 << 16)
        check_range("loss_before", self.loss_before, 0, 1e6)
        check_range("loss_after", self.loss_after, 0, 1e6)


@dataclass(frozen=True)
class Receipt:
    """dn/{device}/receipt: the server's word on an update; only it clears the device's outbox."""

    update: bytes
    """SHA-256 of the update's envelope."""
    round: int
    verdict: str
    reason: str = ""

    def __post_init__(self) -> None:
        check_hash("update", self.update)
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict: expected one of {', '.join(VERDICTS)}, got {shown(self.verdict)}")


@dataclass(frozen=True)
class Release:
    """all/release, retained: a numbered adapter."""

    number: int
    """Grows by one with every release, over all packages; a device never goes back."""
    package: bytes
    base: bytes
    """First 8 bytes of the SHA-256 of the adapter that `body` is a difference to; empty: to none."""
    adapter_sha256: bytes
    """SHA-256 of the float32 little-endian bytes of the adapter: the release's name."""
    body: bytes
    """With a base: entropy-coded symbols of the difference. Without: the whole adapter, coded as a keyframe
    is; empty for a package's initial adapter, which every device has (see release_coding.py)."""
    updates: int = 0
    weight: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    default: str = "local"
    """What a device uses unless its own held-out windows show otherwise: one of DEFAULTS."""
    steps: bytes = b""
    """Quantisation step of each segment of the difference; empty without a base."""
    keyframe: Artifact | None = None
    """The whole adapter, for devices that lack the base to pull in chunks; None: the body is enough."""
    withdraws: int = -1
    """Number of the release before, where this one takes its place with the adapter of the one before that;
    -1: none is withdrawn."""
    domains: int = 1
    """Adapters that it holds, one after another (see domains.py)."""
    issued: float = 0.0
    """When it was signed, Unix seconds."""
    expires: float = 0.0
    """Unix seconds after which no device begins to follow it; 0: never. The server renews it."""
    restores: int = -1
    """Number of the release whose adapter this is once more; -1: it withdraws none."""

    def __post_init__(self) -> None:
        check_range("number", self.number, 0, (1 << 40) - 1)
        check_times(self.issued, self.expires)
        check_range("domains", self.domains, 1, MAX_DOMAINS)
        check_hash("package", self.package)
        if len(self.base) not in (0, BASE_BYTES):
            raise ValueError(f"base: expected {BASE_BYTES} bytes or none, got {len(self.base)}")
        check_hash("adapter_sha256", self.adapter_sha256)
        if self.steps and not self.base:
            raise ValueError(f"steps: expected none without a base, got {len(self.steps)} bytes")
        if self.default not in DEFAULTS:
            raise ValueError(f"default: expected one of {', '.join(DEFAULTS)}, got {shown(self.default)}")
        check_range("withdraws", self.withdraws, -1, self.number - 1)
        check_range("restores", self.restores, -1, self.number - 1)


@dataclass(frozen=True)
class Report:
    """up/{device}/report: how a device's gate decided on a release. No data, only verdict and figures."""

    release: int
    choice: str
    """What the device uses now."""
    holdout_windows: int = 0
    gain: float = 0.0
    """Held-out loss of the local adapter minus that of the chosen one."""
    labelled_windows: int = 0
    unlabelled_windows: int = 0
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    problems: tuple[str, ...] = ()
    """Recordings that could not be read, with the reason."""
    personal_gain: float = 0.0
    """Held-out loss of the local adapter minus that of the personal one."""
    ensemble_gain: float = 0.0
    """Held-out loss of the local adapter minus that of the ensemble."""
    release_gain: float = 0.0
    """Held-out loss of the release that the device held before minus that of this one."""
    compared_with: int = -1
    """Number of the release before; -1: the device held none."""
    domain: int = 0
    """The domain whose adapter the device goes on from."""
    discriminant_gain: float = 0.0
    """Held-out loss of the local adapter minus that of the discriminant head's classifier."""
    combined_gain: float = 0.0
    """The same of the ensemble and the classifier together."""

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise ValueError(f"choice: expected one of {', '.join(CHOICES)}, got {shown(self.choice)}")
        check_range("release", self.release, 0, MAX_COUNT)
        for name in ("holdout_windows", "labelled_windows", "unlabelled_windows"):
            check_range(name, getattr(self, name), 0, MAX_COUNT)
        for name in ("peak_rss_bytes", "bytes_up", "bytes_down", "cpu_seconds"):
            check_range(name, getattr(self, name), 0, MAX_COUNT)
        for name in ("", "personal_", "ensemble_", "release_", "discriminant_", "combined_"):
            check_range(f"{name}gain", getattr(self, f"{name}gain"), -1e3, 1e3)
        check_range("compared_with", self.compared_with, -1, MAX_COUNT)
        check_range("domain", self.domain, 0, MAX_DOMAINS - 1)


@dataclass(frozen=True)
class ServerState:
    """srv/state, retained: whether the server is there."""

    online: bool
    session: int

    def __post_init__(self) -> None:
        check_range("session", self.session, 0, MAX_COUNT)


LIMITS: dict[type, int] = {
    DeviceState: 1024,
    Announcement: 2 * 1024 * 1024,
    ChunkRequest: 512,
    Chunk: 16 * 1024 * 1024 + 256,
    Round: 8 * 1024 * 1024,
    Update: 16 * 1024 * 1024,
    Receipt: 1024,
    Release: 32 * 1024 * 1024,
    Report: 16 * 1024,
    ServerState: 256,
    Trust: 1280 * 1024,
    EnrolmentRequest: 8 * 1024,
    RenewalRequest: 8 * 1024,
    CertificateResponse: 8 * 1024,
}
"""Largest payload of each message in bytes; a receiver may set a tighter one."""


def adapter_bytes(adapter: NDArray[np.float32]) -> bytes:
    """The bytes of an adapter that its SHA-256, and so the name of a release, is taken of."""
    return np.ascontiguousarray(adapter, "<f4").tobytes()


def sign_message(message: Any, key: PrivateKey, topic: str) -> bytes:
    """Encode a message and sign it for `topic`."""
    return sign(cbor.encode(records.to_numbered(message)), key, context(topic))


def verify_message(
    kind: type[Message], envelope: bytes, key: PublicKey, topic: str, *, limit: int | None = None
) -> Message:
    """Check the size, signature and fields of a message, in this order.

    Args:
        kind: the message class expected on `topic`.
        envelope: the bytes received.
        key: whose signature is expected.
        topic: where it was received.
        limit: largest payload in bytes; the class's own limit when None.

    Raises:
        ProtocolError: too large, malformed, not signed by `key` for `topic`, or fields out of range.
    """
    bound = LIMITS[kind] if limit is None else limit
    payload = verify(envelope, key, context(topic), limit=bound)
    return records.from_numbered(kind, cbor.decode(payload, limit=bound))


def peek(kind: type[Message], envelope: bytes) -> Message:
    """Decode a message WITHOUT checking its signature, to learn which key a newcomer presents.

    Raises:
        ProtocolError: malformed, or fields out of range.
    """
    payload = signed_payload(envelope, limit=LIMITS[kind])
    return records.from_numbered(kind, cbor.decode(payload, limit=LIMITS[kind]))
