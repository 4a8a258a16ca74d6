"""A broker with TLS as `broker-config` writes it, and clients that try what they should not be able to.

An attacker and an honest client are the same class: what differs is the certificate and what is asked of it.
"""

import contextlib
import re
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from runtime.broker import BrokerConfig
from server import broker_config
from server.authority import Authority
from server.broker import BrokerSupervisor, free_port

FEDERATION = "plant"
PREFIX = f"fl/v1/{FEDERATION}"
PATIENCE_SECONDS = 30.0
"""Longer than any answer takes; nothing here waits for it to pass."""
DAY = 86400.0
DeviceKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def clock() -> float:
    return time.time()  # noqa: TID251 - certificates are checked by the broker's clock


def request(key: DeviceKey, name: str = "whatever") -> bytes:
    """A certificate request as a device makes it."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


@dataclass(frozen=True)
class Identity:
    """What a client shows: files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


@dataclass(frozen=True)
class Heard:
    """A message that came."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True)
class Attempt:
    """What came of trying to connect."""

    connected: bool
    reason: str


class Client:
    """One connection. Every call waits for the broker's answer, and says what it was."""

    def __init__(
        self,
        port: int,
        client_id: str,
        *,
        identity: Identity | None = None,
        trusted: Path | None = None,
        username: str | None = None,
        will: tuple[str, bytes] | None = None,
        maximum_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        """Prepare a connection to 127.0.0.1; without `trusted` it goes without TLS."""
        self.heard: list[Heard] = []
        self.disconnected = ""
        """Why, or empty while it is not."""
        self._port = port
        self._changed = threading.Condition()
        self._answers: dict[int, str] = {}
        self._greeting: ReasonCode | None = None
        self._started = False
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        if trusted:
            context = ssl.create_default_context(cafile=str(trusted))
            context.maximum_version = maximum_tls
            if identity:
                context.load_cert_chain(identity.certificate, identity.key)
            self._client.tls_set_context(context)
        if username:
            self._client.username_pw_set(username)
        if will:
            self._client.will_set(*will, qos=1)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def connect(self, *, clean_start: bool = True, expiry_seconds: int = 0) -> Attempt:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = expiry_seconds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # paho leaves a socket to the garbage collector
            try:
                self._client.connect("127.0.0.1", self._port, clean_start=clean_start, properties=properties)
            except (OSError, ValueError) as error:
                return Attempt(False, f"no connection: {error}")
        self._client.loop_start()
        self._started = True
        self._wait(lambda: self._greeting is not None or self.disconnected, "an answer to CONNECT")
        if self._greeting is None:
            return Attempt(False, f"closed: {self.disconnected}")
        return Attempt(not self._greeting.is_failure, str(self._greeting))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> str:
        """Publish at QoS 1; the broker's reason code, or why the connection ended."""
        sent = self._client.publish(topic, payload, qos=1, retain=retain)
        return self._answer(sent.mid)

    def listen(self, *filters: str) -> list[str]:
        """Subscribe at QoS 1; the broker's reason code for each filter, or why the connection ended."""
        _, mid = self._client.subscribe([(name, 1) for name in filters])
        return self._answer(mid or 0).split("; ")

    def wait_for(self, topic: str, payload: bytes) -> list[Heard]:
        """Wait for a message; everything that came up to it, in order."""
        self._wait(lambda: any((h.topic, h.payload) == (topic, payload) for h in self.heard), topic)
        index = next(i for i, h in enumerate(self.heard) if (h.topic, h.payload) == (topic, payload))
        return self.heard[: index + 1]

    def wait_for_the_end(self) -> str:
        """Wait until the broker closes the connection; its reason."""
        self._wait(lambda: self.disconnected, "the end of the connection")
        return self.disconnected

    def close(self, *, with_will: bool = False) -> None:
        reason = ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message") if with_will else None
        self._client.disconnect(reason)
        if self._started:
            self._client.loop_stop()
            self._started = False
        self._client._reset_sockets()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, mid: int) -> str:
        self._wait(lambda: mid in self._answers or self.disconnected, "an answer of the broker")
        return self._answers.get(mid, f"closed: {self.disconnected}")

    def _wait(self, condition: Callable[[], Any], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_SECONDS), f"waited in vain: {what}"

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._changed:
            self._greeting = reason
            self._changed.notify_all()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._changed:
            self.disconnected = str(reason)
            self._changed.notify_all()

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        with self._changed:
            self._answers[mid] = str(reason)
            self._changed.notify_all()

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, reasons: Any, _properties: Any) -> None:
        with self._changed:
            self._answers[mid] = "; ".join(map(str, reasons))
            self._changed.notify_all()

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        with self._changed:
            self.heard.append(Heard(message.topic, bytes(message.payload), message.retain))
            self._changed.notify_all()


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
            self.reload()

    def reload(self) -> None:
        """Have the brokers read their files again, and wait until the one for devices has done so."""
        before = self.log().count("Reloading config.")
        self.supervisor.reload()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.log().count("Reloading config.") == before:
            assert time.monotonic() < deadline, "the broker did not reload"
            time.sleep(0.02)

    def log(self) -> str:
        """Of the broker for devices."""
        with contextlib.suppress(FileNotFoundError):
            return self.supervisor.log_file.read_text("utf-8", "replace")
        return ""

    def wait_for_the_bridge(self) -> None:
        """Wait until requests of the enrolment broker reach the other one."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "Received SUBSCRIBE from graftwork-bridge" not in self.log():
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
