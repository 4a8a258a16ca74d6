"""The order to go back to an older version of a package: the one way in which a device ever does.

A device refuses a package whose version is below the highest that it has installed under that name, whoever
announces it. An order names the version that is left and the package that is gone back to, so it is good for
this one step: a replay of it, later or elsewhere, changes nothing. A publisher signs it; where a federation
has none, the server does.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from protocol import cbor, records
from protocol.errors import SignatureError
from protocol.field_checks import check_range
from protocol.signing import PrivateKey, PublicKey, sign, verify

CONTEXT = b"graftwork/1/rollback"
MAX_BYTES = 1024


@dataclass(frozen=True)
class Rollback:
    """Both sides of the step, by the manifests' versions."""

    name: str
    """Of the package."""
    from_version: int
    """The version that is left, at most; a device that has gone on since stays where it is."""
    to_version: int
    to_sha256: bytes
    """Of the package's archive."""
    expires: float = 0.0
    """Unix seconds; 0: never."""

    def __post_init__(self) -> None:
        check_range("from_version", self.from_version, 1, 1 << 40)
        check_range("to_version", self.to_version, 0, self.from_version - 1)
        check_range("expires", self.expires, 0, 1e12)
        if len(self.to_sha256) != 32:
            raise ValueError(f"to_sha256: expected 32 bytes, got {len(self.to_sha256)}")

    def allows(self, name: str, held: int, wanted: int, sha256: bytes, now: float) -> bool:
        """Whether a device that installed version `held` may install `wanted`, an archive of this hash."""
        in_time = not self.expires or now <= self.expires
        step = (self.name, self.to_version, self.to_sha256) == (name, wanted, sha256)
        return step and in_time and self.to_version < held <= self.from_version


def sign_rollback(order: Rollback, key: PrivateKey) -> bytes:
    """Sign an order."""
    return sign(cbor.encode(records.to_numbered(order)), key, CONTEXT)


def read_rollback(envelope: bytes, keys: Iterable[PublicKey]) -> Rollback:
    """Check the signature of an order and read it.

    Memory: at most `cbor.LEAST_MEMORY` and twice MAX_BYTES.

    Raises:
        ProtocolError: malformed, or signed by none of `keys`.
    """
    for key in keys:
        try:
            payload = verify(envelope, key, CONTEXT, limit=MAX_BYTES)
        except SignatureError:
            continue
        return records.from_numbered(Rollback, cbor.decode(payload, limit=MAX_BYTES))
    raise SignatureError("the order to go back is not signed by a publisher that is known here")
