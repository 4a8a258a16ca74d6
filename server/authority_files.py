"""The files of the three CAs: made as a whole or not at all, and checked when they are read."""

import contextlib
import shutil
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from runtime import whole_files
from server import certificates
from server.certificates import Signer, Validity
from server.errors import ServerError

KINDS = ("devices", "services", "claims")


def make(directory: Path, federation: str, validity: Validity) -> None:
    """Make key and certificate of each kind. A crash leaves nothing in the way of doing it again.

    Raises:
        ServerError: the directory holds something, or cannot be written.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ServerError(
            f"{directory} exists: a CA is never overwritten, for its devices could not connect any more; "
            "move the directory away if that is meant"
        )
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)  # of a run that crashed
        partial.mkdir(mode=0o700)
        whole_files.own_as(directory.parent, partial)
        for kind in KINDS:
            _make(partial, kind, federation, validity)
        partial.rename(directory)  # fails where another run was faster
        whole_files.sync(directory.parent)
    except OSError as error:
        raise ServerError(f"{directory}: the CA cannot be written: {error.strerror}") from error


def read(directory: Path) -> dict[str, Signer]:
    """Read the CA of each kind.

    Raises:
        ServerError: there are none, or a file is not what `make` wrote; what a key file holds is not quoted.
    """
    if not directory.exists():
        raise ServerError(f"no certificate authority in {directory}; run `graftwork-server ca init`")
    return {kind: _read(directory, kind) for kind in KINDS}


def _make(directory: Path, kind: str, federation: str, validity: Validity) -> None:
    key = certificates.new_key()
    subject = certificates.name(f"graftwork-{kind}-ca", federation)
    certificate = certificates.self_signed(key, subject, validity)
    whole_files.write(directory / f"{kind}.key", certificates.key_pem(key), whole_files.SECRET)
    pem = certificate.public_bytes(Encoding.PEM)
    whole_files.write(directory / f"{kind}.crt", pem, whole_files.PUBLIC)


def _read(directory: Path, kind: str) -> Signer:
    path = directory / f"{kind}.key"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        path = directory / f"{kind}.crt"
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ServerError(f"{path}: {error.strerror}; restore the CA from a backup") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without the cause: what a key file holds is never quoted.
        raise ServerError(f"{path}: not what `graftwork-server ca init` wrote; restore a backup") from None
    matching = False
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        matching = (
            isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()
        )
    if not matching:
        raise ServerError(f"{path}: the certificate is not that of {kind}.key; restore a backup")
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - for mypy
    return Signer(certificate, key)
