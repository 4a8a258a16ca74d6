"""Ed25519 signatures in COSE_Sign1 envelopes (RFC 9052, RFC 9053).

The context (purpose, federation, sender) is signed as external additional data but does not travel: a
message that is moved to another topic, federation or sender no longer verifies.
"""

from typing import Any

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cwt import COSE, COSEKey
from cwt.exceptions import CWTError

from protocol import cbor
from protocol.errors import EncodingError, SignatureError

# Tag 18, array of 4, protected {1: -8} (EdDSA), unprotected {}: an envelope has exactly these headers, so
# none can be added on the way (the unprotected ones are not signed) and nothing of them needs decoding.
_HEADERS = bytes.fromhex("d28443a10127a0")
ENVELOPE_BYTES = 96
"""More than any envelope adds to its payload."""


class PublicKey:
    """An Ed25519 public key, ready to verify."""

    def __init__(self, raw: bytes) -> None:
        """Take the 32 raw bytes of the key.

        Raises:
            SignatureError: not 32 bytes.
        """
        if len(raw) != 32:
            raise SignatureError(f"expected an Ed25519 public key of 32 bytes, got {len(raw)}")
        self.raw = raw
        self.cose = COSEKey.new({1: 1, 3: -8, -1: 6, -2: raw})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey({self.raw.hex()})"

    @classmethod
    def from_hex(cls, text: str) -> "PublicKey":
        """Read 64 hexadecimal digits, as configuration files hold them."""
        try:
            return cls(bytes.fromhex(text))
        except ValueError as error:
            raise SignatureError(f"expected 64 hexadecimal digits as public key, got {text!r}") from error


class PrivateKey:
    """An Ed25519 private key, ready to sign."""

    def __init__(self, raw: bytes) -> None:
        """Take the 32 raw bytes of the key.

        Raises:
            SignatureError: not 32 bytes.
        """
        if len(raw) != 32:
            raise SignatureError(f"expected an Ed25519 private key of 32 bytes, got {len(raw)}")
        self.raw = raw
        public = Ed25519PrivateKey.from_private_bytes(raw).public_key()
        public_raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public = PublicKey(public_raw)
        self.cose = COSEKey.new({1: 1, 3: -8, -1: 6, -2: public_raw, -4: raw})

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public.raw.hex()})"

    @classmethod
    def generate(cls) -> "PrivateKey":
        """Make a new key from the system's randomness."""
        return cls(
            Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
            )
        )


def sign(payload: bytes, key: PrivateKey, context: bytes) -> bytes:
    """Wrap `payload` in a COSE_Sign1 envelope that is bound to `context`."""
    envelope: bytes = COSE.new(alg_auto_inclusion=True).encode(
        payload,
        key.cose,
        external_aad=context,
    )
    return envelope


def verify(envelope: bytes, key: PublicKey, context: bytes, *, limit: int) -> bytes:
    """Check an envelope and return its payload.

    Args:
        envelope: COSE_Sign1, tagged.
        key: whose signature is expected.
        context: what the signer must have bound it to.
        limit: largest accepted payload in bytes.

    Raises:
        EncodingError: not a bounded COSE_Sign1 envelope.
        SignatureError: not signed by `key` for `context`.
    """
    signed_payload(envelope, limit=limit)
    try:
        payload: Any = COSE.new().decode(envelope, key.cose, external_aad=context)
    except (CWTError, InvalidSignature, ValueError, TypeError, KeyError, cbor2.CBORError) as error:
        raise SignatureError("the signature does not match the expected key and context") from error
    if not isinstance(payload, bytes):
        raise EncodingError("expected a byte string as signed payload")
    return payload


def signed_payload(envelope: bytes, *, limit: int) -> bytes:
    """Read the payload WITHOUT checking the signature, e.g. to look at a file or at a first greeting.

    Raises:
        EncodingError: not a bounded COSE_Sign1 envelope.
    """
    if len(envelope) > limit + ENVELOPE_BYTES:
        raise EncodingError(f"expected at most {limit + ENVELOPE_BYTES} bytes, got {len(envelope)}")
    if not envelope.startswith(_HEADERS):
        raise EncodingError("expected a COSE_Sign1 envelope with EdDSA and no further headers")
    cbor.check(envelope, limit=limit + ENVELOPE_BYTES, tag=cbor.COSE_SIGN1_TAG)
    try:
        parts = cbor2.loads(envelope).value
    except (cbor2.CBORError, ValueError, TypeError) as error:
        raise EncodingError(f"malformed envelope: {error}") from error
    match parts:
        case [bytes(), dict(), bytes() as payload, bytes()] if len(payload) <= limit:
            return payload
    raise EncodingError("expected a COSE_Sign1 envelope with an embedded payload")
