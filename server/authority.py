"""The federation's certificate authority: three CAs in a directory, and who gets which certificate.

    devices     signs client certificates of devices; trusted on the broker's listener for devices alone
    services    signs the broker's certificate, which devices trust, and those of the server and the bridge
    claims      signs claim certificates, which are good for asking for enrolment and nothing else

None of them signs another, so that no certificate of one kind can pass for one of another kind. The shape of
the certificates is in server/certificates.py; which ones are revoked is for the caller to know.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol.topics import check_name
from server import authority_files, certificates
from server.certificates import (
    CLOCK_LAG_SECONDS,
    DAY_SECONDS,
    CertificateRequestError,
    Credential,
    Issued,
    Signer,
    Validity,
    moment,
)
from server.errors import ServerError

KINDS = authority_files.KINDS
DIRECTORY = "ca"
"""Within the server's data directory."""
RESERVED = "graftwork-"
"""How the names of services begin; no device may have such a name."""
MAX_DAYS = 36500


class Authority:
    """The three CAs of one federation. `create` makes them, `open` reads them."""

    def __init__(self, federation: str, signers: dict[str, Signer]) -> None:
        self.federation = federation
        self._signers = signers

    @classmethod
    def create(cls, directory: Path, federation: str, now: float, *, days: int = 3650) -> "Authority":
        """Make the three CAs in a new directory. A crash leaves nothing in the way of doing it again.

        Args:
            directory: must not exist, or be empty.
            federation: its name; at most 47 characters, for it is part of the services' names.
            now: Unix time in seconds.
            days: how long the CAs, and so everything that they sign, are good.

        Raises:
            ServerError: the directory holds something, or cannot be written.
        """
        certificates.name(server_name(check_name(federation)), federation)  # fails now rather than later
        authority_files.make(directory, federation, _validity(now, days))
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> "Authority":
        """Read the CAs.

        Raises:
            ServerError: there are none, or a file is not what `create` wrote.
        """
        signers = authority_files.read(directory)
        federations = {_organisation(signer.certificate) for signer in signers.values()}
        if len(federations) != 1:
            raise ServerError(f"{directory}: the three CAs are of different federations; restore a backup")
        return cls(federations.pop(), signers)

    def trusted(self, kind: str) -> bytes:
        """PEM of a CA's certificate; `kind` is one of KINDS."""
        return self.certificate(kind).public_bytes(Encoding.PEM)

    def certificate(self, kind: str) -> x509.Certificate:
        """A CA's certificate; `kind` is one of KINDS."""
        return self._signers[kind].certificate

    def issue_device(self, csr_der: bytes, device: str, now: float, *, days: int) -> Issued:
        """Grant a device's certificate request. Of the request only the key counts.

        Args:
            csr_der: PKCS #10, signed by the device's own P-256 or Ed25519 key.
            device: what the certificate says; the caller has made sure that it is this device.
            now: Unix time in seconds.
            days: how long it is good, but not longer than the CA.

        Raises:
            CertificateRequestError: request or name cannot be granted; the reason is fit for the device.
            ServerError: the CA has ended.
        """
        try:
            check_name(device)
        except ValueError as error:
            raise CertificateRequestError(f"name of the device: {error}") from error
        if device.startswith(RESERVED):
            raise CertificateRequestError(
                f"names that start with {RESERVED!r} are those of services, got {device!r}"
            )
        key = certificates.request_key(csr_der)
        return self._issue("devices", device, key, now, days=days, purpose=certificates.CLIENT)

    def issue_broker(self, hosts: Sequence[str], now: float, days: int = 825) -> Credential:
        """Make the broker's key and certificate.

        Raises:
            ServerError: no host, or one that is neither a host name nor an IP address; or the CA has ended.
        """
        if not hosts:
            raise ServerError(
                "expected at least one host name or IP address under which clients reach the broker"
            )
        common_name = f"{RESERVED}broker-{self.federation}"
        return self._with_key(
            "services", common_name, now, days=days, purpose=certificates.SERVER, hosts=hosts
        )

    def issue_server(self, now: float, days: int = 825) -> Credential:
        """Make the key and client certificate with which the server connects to the broker."""
        return self._with_key(
            "services", server_name(self.federation), now, days=days, purpose=certificates.CLIENT
        )

    def issue_bridge(self, now: float, days: int = 825) -> Credential:
        """Make the key and client certificate with which the enrolment broker connects to the other one."""
        return self._with_key(
            "services", bridge_name(self.federation), now, days=days, purpose=certificates.CLIENT
        )

    def issue_claim(self, name: str, now: float, days: int) -> Credential:
        """Make a claim certificate, which many devices may share until they have one of their own.

        Raises:
            ServerError: not a name, or the CA has ended.
        """
        try:
            common_name = f"claim-{check_name(name)}"
        except ValueError as error:
            raise ServerError(f"name of the claim: {error}") from error
        return self._with_key("claims", common_name, now, days=days, purpose=certificates.CLIENT)

    def revocation_list(
        self, entries: Iterable[tuple[int, float]], now: float, *, previous: bytes = b""
    ) -> bytes:
        """Make the list of the devices' revoked certificates, as the broker reads it (PEM).

        The list begins an hour ago, so that a broker whose clock lags does not refuse the whole fleet, and
        after the previous one: software that knows both must go by the later (RFC 5280, section 5.2.3).

        Args:
            entries: (serial, revoked at in Unix seconds) of all revoked certificates that have not ended.
            now: Unix time in seconds.
            previous: PEM of the list that this one replaces, if there is one.
        """
        start = int(now - CLOCK_LAG_SECONDS)
        if previous:
            before = int(x509.load_pem_x509_crl(previous).last_update_utc.timestamp())
            # A previous one that begins in the future counts for nobody: the clock was set back.
            start = before + 1 if start <= before < int(now) else start
        return certificates.revoke(self._signers["devices"], entries, moment(start))

    def _with_key(
        self,
        kind: str,
        common_name: str,
        now: float,
        *,
        days: int,
        purpose: x509.ObjectIdentifier,
        hosts: Sequence[str] = (),
    ) -> Credential:
        key = certificates.new_key()
        issued = self._issue(
            kind, common_name, key.public_key(), now, days=days, purpose=purpose, hosts=hosts
        )
        return Credential(**vars(issued), key=certificates.key_pem(key))

    def _issue(
        self,
        kind: str,
        common_name: str,
        key: certificates.DeviceKey,
        now: float,
        *,
        days: int,
        purpose: x509.ObjectIdentifier,
        hosts: Sequence[str] = (),
    ) -> Issued:
        signer = self._signers[kind]
        end = signer.certificate.not_valid_after_utc
        if moment(now) >= end:
            raise ServerError(
                f"the CA for {kind} ended at {end:%Y-%m-%d %H:%M}Z; move {DIRECTORY}/ in the data directory "
                "away, run `graftwork-server ca init` and enrol every device anew"
            )
        wanted = _validity(now, days)
        validity = Validity(wanted.start, min(wanted.end, end))
        subject = certificates.name(common_name, self.federation)
        return certificates.sign(signer, subject, key, validity=validity, purpose=purpose, hosts=hosts)


def server_name(federation: str) -> str:
    """User name of the server at the broker."""
    return f"{RESERVED}server-{federation}"


def bridge_name(federation: str) -> str:
    """User name of the enrolment broker at the other one."""
    return f"{RESERVED}bridge-{federation}"


def _validity(now: float, days: int) -> Validity:
    if not 1 <= days <= MAX_DAYS:
        raise ServerError(f"days: expected 1 to {MAX_DAYS}, got {days}")
    return Validity(moment(now - CLOCK_LAG_SECONDS), moment(now + days * DAY_SECONDS))


def _organisation(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""
