"""An authority of its own for each test: certificates for a broker and its clients, as PEM files."""

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """Signs certificates, and says which are revoked."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._now = datetime.now(timezone.utc)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._revoked: list[int] = []
        directory.mkdir(parents=True, exist_ok=True)
        certificate = self._sign(name, self._key.public_key(), 10, authority=True)
        self.file = directory / f"{name}.crt"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, days: int = 5, revoked: bool = False) -> Path:
        """A file with certificate and key of a client or broker, valid until `days` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key.public_key(), days)
        if revoked:
            self._revoked.append(certificate.serial_number)
        file = self._directory / f"{name}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return file

    def revocations(self) -> Path:
        """The list of what is revoked."""
        builder = x509.CertificateRevocationListBuilder(
            self._name, self._now - timedelta(days=1), self._now + timedelta(days=5)
        )
        for number in self._revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder(number, self._now - timedelta(hours=1)).build()
            )
        file = self._directory / "revoked.crl"
        signed = builder.sign(self._key, hashes.SHA256())
        file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return file

    def _sign(
        self, name: str, key: ec.EllipticCurvePublicKey, days: int, *, authority: bool = False
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder(
                self._name,
                _name(name),
                key,
                x509.random_serial_number(),
                self._now - timedelta(days=10),
                self._now + timedelta(days=days),
            )
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
        )
        return builder.sign(self._key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def settings(authority: Authority) -> dict[str, str]:
    """Settings of mosquitto as in deploy/mosquitto, for BrokerSupervisor; issue all certificates before."""
    broker = str(authority.issue("broker"))
    return {
        "cafile": str(authority.file),
        "certfile": broker,
        "keyfile": broker,
        "crlfile": str(authority.revocations()),
        "require_certificate": "true",
        "use_identity_as_username": "true",
        "use_username_as_clientid": "true",
    }
