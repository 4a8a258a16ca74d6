"""Sealing with HPKE (RFC 9180, base mode): what a device says is encrypted to the server alone.

A sealed message is the signed envelope, encrypted:

    1 byte   suite: 1 X25519, 2 X25519 with ML-KEM-768; both HKDF-SHA256 and AES-128-GCM
    4 bytes  id of the recipient's key: the beginning of its SHA-256
    5 bytes  number of the round or release that it is about, big-endian
    rest     encapsulated key and ciphertext

All of the header, and the topic with federation, direction, device and kind, go into HPKE's `info`: bytes
that were moved, renumbered or cut do not open. Base mode does not say who sealed; the signature inside does.
The round is in what is signed, too, and the receiver holds both against each other.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocol.errors import EncodingError, SealingError, shown

X25519, HYBRID = "x25519", "mlkem768-x25519"
SUITES = (X25519, HYBRID)
SEALED_BYTES = 58
"""What sealing with X25519 adds to a message."""
SEALING_BYTES = 1280
"""More than sealing adds to any message; with ML-KEM it adds 1,146."""
MAX_NUMBER = (1 << 40) - 1
_HEADER_BYTES = 10
_ML_KEM_SEED, _ML_KEM_PUBLIC, _CURVE = 64, 1184, 32


@dataclass(frozen=True)
class _Suite:
    number: int
    name: str
    private_bytes: int
    public_bytes: int
    hpke: hpke.Suite


_X25519 = _Suite(
    1, X25519, _CURVE, _CURVE, hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
)
_HYBRID = _Suite(
    2,
    HYBRID,
    _ML_KEM_SEED + _CURVE,
    _ML_KEM_PUBLIC + _CURVE,
    hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM),
)
_BY_NAME = {suite.name: suite for suite in (_X25519, _HYBRID)}


class Unsealed(NamedTuple):
    """What came out of a sealed message."""

    number: int
    """Of the round or release that the header named."""
    plaintext: bytes


class PublicSealingKey:
    """The server's public key; its length says the suite."""

    def __init__(self, raw: bytes) -> None:
        """Take 32 raw bytes of X25519, or 1,216 of ML-KEM-768 and X25519.

        Raises:
            SealingError: another length, or a key that this system cannot use.
        """
        self.raw = raw
        self._suite = _suite_of(len(raw), "public_bytes")
        try:
            curve = X25519PublicKey.from_public_bytes(raw[-_CURVE:])
            X25519PrivateKey.generate().exchange(curve)  # fails now, and not at the first message
            self._key: Any = curve
            if self._suite is _HYBRID:
                lattice = MLKEM768PublicKey.from_public_bytes(raw[:_ML_KEM_PUBLIC])
                self._key = hpke.MLKEM768X25519PublicKey(lattice, curve)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SealingError(f"the sealing key cannot be used: {error}") from error

    @property
    def id(self) -> bytes:
        """Its name in a header, 4 bytes."""
        return hashlib.sha256(self.raw).digest()[:4]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicSealingKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def seal(self, plaintext: bytes, topic: str, number: int) -> bytes:
        """Encrypt to this key.

        Args:
            plaintext: what nobody but the key's owner shall read.
            topic: where it will be published.
            number: of the round or release that it is about, 0 to 2**40 - 1.
        """
        header = bytes([self._suite.number]) + self.id + number.to_bytes(5, "big")
        return header + self._suite.hpke.encrypt(plaintext, self._key, _info(header, topic))


class SealingKey:
    """The server's private key."""

    def __init__(self, raw: bytes) -> None:
        """Take 32 raw bytes of X25519, or 64 of an ML-KEM-768 seed and 32 of X25519.

        Raises:
            SealingError: another length, or a key that this system cannot use.
        """
        self.raw = raw
        self._suite = _suite_of(len(raw), "private_bytes")
        try:
            curve = X25519PrivateKey.from_private_bytes(raw[-_CURVE:])
            public = curve.public_key().public_bytes_raw()
            self._key: Any = curve
            if self._suite is _HYBRID:
                lattice = MLKEM768PrivateKey.from_seed_bytes(raw[:_ML_KEM_SEED])
                public = lattice.public_key().public_bytes_raw() + public
                self._key = hpke.MLKEM768X25519PrivateKey(lattice, curve)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SealingError(f"the sealing key cannot be used: {error}") from error
        self.public = PublicSealingKey(public)

    @property
    def suite(self) -> str:
        """Name of its suite."""
        return self._suite.name

    def __repr__(self) -> str:
        return f"SealingKey({self._suite.name}, {self.public.id.hex()})"

    @classmethod
    def generate(cls, suite: str = X25519) -> "SealingKey":
        """Make a new key from the system's randomness; `suite` is one of SUITES."""
        raw = X25519PrivateKey.generate().private_bytes_raw()
        if _BY_NAME[suite] is _HYBRID:
            raw = MLKEM768PrivateKey.generate().private_bytes_raw() + raw
        return cls(raw)

    def open(self, sealed: bytes, topic: str) -> bytes:
        """Decrypt what `unseal` found to be for this key.

        Raises:
            SealingError: it was sealed for another topic or number, changed or cut.
        """
        header, rest = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        try:
            return self._suite.hpke.decrypt(rest, self._key, _info(header, topic))
        except (InvalidTag, ValueError) as error:
            raise SealingError(
                "the message does not open: it was changed, cut, or is of another topic"
            ) from error


def unseal(sealed: bytes, keys: Iterable[SealingKey], topic: str, *, limit: int) -> Unsealed:
    """Decrypt a message with the key that it names.

    Memory: at most twice `limit` and 4 KiB beside the message.

    Args:
        sealed: the bytes received.
        keys: those that the server has, the one before included while it is being replaced.
        topic: where it was received.
        limit: largest plaintext in bytes.

    Raises:
        EncodingError: too large or too short.
        SealingError: not sealed, to another key, or it does not open.
    """
    if len(sealed) > limit + SEALING_BYTES:
        raise EncodingError(f"expected at most {limit + SEALING_BYTES} bytes, got {len(sealed)}")
    if len(sealed) <= _HEADER_BYTES:
        raise EncodingError(f"expected a sealed message, got {len(sealed)} bytes")
    for key in keys:
        if sealed[1:5] == key.public.id and _BY_NAME[key.suite].number == sealed[0]:
            number = int.from_bytes(sealed[5:_HEADER_BYTES], "big")
            plaintext = key.open(sealed, topic)
            if len(plaintext) > limit:
                raise EncodingError(f"expected at most {limit} bytes, got {len(plaintext)}")
            return Unsealed(number, plaintext)
    raise SealingError(
        f"expected a message sealed to this server's key, got one that begins {shown(sealed[:5])}"
    )


def _suite_of(length: int, side: str) -> _Suite:
    for suite in _BY_NAME.values():
        if getattr(suite, side) == length:
            return suite
    expected = " or ".join(str(getattr(suite, side)) for suite in _BY_NAME.values())
    raise SealingError(f"expected a sealing key of {expected} bytes, got {length}")


def _info(header: bytes, topic: str) -> bytes:
    return b"graftwork/1 sealed " + header + topic.encode()
