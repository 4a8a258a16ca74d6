"""X.509 as Graftwork uses it: the shape of each certificate, and what a certificate request may hold.

Who gets which certificate is decided in server/authority.py. Nothing here reads or writes files or clocks.
"""

import datetime as dt
import ipaddress
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.errors import ServerError

MAX_REQUEST_BYTES = 8 * 1024
CLOCK_LAG_SECONDS = 3600.0
"""Certificates and revocation lists begin this long before they are made: clocks of devices may lag."""
DAY_SECONDS = 86400.0
MAX_NAME = 64
"""Characters of a common name (X.520)."""
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

DeviceKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class CertificateRequestError(ServerError):
    """A device's request cannot be granted; the message may be shown to the device."""


@dataclass(frozen=True)
class Issued:
    """A certificate that an authority has signed."""

    certificate: bytes
    """PEM."""
    serial: int
    """Random, positive, 20 bytes at most."""
    not_before: float
    """Unix time in seconds."""
    not_after: float
    """Unix time in seconds."""


@dataclass(frozen=True)
class Credential(Issued):
    """A certificate together with its private key."""

    key: bytes = field(repr=False)
    """PEM (PKCS #8), not encrypted."""


@dataclass(frozen=True)
class Signer:
    """A CA: its certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True)
class Validity:
    """From when until when, in whole seconds of UTC."""

    start: dt.datetime
    end: dt.datetime


def moment(seconds: float) -> dt.datetime:
    """Unix time as X.509 holds it: whole seconds."""
    return dt.datetime.fromtimestamp(int(seconds), dt.timezone.utc)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key: what every TLS library on a device understands."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PEM of a private key, not encrypted: the programs start without a person."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def name(common_name: str, federation: str) -> x509.Name:
    """A subject.

    Raises:
        ServerError: longer than X.509 allows.
    """
    if len(common_name) > MAX_NAME:
        raise ServerError(
            f"expected a name of at most {MAX_NAME} characters in a certificate, got {common_name!r}; "
            "choose a shorter one"
        )
    attributes = ((NameOID.ORGANIZATION_NAME, federation), (NameOID.COMMON_NAME, common_name))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def alternative_name(host: str) -> x509.GeneralName:
    """A host's name or address as clients compare it.

    Raises:
        ServerError: neither an IP address nor a host name.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removesuffix(".").split(".")
    if not all(
        0 < len(label) < MAX_NAME and label.isascii() and label.replace("-", "").isalnum() for label in labels
    ):
        raise ServerError(f"expected the broker's host name or IP address, got {host!r}")
    return x509.DNSName(host.removesuffix("."))


def request_key(csr_der: bytes) -> DeviceKey:
    """Read the public key of a certificate request; all else in it but the signature is ignored.

    Memory: at most four times its bytes, which MAX_REQUEST_BYTES bounds, and 32 KiB.

    Raises:
        CertificateRequestError: too large, malformed, not signed by its own key, or another kind of key.
    """
    if len(csr_der) > MAX_REQUEST_BYTES:
        raise CertificateRequestError(
            f"expected a certificate request of at most {MAX_REQUEST_BYTES} bytes, got {len(csr_der)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on oddities that a device may send, and that are ignored here
            request = x509.load_der_x509_csr(csr_der)
            key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CertificateRequestError("expected a certificate request (PKCS #10) in DER") from error
    p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    if not (p256 or isinstance(key, ed25519.Ed25519PublicKey)):
        raise CertificateRequestError("expected a certificate request with a P-256 or Ed25519 key")
    try:
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        valid = False
    if not valid:
        raise CertificateRequestError("the certificate request is not signed by the key that it holds")
    assert isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey))  # noqa: S101 - for mypy
    return key


def self_signed(key: ec.EllipticCurvePrivateKey, subject: x509.Name, validity: Validity) -> x509.Certificate:
    """Make the certificate of a CA that signs end entities only."""
    builder = _begin(subject, subject, key.public_key(), validity)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(identifier, critical=False).sign(key, SHA256())


def sign(
    signer: Signer,
    subject: x509.Name,
    key: DeviceKey,
    *,
    validity: Validity,
    purpose: x509.ObjectIdentifier,
    hosts: Sequence[str] = (),
) -> Issued:
    """Make a certificate of an end entity for one purpose: SERVER or CLIENT."""
    builder = _begin(subject, signer.certificate.subject, key, validity)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    builder = builder.add_extension(_issuer_identifier(signer), critical=False)
    if hosts:
        names = x509.SubjectAlternativeName([alternative_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(signer.key, SHA256())
    return Issued(
        certificate.public_bytes(Encoding.PEM),
        certificate.serial_number,
        validity.start.timestamp(),
        validity.end.timestamp(),
    )


def revoke(signer: Signer, entries: Iterable[tuple[int, float]], start: dt.datetime) -> bytes:
    """Make a revocation list of (serial, revoked at in Unix seconds); PEM."""
    authority = signer.certificate
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(start)
    # Until the CA itself ends: OpenSSL refuses every certificate once the list is out of date, so an age
    # would protect nothing here, but stop the whole fleet when nobody renews the list in time.
    builder = builder.next_update(authority.not_valid_after_utc)
    for serial, revoked_at in sorted(dict(entries).items()):
        revoked = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(revoked.revocation_date(moment(revoked_at)).build())
    builder = builder.add_extension(x509.CRLNumber(int(start.timestamp())), critical=False)
    builder = builder.add_extension(_issuer_identifier(signer), critical=False)
    return builder.sign(signer.key, SHA256()).public_bytes(Encoding.PEM)


def _issuer_identifier(signer: Signer) -> x509.AuthorityKeyIdentifier:
    identifier = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: DeviceKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())  # 159 random bits
        .not_valid_before(validity.start)
        .not_valid_after(validity.end)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
