"""Messages about who is who: keys that devices have to know, and how a device gets its certificate.

They travel like all messages (see messages.py): signed, and bound to their topic.
"""

from dataclasses import dataclass

from protocol.errors import shown
from protocol.field_checks import check_hash, check_range, check_times
from protocol.topics import check_device
from protocol.trust import MAX_ROOT_BYTES, MAX_ROOTS

STATUSES = ("issued", "pending", "refused")
MAX_SIGNING_REQUEST_BYTES = 4096


@dataclass(frozen=True)
class Trust:
    """all/trust, retained: what devices need to know of keys before anything else.

    It is signed with the server's key; a device that was given a root takes that key from the newest root
    here.
    """

    roots: tuple[bytes, ...]
    """Every version of the federation's root, oldest first (see trust.py); empty: it has none."""
    sealing_key: bytes
    """What updates and reports are sealed to (see sealing.py)."""
    issued: float
    """Unix seconds; a device takes none that is older than the last one it took."""
    expires: float

    def __post_init__(self) -> None:
        check_range("number of roots", len(self.roots), 0, MAX_ROOTS)
        for root in self.roots:
            check_range("bytes of a root", len(root), 1, MAX_ROOT_BYTES)
        check_range("bytes of sealing_key", len(self.sealing_key), 1, 2048)
        check_times(self.issued, self.expires)


@dataclass(frozen=True)
class EnrolmentRequest:
    """enroll/{nonce}/request, sealed: a device asks for a certificate.

    Signed with the key that it names, which proves that the device has it; the signing request inside proves
    the same of the key for TLS.
    """

    device: str
    public_key: bytes
    """The key that all messages of the device will be signed with."""
    signing_request: bytes
    """PKCS #10, DER, of the key for TLS."""
    token: str = ""
    """One-time token; empty: an operator has to approve."""
    agent_version: str = ""

    def __post_init__(self) -> None:
        check_device(self.device)
        check_hash("public_key", self.public_key)
        check_range("bytes of signing_request", len(self.signing_request), 1, MAX_SIGNING_REQUEST_BYTES)
        check_range("length of token", len(self.token), 0, 128)
        check_range("length of agent_version", len(self.agent_version), 0, 64)


@dataclass(frozen=True)
class RenewalRequest:
    """up/{device}/renew: a device asks for its next certificate, over the connection of the present one."""

    signing_request: bytes
    """PKCS #10, DER."""

    def __post_init__(self) -> None:
        check_range("bytes of signing_request", len(self.signing_request), 1, MAX_SIGNING_REQUEST_BYTES)


@dataclass(frozen=True)
class CertificateResponse:
    """enroll/{nonce}/response and dn/{device}/certificate: the certificate, or why there is none."""

    status: str
    """"issued", "pending" (an operator has to approve; ask again), or "refused"."""
    request: bytes
    """SHA-256 of the signing request that is answered."""
    certificate: bytes = b""
    """PEM."""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status: expected one of {', '.join(STATUSES)}, got {shown(self.status)}")
        check_hash("request", self.request)
