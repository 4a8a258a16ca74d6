"""Keys that bundles are signed with: a root kept offline, and a signer for code under it (ECDSA P-256).

Ed25519 cannot sign RAUC's bundles: OpenSSL's CMS does not take it. The signer's certificate is for code
signing alone, and devices insist on that. The keyring holds two roots from the first day on: with the second
one in a safe, a signer can be replaced under it when the first is lost, without a visit to any device.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from firmware_tools.errors import FirmwareError
from runtime import whole_files

ROOTS = ("root-1", "root-2")
SIGNER, KEYRING = "signer", "keyring.pem"
ROOT_DAYS, SIGNER_DAYS = 7300, 1095


@dataclass(frozen=True)
class _Pair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make_keys(directory: Path, name: str, now: float) -> None:
    """Make both roots, a signer under the first, and the keyring for devices.

    Args:
        directory: new or empty; root-1.key and root-2.key then belong into safes.
        name: of the product, stands in the certificates.
        now: Unix seconds.

    Raises:
        FirmwareError: there are keys already, or they cannot be written.
    """
    for file in (KEYRING, *(f"{pair}.key" for pair in (*ROOTS, SIGNER))):
        if (directory / file).exists():
            raise FirmwareError(f"{directory} holds {file} already; keys are never overwritten")
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        roots = [_root(f"{name} {root}", now) for root in ROOTS]
        for root, pair in zip(ROOTS, roots, strict=True):
            _write(directory, root, pair)
        _write(directory, SIGNER, _signer(f"{name} signer", roots[0], now))
        keyring = b"".join(pair.certificate.public_bytes(serialization.Encoding.PEM) for pair in roots)
        whole_files.write(directory / KEYRING, keyring, whole_files.PUBLIC)
    except OSError as error:
        raise FirmwareError(f"{error.filename or directory}: {error.strerror}") from error


def make_signer(directory: Path, name: str, root: str, now: float) -> None:
    """Make a new signer under one of the roots, in the place of the one before.

    Raises:
        FirmwareError: the root's key is not there, or nothing can be written.
    """
    try:
        key = serialization.load_pem_private_key((directory / f"{root}.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((directory / f"{root}.crt").read_bytes())
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FirmwareError(f"{directory / root}.key: expected an EC key")
        _write(directory, SIGNER, _signer(f"{name} signer", _Pair(key, certificate), now))
    except (OSError, ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise FirmwareError(f"{directory}: the root {root} cannot be used: {error}") from error


def _root(name: str, now: float) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key, now, ROOT_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _Pair(key, builder.sign(key, hashes.SHA256()))


def _signer(name: str, root: _Pair, now: float) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = root.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, root.certificate.subject, key, now, SIGNER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )
    return _Pair(key, builder.sign(root.key, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: float, days: int
) -> x509.CertificateBuilder:
    # A day early: boards without a battery for their clock start in the past.
    start = dt.datetime.fromtimestamp(now - 86_400, dt.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write(directory: Path, name: str, pair: _Pair) -> None:
    pem = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    whole_files.write(directory / f"{name}.key", pem, whole_files.SECRET)
    certificate = pair.certificate.public_bytes(serialization.Encoding.PEM)
    whole_files.write(directory / f"{name}.crt", certificate, whole_files.PUBLIC)
