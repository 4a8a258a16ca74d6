"""Keys and certificates of services on disk: made where they are missing, and anew before they end."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from runtime import whole_files
from server.authority import Authority
from server.certificates import DAY_SECONDS, Credential, alternative_name
from server.errors import ServerError

RENEWAL_DAYS = 30


def keep(
    directory: Path,
    stem: str,
    authority: Authority,
    issue: Callable[[], Credential],
    now: float,
    *,
    hosts: Sequence[str] = (),
) -> bool:
    """Make sure that `stem`.key and `stem`.crt are good; true: they were made anew.

    Args:
        directory: where they lie.
        stem: the files' name but for the ending.
        authority: whose CA for services must have signed the certificate.
        issue: makes new ones.
        now: Unix time in seconds; what ends within 30 days is made anew.
        hosts: what the certificate must be good for, no more and no less.

    Raises:
        ServerError: they cannot be written.
    """
    key, certificate = directory / f"{stem}.key", directory / f"{stem}.crt"
    if _is_good(key, certificate, authority, now, hosts):
        return False
    credential = issue()
    try:
        # A crash in between leaves a pair that does not match; the next call makes both anew.
        whole_files.write(key, credential.key, whole_files.SECRET)
        whole_files.write(certificate, credential.certificate, whole_files.PUBLIC)
    except OSError as error:
        raise ServerError(f"{directory}: {stem} cannot be written: {error.strerror}") from error
    return True


def _is_good(key: Path, certificate: Path, authority: Authority, now: float, hosts: Sequence[str]) -> bool:
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        found.verify_directly_issued_by(authority.certificate("services"))
        matches = load_pem_private_key(key.read_bytes(), None).public_key() == found.public_key()
    except (OSError, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    ends = found.not_valid_after_utc.timestamp()
    return (
        matches
        and ends > now + RENEWAL_DAYS * DAY_SECONDS
        and _names(found) == set(map(alternative_name, hosts))
    )


def _names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    with contextlib.suppress(x509.ExtensionNotFound):
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    return set()
