"""Ed25519 signatures in COSE_Sign1 envelopes (RFC 9052, RFC 9053).

The context (purpose, federation, sender) is signed as external additional data but does not travel: a
message that is moved to another topic, federation or sender no longer verifies.

Only the one form of envelope that is used here is written and read, on cbor2 and cryptography: a general
COSE library costs a device 9 MB of memory for algorithms that must be refused anyway. The tests hold the
envelopes against such a library.
"""

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol import cbor
from protocol.errors import EncodingError, SignatureError

# Tag 18, array of 4, protected {1: -8} (EdDSA), unprotected {}: an envelope has exactly these headers, so
# none can be added on the way (the unprotected ones are not signed) and nothing of them needs decoding.
_PROTECTED = bytes.fromhex("a10127")
_HEADERS = bytes.fromhex("d28443") + _PROTECTED + bytes.fromhex("a0")
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
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check a signature.

        Raises:
            SignatureError: it is not this key's over `message`.
        """
        try:
            self._key.verify(signature, message)
        except InvalidSignature as error:
            raise SignatureError("the signature does not match the expected key and context") from error

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
        self._key = Ed25519PrivateKey.from_private_bytes(raw)
        public = self._key.public_key()
        self.public = PublicKey(
            public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._key.sign(message)

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
    signature = key.sign(_signed(payload, context))
    return _HEADERS + cbor2.dumps(payload) + cbor2.dumps(signature)


def verify(envelope: bytes, key: PublicKey, context: bytes, *, limit: int) -> bytes:
    """Check an envelope and return its payload.

    Memory: at most `limit` and two kilobytes beside the envelope.

    Args:
        envelope: COSE_Sign1, tagged.
        key: whose signature is expected.
        context: what the signer must have bound it to.
        limit: largest accepted payload in bytes.

    Raises:
        EncodingError: not a bounded COSE_Sign1 envelope.
        SignatureError: not signed by `key` for `context`.
    """
    payload, signature = _open(envelope, limit)
    key.verify(signature, _signed(payload, context))
    return bytes(payload)


def signed_payload(envelope: bytes, *, limit: int) -> bytes:
    """Read the payload WITHOUT checking the signature, e.g. to look at a file or at a first greeting.

    Raises:
        EncodingError: not a bounded COSE_Sign1 envelope.
    """
    return bytes(_open(envelope, limit)[0])


def _open(envelope: bytes, limit: int) -> tuple[memoryview, bytes]:
    """Return payload, not copied, and signature of a bounded envelope."""
    if len(envelope) > limit + ENVELOPE_BYTES:
        raise EncodingError(f"expected at most {limit + ENVELOPE_BYTES} bytes, got {len(envelope)}")
    if not envelope.startswith(_HEADERS):
        raise EncodingError("expected a COSE_Sign1 envelope with EdDSA and no further headers")
    start, end = cbor.byte_string(envelope, len(_HEADERS))
    signature_start, signature_end = cbor.byte_string(envelope, end)
    if end - start > limit or signature_end != len(envelope):
        raise EncodingError(
            f"expected a payload of at most {limit} bytes, a signature, and nothing behind it"
        )
    return memoryview(envelope)[start:end], envelope[signature_start:signature_end]


def _signed(payload: bytes | memoryview, context: bytes) -> bytes:
    """What the signature is over: the Sig_structure of RFC 9052, section 4.4; one copy of the payload."""
    head = bytearray(cbor2.dumps(len(payload)))
    head[0] |= 2 << 5  # a number's head becomes that of a byte string of this length
    return b"".join(
        [b"\x84", cbor2.dumps("Signature1"), cbor2.dumps(_PROTECTED), cbor2.dumps(context), head, payload]
    )
