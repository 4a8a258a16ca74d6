"""The device's identity on disk: its keys, made here and never anywhere else, and its certificate.

    device.key      signs every message (Ed25519)
    identity.pem    key for TLS (EC P-256) and certificate, replaced as one file
    next.key        key and signing request of the certificate that is asked for, until it is here
    next.csr

A request that was made is made once: it is repeated with the same bytes, so that the server gives one
certificate for it, however often it is asked.
"""

from dataclasses import dataclass
from pathlib import Path

from agent.config import CERTIFICATE_FILE, KEY_FILE
from protocol.signing import PrivateKey
from runtime.errors import SetupError
from runtime.keys import load_or_make
from runtime.whole_files import SECRET, sync, write

_NEXT_KEY, _NEXT_REQUEST = "next.key", "next.csr"


@dataclass(frozen=True)
class Validity:
    """When a certificate is good, Unix seconds."""

    not_before: float
    not_after: float

    @property
    def renew_at(self) -> float:
        """After two thirds of its time."""
        return self.not_before + (self.not_after - self.not_before) * 2 / 3


class Identity:
    """The files of one device."""

    def __init__(self, directory: Path, device: str) -> None:
        """Take a folder, e.g. on a partition of its own.

        Args:
            directory: of the files; made where it is missing.
            device: the device's name.
        """
        self._directory = directory
        self._device = device
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def certificate_file(self) -> Path:
        """Key and certificate for TLS, in one file."""
        return self._directory / CERTIFICATE_FILE

    def key(self) -> PrivateKey:
        """The signing key, made on first use.

        Raises:
            SetupError: it cannot be read or written.
        """
        return load_or_make(self._directory / KEY_FILE)

    def validity(self) -> Validity | None:
        """When the certificate is good; None: there is none.

        Raises:
            SetupError: the file holds something else.
        """
        if not self.certificate_file.exists():
            return None
        from cryptography import x509  # noqa: PLC0415 - a device without certificates does without

        try:
            certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
        except (OSError, ValueError) as error:
            raise SetupError(f"{self.certificate_file}: expected a key and a certificate: {error}") from error
        return Validity(
            certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        )

    def pending_request(self) -> bytes:
        """The request that has no certificate yet; empty: none was made since the last one.

        Raises:
            SetupError: it cannot be read.
        """
        path = self._directory / _NEXT_REQUEST
        try:
            key = (self._directory / _NEXT_KEY).read_bytes()
            if self.certificate_file.exists() and self.certificate_file.read_bytes().startswith(key):
                return b""  # its certificate is here: a crash left it behind
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}") from error

    def signing_request(self) -> bytes:
        """The request for the next certificate, PKCS #10 in DER; its key is made with it.

        Raises:
            SetupError: it cannot be read or written.
        """
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
        from cryptography.x509.oid import NameOID  # noqa: PLC0415

        path, pending = self._directory / _NEXT_REQUEST, self.pending_request()
        if pending:
            return pending
        try:
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._device)])
            request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            # The key first: a request whose key is lost would be answered with a certificate of no use. So
            # what a crash left of the one before has to go even earlier.
            path.unlink(missing_ok=True)
            sync(self._directory)
            write(self._directory / _NEXT_KEY, pem, SECRET)
            write(path, request.public_bytes(serialization.Encoding.DER), SECRET)
            return path.read_bytes()
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}") from error

    def adopt(self, certificate: bytes) -> Validity:
        """Take the certificate that was asked for, PEM; from now on it is the device's.

        Raises:
            SetupError: it is not for the key that was asked for, or cannot be written.
        """
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        try:
            pem = (self._directory / _NEXT_KEY).read_bytes()
            key, found = load_pem_private_key(pem, None), x509.load_pem_x509_certificate(certificate)
        except (OSError, ValueError, TypeError) as error:
            raise SetupError(f"the certificate that came cannot be used: {error}") from error
        if found.public_key() != key.public_key():
            raise SetupError("the certificate that came is for another key than was asked for")
        try:
            write(self.certificate_file, pem + certificate, SECRET)
            for name in (_NEXT_REQUEST, _NEXT_KEY):
                (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise SetupError(f"{self.certificate_file}: cannot be written: {error.strerror}") from error
        return Validity(found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())

    def forget(self) -> None:
        """Put keys and certificate away: the next ones are new. For a device that was revoked or repaired.

        The old ones stay beside them, renamed, until the next time.

        Raises:
            SetupError: they cannot be renamed.
        """
        try:
            for name in (KEY_FILE, CERTIFICATE_FILE, _NEXT_KEY, _NEXT_REQUEST):
                path = self._directory / name
                if path.exists():
                    path.replace(path.with_name(f"{name}.before"))
        except OSError as error:
            raise SetupError(f"{self._directory}: {error.strerror}") from error
