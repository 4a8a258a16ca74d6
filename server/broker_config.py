"""Writes the complete configuration of a federation's brokers into a directory, and keeps it up to date.

The texts are made in server/broker_settings.py. Writing again changes what has to change: keys and
certificates stay while they are good, and a revocation list never gets shorter here.
"""

import secrets
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from cryptography import x509

from runtime import whole_files
from server import credentials
from server.authority import Authority
from server.broker_settings import (
    ENROLMENT,
    REVOKED,
    STATE,
    BrokerSettings,
    authority_file,
)
from server.errors import ServerError

READ = f"{REVOKED}.read"
"""SHA-256 of the list that the broker read last."""
LOOPBACK = ("localhost", "127.0.0.1")
"""The server and the bridge reach the broker under these names, too."""


def write(
    directory: Path,
    federation: str,
    authority: Authority,
    *,
    hosts: Sequence[str],
    now: float,
    revocations: bytes = b"",
    port: int = 8883,
    enrolment_port: int = 8884,
    service_port: int = 8885,
    bind: str = "",
    service_bind: str = "127.0.0.1",
    require_claim: bool = False,
    audit: bool = True,
) -> BrokerSettings:
    """Write configuration, access lists, certificates and revocation list.

    Args:
        directory: may exist; files of an earlier run are replaced.
        federation: its name.
        authority: of the same federation.
        hosts: names and addresses under which devices reach the broker.
        now: Unix time in seconds.
        revocations: PEM of the devices' revocation list, if there is one. What is revoked in a list that is
            already there stays revoked.
        port: for devices.
        enrolment_port: for devices without a certificate; 0: none.
        service_port: for the server.
        bind: IP address to listen on for devices; empty: all.
        service_bind: IP address to listen on for the server.
        require_claim: whether asking for enrolment needs a claim certificate.
        audit: whether the log says what was denied to whom.

    Raises:
        ServerError: a value out of range, another federation's CA, or the directory cannot be written.
    """
    settings = BrokerSettings(
        federation,
        directory.resolve(),
        port=port,
        enrolment_port=enrolment_port,
        service_port=service_port,
        bind=bind,
        service_bind=service_bind,
        require_claim=require_claim,
        audit=audit,
        bridge_id=secrets.token_hex(16),
    )
    if authority.federation != federation:
        raise ServerError(f"expected the CA of {federation!r}, got that of {authority.federation!r}")
    if not hosts:
        raise ServerError(
            "expected at least one host name or IP address under which devices reach the broker"
        )
    names = tuple(dict.fromkeys((*hosts, *LOOPBACK, settings.service_host)))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = directory / STATE
        if not state.exists():
            state.mkdir(mode=0o700)
            whole_files.own_as(directory, state)
        _write_certificates(directory, authority, names, now)
        _write_texts(settings)
        _add_revocations(directory, authority, revocations, now)
    except OSError as error:
        raise ServerError(f"{error.filename or directory}: cannot be written: {error.strerror}") from error
    return settings


def write_revocations(
    directory: Path, authority: Authority, entries: Iterable[tuple[int, float]], now: float
) -> bytes:
    """Replace the revocation list of a written configuration; the broker reads it when it starts.

    Args:
        directory: what `write` wrote.
        authority: of the same federation.
        entries: (serial, revoked at in Unix seconds): all of them; what is not named is good again.
        now: Unix time in seconds.

    Returns:
        The list, in PEM.

    Raises:
        ServerError: the list cannot be written.
    """
    path = directory / REVOKED
    crl = authority.revocation_list(entries, now, previous=_previous(path, authority))
    _replace(path, crl)
    return crl


def note_revocations_read(directory: Path, crl: bytes) -> None:
    """Note beside a list that no broker runs which has not read it; b"": that is not known any more.

    Raises:
        ServerError: the note cannot be written.
    """
    _replace(directory / READ, sha256(crl).hexdigest().encode() if crl else b"")


def revocations_read(directory: Path, authority: Authority) -> frozenset[int]:
    """Serials on the list that every broker that runs has read; empty if that is not known.

    Raises:
        ServerError: the list is damaged.
    """
    crl = _previous(directory / REVOKED, authority)
    try:
        note = (directory / READ).read_bytes()
    except OSError:
        return frozenset()
    return frozenset(_entries(crl)) if note == sha256(crl).hexdigest().encode() else frozenset()


def _replace(path: Path, data: bytes) -> None:
    try:
        whole_files.write(path, data, whole_files.PUBLIC)
    except OSError as error:
        raise ServerError(f"{path}: cannot be written: {error.strerror}") from error


def _write_certificates(directory: Path, authority: Authority, names: Sequence[str], now: float) -> None:
    for kind in ("devices", "services", "claims"):
        whole_files.write(directory / authority_file(kind), authority.trusted(kind), whole_files.PUBLIC)
    credentials.keep(
        directory, "broker", authority, lambda: authority.issue_broker(names, now), now, hosts=names
    )
    credentials.keep(directory, "bridge", authority, lambda: authority.issue_bridge(now), now)


def _write_texts(settings: BrokerSettings) -> None:
    texts = settings.texts()
    for name, text in texts.items():
        mode = whole_files.SECRET if name == ENROLMENT else whole_files.PUBLIC  # it has the bridge's id
        whole_files.write(settings.directory / name, text.encode(), mode)
    if ENROLMENT not in texts:  # of an earlier run; it would go on being started
        (settings.directory / ENROLMENT).unlink(missing_ok=True)


def _add_revocations(directory: Path, authority: Authority, revocations: bytes, now: float) -> None:
    path = directory / REVOKED
    previous = _previous(path, authority)
    there = _entries(previous)
    wanted = there | _entries(revocations)
    if not previous or wanted != there:
        crl = authority.revocation_list(wanted.items(), now, previous=previous)
        whole_files.write(path, crl, whole_files.PUBLIC)


def _previous(path: Path, authority: Authority) -> bytes:
    """The list that is there, if it is one of this CA."""
    try:
        crl = path.read_bytes()
        found = x509.load_pem_x509_crl(crl)
    except FileNotFoundError:
        return b""
    except ValueError as error:
        raise ServerError(
            f"{path}: not a revocation list; remove it and revoke anew what was in it"
        ) from error
    key = authority.certificate("devices").public_key()
    return crl if found.is_signature_valid(key) else b""  # type: ignore[arg-type]


def _entries(crl: bytes) -> dict[int, float]:
    if not crl:
        return {}
    try:
        found = x509.load_pem_x509_crl(crl)
    except ValueError as error:
        raise ServerError("expected a revocation list in PEM") from error
    return {entry.serial_number: entry.revocation_date_utc.timestamp() for entry in found}
