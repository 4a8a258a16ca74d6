"""One connection to a broker, for attackers and honest parties alike: what differs is the certificate.

Every call waits for the broker's answer and returns it, so that "nothing came" never means "not yet".
"""

import ssl
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from cryptography import x509
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

PATIENCE_SECONDS = 30.0
"""Longer than any answer takes; nothing here waits for it to pass."""
KEPT_SECONDS = 600
"""How long the broker keeps a session that is to be kept."""


class AttackError(Exception):
    """The set-up or an honest control failed, so an attack says nothing."""


@dataclass(frozen=True)
class Identity:
    """What a client shows: files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def serial(self) -> int:
        """The certificate's."""
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
    """One connection to 127.0.0.1; use as a context manager, or close it."""

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
        """Prepare a connection.

        Args:
            port: of the broker.
            client_id: of the session.
            identity: certificate to show; None: none.
            trusted: file of the CA that the broker's certificate must be of; None: without TLS.
            username: to send; None: none.
            will: topic and payload of the last will.
            maximum_tls: newest version that is offered.
        """
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

    def connect(self, *, clean_start: bool = True, expiry_seconds: int | None = None) -> Attempt:
        """Try to connect.

        Args:
            clean_start: whether the broker forgets the session before.
            expiry_seconds: how long it keeps this one; by default, as the programs do, not at all after a
                clean start and for a while otherwise. The other combinations have crashed mosquitto.
        """
        expiry_seconds = (0 if clean_start else KEPT_SECONDS) if expiry_seconds is None else expiry_seconds
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = expiry_seconds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # paho leaves a socket to the garbage collector
            try:
                self._client.connect("127.0.0.1", self._port, clean_start=clean_start, properties=properties)
            except (OSError, ValueError) as error:
                return Attempt(False, f"no connection: {error}")
        self._client.loop_start()
        self._started = True
        self.wait(lambda: self._greeting is not None or self.disconnected, "an answer to CONNECT")
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
        self.wait(lambda: any((h.topic, h.payload) == (topic, payload) for h in self.heard), topic)
        index = next(i for i, h in enumerate(self.heard) if (h.topic, h.payload) == (topic, payload))
        return self.heard[: index + 1]

    def payloads(self, topic: str) -> list[bytes]:
        """What came on a topic so far."""
        return [heard.payload for heard in list(self.heard) if heard.topic == topic]

    def wait_for_the_end(self) -> str:
        """Wait until the broker closes the connection; its reason."""
        self.wait(lambda: self.disconnected, "the end of the connection")
        return self.disconnected

    def come_back(self) -> None:
        """Connect again, to the session that the broker keeps, after it ended the connection.

        Raises:
            AttackError: it does not let this client in.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.close()
            self._greeting, self.disconnected = None, ""
            attempt = self.connect(clean_start=False)
            if attempt.connected:
                return
            if time.monotonic() > deadline:
                raise AttackError(f"did not get in again: {attempt.answer}")
            time.sleep(0.05)

    def close(self, *, with_will: bool = False) -> None:
        """End the connection.

        Args:
            with_will: have the broker publish the last will.
        """
        reason = ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message") if with_will else None
        self._client.disconnect(reason)
        if self._started:
            self._client.loop_stop()
            self._started = False
        self._client._reset_sockets()  # noqa: SLF001 - left open otherwise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for something that a message or an answer brings.

        Raises:
            AttackError: it does not come.
        """
        with self._changed:
            if not self._changed.wait_for(condition, PATIENCE_SECONDS):
                raise AttackError(f"waited in vain: {what}")

    def _answer(self, mid: int) -> str:
        self.wait(lambda: mid in self._answers or self.disconnected, "an answer of the broker")
        return self._answers.get(mid, f"closed: {self.disconnected}")

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
