"""A broker with TLS as `broker-config` writes it, and clients that try what they should not be able to.

An attacker and an honest client are the same class (benchmarks/attack_client.py): what differs is the
certificate and what is asked of it.
"""

import contextlib
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.attack_client import PATIENCE_SECONDS, Attempt, Client, Heard, Identity
from runtime.broker import BrokerConfig
from server import broker_config, broker_restart
from server.authority import Authority
from server.broker import BrokerSupervisor, free_port

FEDERATION = "plant"
PREFIX = f"fl/v1/{FEDERATION}"
DAY = 86400.0
BRIDGED = "Received SUBSCRIBE from graftwork-bridge"
DeviceKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def clock() -> float:
    return time.time()  # noqa: TID251 - certificates are checked by the broker's clock


def request(key: DeviceKey, name: str = "whatever") -> bytes:
    """A certificate request as a device makes it."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


__all__ = ["Attempt", "Client", "Heard", "Identity", "SecureBroker", "clock", "request"]


class SecureBroker:
    """Brokers, their CA and the identities that it gives out; use as a context manager."""

    def __init__(self, directory: Path, *, require_claim: bool = False) -> None:
        self.directory = directory
        self.port, self.enrolment_port, self.service_port = free_port(), free_port(), free_port()
        self.authority = Authority.create(directory / "ca", FEDERATION, clock())
        self._foreign: Authority | None = None
        self._revoked: dict[int, float] = {}
        self._require_claim = require_claim
        self.written = directory / "written"
        self.write()
        self.supervisor = BrokerSupervisor(directory / "running", configuration=self.written)
        self.trusted = self.written / "services-ca.crt"
        self.server = self._keep("server", self.authority.issue_server(clock()))

    def write(self) -> None:
        """What an operator's `broker-config` does."""
        broker_config.write(
            self.written,
            FEDERATION,
            self.authority,
            hosts=["broker.example"],
            now=clock(),
            port=self.port,
            enrolment_port=self.enrolment_port,
            service_port=self.service_port,
            bind="127.0.0.1",
            require_claim=self._require_claim,
        )

    @property
    def foreign(self) -> Authority:
        """The CA of another operator, with a federation of the same name."""
        if self._foreign is None:
            self._foreign = Authority.create(self.directory / "foreign", FEDERATION, clock())
        return self._foreign

    @property
    def services(self) -> BrokerConfig:
        """How the server connects."""
        return BrokerConfig(
            port=self.service_port,
            tls_ca=str(self.trusted),
            tls_certificate=str(self.server.certificate),
            tls_key=str(self.server.key),
        )

    def device(
        self,
        name: str,
        *,
        at: float = 0.0,
        days: int = 30,
        key: DeviceKey | None = None,
        foreign: bool = False,
    ) -> Identity:
        """Give a device a certificate, `at` seconds from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        authority = self.foreign if foreign else self.authority
        issued = authority.issue_device(request(key), name, clock() + at, days=days)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.identity(name, issued.certificate, pem)

    def claim(self, name: str) -> Identity:
        return self._keep(f"claim-{name}", self.authority.issue_claim(name, clock(), 30))

    def identity(self, name: str, certificate: bytes, key: bytes) -> Identity:
        """Write a certificate and its key into files of their own."""
        folder = self.directory / "identities"
        folder.mkdir(exist_ok=True)
        stem = f"{len(list(folder.iterdir()))}-{re.sub('[^a-z0-9]', '_', name)}"
        identity = Identity(folder / f"{stem}.crt", folder / f"{stem}.key")
        identity.certificate.write_bytes(certificate)
        identity.key.write_bytes(key)
        return identity

    def _keep(self, name: str, credential: Any) -> Identity:
        return self.identity(name, credential.certificate, credential.key)

    def connect_device(self, name: str, identity: Identity | None = None, **choices: Any) -> Client:
        """An honest device; it must get in."""
        client = self.attacker(identity or self.device(name), client_id=name, **choices)
        assert client.connect() == Attempt(True, "Success")
        return client

    def connect_server(self, *filters: str) -> Client:
        """The server, or what watches in its place; under a client id of its own."""
        client = self.attacker(self.server, self.service_port, client_id=f"watcher-{free_port()}")
        assert client.connect() == Attempt(True, "Success")
        if filters:
            client.listen(*filters)
        return client

    def attacker(
        self,
        identity: Identity | None = None,
        port: int | None = None,
        client_id: str = "attacker",
        **choices: Any,
    ) -> Client:
        """A client with TLS that has yet to connect, by default to the listener for devices."""
        choices = {"trusted": self.trusted, **choices}
        return Client(port or self.port, client_id, identity=identity, **choices)

    def revoke(self, identities: Iterable[Identity]) -> None:
        """Revoke certificates, one list each, and have the broker read the lists."""
        for identity in identities:
            self._revoked[identity.serial] = clock()
            broker_config.write_revocations(self.written, self.authority, self._revoked.items(), clock())
            self.end()

    def end(self) -> None:
        """Have the broker end, as the server does, and wait until its supervisor has started it again."""
        times = self.log().count(BRIDGED)
        assert broker_restart.restart(self.written)
        self.wait_for_the_bridge(times + 1)

    def log(self) -> str:
        """Of the broker for devices."""
        with contextlib.suppress(FileNotFoundError):
            return self.supervisor.log_file.read_text("utf-8", "replace")
        return ""

    def wait_for_the_bridge(self, times: int = 1) -> None:
        """Wait until requests of the enrolment broker reach the other one, which has seen it come `times`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.log().count(BRIDGED) < times:
            assert time.monotonic() < deadline, "the bridge did not connect"
            time.sleep(0.02)

    def __enter__(self) -> "SecureBroker":
        self.supervisor.start()
        try:
            self.wait_for_the_bridge()
        except BaseException:
            self.supervisor.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
