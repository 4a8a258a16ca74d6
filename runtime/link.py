"""One MQTT connection as a queue of events.

paho's network thread only puts events into the queue: nothing that a message holds can stop it, and all
work happens in the program's own thread. MQTT 5 is spoken where the broker has it, else 3.1.1; nothing in
the protocol rests on the difference. A message is acknowledged to the broker only by `acknowledge`, after
its effect is on disk.
"""

import logging
import queue
import random
import ssl
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

SESSION_EXPIRY_SECONDS = 7 * 24 * 3600
RECEIVE_MAXIMUM = 64
EVENT_LIMIT = 4096
CONNACK_SECONDS = 10
_UNSUPPORTED_VERSION = (1, 0x84)
MQTT_VERSIONS = ("auto", "5", "3.1.1")


@dataclass(frozen=True)
class BrokerConfig:
    """Where the broker is and how to reach it."""

    host: str = "127.0.0.1"
    port: int = 1883
    keepalive_seconds: int = 30
    tls_ca: str = ""
    """File of the CA that signed the broker's certificate; empty: no TLS."""
    tls_certificate: str = ""
    """File of the client's certificate, for mutual TLS."""
    tls_key: str = ""
    username: str = ""
    password_file: str = ""
    mqtt_version: str = "auto"
    """"5", "3.1.1", or "auto": 5 where the broker has it."""

    def relative_to(self, folder: Path) -> "BrokerConfig":
        """The same with file names counted from `folder`."""

        def path(name: str) -> str:
            return str(folder / name) if name else ""

        return replace(
            self,
            tls_ca=path(self.tls_ca),
            tls_certificate=path(self.tls_certificate),
            tls_key=path(self.tls_key),
            password_file=path(self.password_file),
        )

    def __post_init__(self) -> None:
        if self.mqtt_version not in MQTT_VERSIONS:
            raise ValueError(
                f"mqtt_version: expected one of {', '.join(MQTT_VERSIONS)}, got {self.mqtt_version!r}"
            )
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")
        if not 1 <= self.keepalive_seconds <= 3600:
            raise ValueError(f"keepalive_seconds: expected 1 to 3600, got {self.keepalive_seconds}")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key: expected both or neither")


@dataclass(frozen=True)
class Connected:
    """The link is up and its subscriptions stand."""

    mqtt_version: str


@dataclass(frozen=True)
class Disconnected:
    """The link is down; it reconnects by itself."""

    reason: str


@dataclass(frozen=True)
class Received:
    """A message; hand it to `Link.acknowledge` when its effect is on disk."""

    topic: str
    payload: bytes
    packet_id: int
    qos: int
    connection: int


Event = Connected | Disconnected | Received


class Link:
    """A connection that reconnects for ever, with jitter, until it is stopped."""

    def __init__(self, config: BrokerConfig, client_id: str, subscriptions: list[str]) -> None:
        self.events: queue.Queue[Event] = queue.Queue(EVENT_LIMIT)
        self.bytes_up = 0
        """Topics and payloads published so far."""
        self.bytes_down = 0
        """Topics and payloads received so far."""
        self._config = config
        self._client_id = client_id
        self._subscriptions = subscriptions
        self._will: tuple[str, bytes] | None = None
        self._version = paho.MQTTv311 if config.mqtt_version == "3.1.1" else paho.MQTTv5
        self._maximum_packet = 0
        self._connection = 0
        self._stopping = threading.Event()
        self._client = self._new_client()

    def set_will(self, topic: str, payload: bytes) -> None:
        """Set what the broker publishes, retained, when the link breaks. Before `start` only."""
        self._will = (topic, payload)
        self._client.will_set(topic, payload, qos=1, retain=True)

    def start(self) -> None:
        """Connect in the background."""
        self._client.connect_async(
            self._config.host,
            self._config.port,
            self._config.keepalive_seconds,
            **self._connect_arguments(),
        )
        self._client.loop_start()

    def stop(self) -> None:
        """Close the connection in good order; the broker does not publish the will."""
        self._stopping.set()
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Send at QoS 1. False: not connected, or too large for the broker; the caller's store keeps it."""
        if not self._client.is_connected():
            return False
        if self._maximum_packet and len(payload) + len(topic) + 16 > self._maximum_packet:
            log.error(
                "not sent to %s: %d bytes, the broker takes %d", topic, len(payload), self._maximum_packet
            )
            return False
        self.bytes_up += len(topic) + len(payload)
        return self._client.publish(topic, payload, qos=1, retain=retain).rc == paho.MQTT_ERR_SUCCESS

    def acknowledge(self, message: Received) -> None:
        """Tell the broker that a message need not be delivered again."""
        # Packet ids are reused: an acknowledgement of an earlier connection would hit another message.
        if message.qos and message.connection == self._connection:
            self._client.ack(message.packet_id, message.qos)

    def _new_client(self) -> paho.Client:
        arguments: dict[str, Any] = {} if self._version == paho.MQTTv5 else {"clean_session": False}
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            protocol=self._version,
            manual_ack=True,
            **arguments,
        )
        client.reconnect_delay_set(random.uniform(0.5, 1.5), 60)  # type: ignore[arg-type]  # noqa: S311 - jitter
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_socket_open = self._on_socket_open
        if self._will:
            client.will_set(*self._will, qos=1, retain=True)
        if self._config.username:
            file = self._config.password_file
            password = Path(file).read_text("utf-8").strip() if file else None
            client.username_pw_set(self._config.username, password)
        if self._config.tls_ca:
            client.tls_set(
                self._config.tls_ca,
                self._config.tls_certificate or None,
                self._config.tls_key or None,
                tls_version=ssl.PROTOCOL_TLS_CLIENT,
            )
        return client

    def _connect_arguments(self) -> dict[str, Any]:
        if self._version != paho.MQTTv5:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_SECONDS
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        return {"clean_start": False, "properties": properties}

    def _on_connect(
        self, client: paho.Client, _userdata: Any, _flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            if reason.value in _UNSUPPORTED_VERSION and self._may_fall_back(client):
                self._fall_back()
            else:
                self._put(Disconnected(f"refused: {reason}"))
            return
        self._connection += 1
        self._maximum_packet = getattr(properties, "MaximumPacketSize", 0) if properties else 0
        if self._subscriptions:
            client.subscribe([(topic, 1) for topic in self._subscriptions])
        self._put(Connected("5" if self._version == paho.MQTTv5 else "3.1.1"))

    def _on_connect_fail(self, _client: paho.Client, _userdata: Any) -> None:
        self._put(Disconnected(f"no broker at {self._config.host}:{self._config.port}"))

    def _on_disconnect(
        self, client: paho.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if client is not self._client or self._stopping.is_set():
            return
        self._put(Disconnected(str(reason)))

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        self.bytes_down += len(message.topic) + len(message.payload)
        self._put(Received(message.topic, bytes(message.payload), message.mid, message.qos, self._connection))

    def _on_socket_open(self, client: paho.Client, _userdata: Any, _socket: Any) -> None:
        """Some 3.1.1 brokers neither answer nor close when they cannot read an MQTT 5 greeting."""
        if self._may_fall_back(client):
            timer = threading.Timer(CONNACK_SECONDS, self._greeting_timed_out, (client,))
            timer.daemon = True
            timer.start()

    def _greeting_timed_out(self, client: paho.Client) -> None:
        if self._may_fall_back(client) and client.socket() is not None:
            self._fall_back()

    def _may_fall_back(self, client: paho.Client) -> bool:
        return (
            client is self._client
            and self._version == paho.MQTTv5
            and self._config.mqtt_version == "auto"
            and self._connection == 0
            and not self._stopping.is_set()
        )

    def _put(self, event: Event) -> None:
        try:
            self.events.put_nowait(event)
        except queue.Full:
            # Not acknowledged, so the broker or the sender's outbox brings it again.
            log.warning("the program is too slow: an event was dropped")

    def _fall_back(self) -> None:
        """Go on with MQTT 3.1.1 on a new client; paho cannot change the version of a running one."""
        old, self._version = self._client, paho.MQTTv311
        log.info("the broker does not speak MQTT 5; going on with 3.1.1")
        self._client = self._new_client()

        def switch() -> None:
            old.disconnect()
            old.loop_stop()
            if not self._stopping.is_set():
                self.start()

        threading.Thread(target=switch, daemon=True).start()
