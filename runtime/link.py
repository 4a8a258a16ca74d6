"""One MQTT connection as a queue of events.

paho's network thread only puts events into the queue: nothing that a message holds can stop it, and all
work happens in the program's own thread. MQTT 5 is spoken where the broker has it, else 3.1.1; nothing in
the protocol rests on the difference. A message is acknowledged to the broker only by `acknowledge`, after
its effect is on disk.

Every connection has a paho client of its own. One client for all would keep what was never acknowledged for
the next connection, and each broken one would add to that; what matters is published again by the programs.
"""

import logging
import queue
import random
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from runtime.backlog import BoundedQueue, Unacknowledged
from runtime.backoff import LAST_CEILING_SECONDS, Backoff
from runtime.broker import BrokerConfig

log = logging.getLogger(__name__)

SESSION_EXPIRY_SECONDS = 7 * 24 * 3600
RECEIVE_MAXIMUM = 64
EVENT_LIMIT = 4096
EVENT_BYTES = 64 * 1024 * 1024
CONNACK_SECONDS = 10
STOP_SECONDS = 10.0
LARGE_BYTES = 16 * 1024
"""Messages below this are taken by every broker."""
_UNSUPPORTED_VERSION = (1, 0x84)


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


def _size(event: Event) -> int:
    return len(event.topic) + len(event.payload) if isinstance(event, Received) else 0


def _too_large(topic: str, size: int) -> str:
    """Brokers close the connection on what is too large for them, and most give no reason."""
    if size < LARGE_BYTES:
        return ""
    return (
        f"; {size} bytes to {topic} were on their way: if this goes on, raise message_size_limit and "
        "max_packet_size in the broker's configuration"
    )


class Link:
    """A connection that reconnects for ever, with jitter, until it is stopped."""

    def __init__(
        self,
        config: BrokerConfig,
        client_id: str,
        subscriptions: list[str],
        *,
        persistent: bool = True,
        longest_wait_seconds: float = LAST_CEILING_SECONDS,
    ) -> None:
        """Prepare a connection.

        Args:
            config: where the broker is.
            client_id: of the session.
            subscriptions: topics to listen to.
            persistent: whether the broker keeps session and queue while the link is down.
            longest_wait_seconds: between two tries to connect.
        """
        self.events: queue.Queue[Event] = BoundedQueue(EVENT_LIMIT, EVENT_BYTES, _size)
        self.bytes_up = 0
        """Topics and payloads published so far."""
        self.bytes_down = 0
        """Topics and payloads received so far."""
        self._config = config
        self._client_id = client_id
        self._subscriptions = subscriptions
        self._persistent = persistent
        self._longest_wait = longest_wait_seconds
        self._will: tuple[str, bytes] | None = None
        self._version = paho.MQTTv311 if config.mqtt_version == "3.1.1" else paho.MQTTv5
        self._maximum_packet = 0
        self._connection = 0
        self._connected_at: float | None = None
        self._dropped = False
        """Whether the broker has messages that this connection dropped, and would not deliver on it again."""
        self._congested = False
        """Whether the last message was not sent because the broker does not acknowledge."""
        self._why = ""
        self._stopping = threading.Event()
        self._ended = threading.Event()
        """The connection, or the attempt at one, is over."""
        self._thread = threading.Thread(target=self._stay_connected, name="broker link", daemon=True)
        self._client = self._new_client()

    def set_will(self, topic: str, payload: bytes) -> None:
        """Set what the broker publishes, retained, when the link breaks. Before `start` only."""
        self._will = (topic, payload)
        self._client.will_set(topic, payload, qos=1, retain=True)

    def start(self) -> None:
        """Connect in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Close the connection in good order; the broker does not publish the will."""
        self._stopping.set()
        self._client.disconnect()
        self._ended.set()
        self._thread.join(STOP_SECONDS)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Send at QoS 1.

        False: not connected, too large for the broker, or too much waits for its acknowledgement already; the
        caller's store keeps it.
        """
        client = self._client
        if not client.is_connected():
            return False
        size = len(payload) + len(topic) + 16
        if self._maximum_packet and size > self._maximum_packet:
            log.error(
                "not sent to %s: %d bytes, the broker takes %d; raise max_packet_size in its configuration",
                topic, size, self._maximum_packet,
            )  # fmt: skip
            return False
        unacknowledged: Unacknowledged = client.user_data_get()
        if not unacknowledged.has_room(len(payload), retain=retain):
            level = logging.DEBUG if self._congested else logging.WARNING
            log.log(level, "not sent to %s: the broker is too slow to acknowledge what is on its way", topic)
            self._congested = True
            return False
        self._congested = False
        self.bytes_up += len(topic) + len(payload)
        sent = client.publish(topic, payload, qos=1, retain=retain)
        unacknowledged.sent(sent.mid, topic, len(payload))
        return sent.rc == paho.MQTT_ERR_SUCCESS

    def listen_again(self) -> None:
        """Subscribe once more, so that the broker sends again what is retained."""
        if self._subscriptions and self._client.is_connected():
            self._client.subscribe([(topic, 1) for topic in self._subscriptions])

    def acknowledge(self, message: Received) -> None:
        """Tell the broker that a message need not be delivered again."""
        # Packet ids are reused: an acknowledgement of an earlier connection would hit another message.
        if message.qos and message.connection == self._connection:
            self._client.ack(message.packet_id, message.qos)
        if self._dropped and self.events.empty():
            self._dropped = False
            log.info("connecting anew, so that the broker delivers again what was dropped")
            self._client.disconnect()

    def _new_client(self) -> paho.Client:
        arguments: dict[str, Any] = (
            {} if self._version == paho.MQTTv5 else {"clean_session": not self._persistent}
        )
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            userdata=Unacknowledged(),
            protocol=self._version,
            manual_ack=True,
            reconnect_on_failure=False,
            **arguments,
        )
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
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
        properties.SessionExpiryInterval = SESSION_EXPIRY_SECONDS if self._persistent else 0
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        return {"clean_start": not self._persistent, "properties": properties}

    def _stay_connected(self) -> None:
        """Connect again and again, until the link is stopped."""
        backoff = Backoff(random.Random(), self._longest_wait)  # noqa: S311 - jitter
        while True:
            self._ended.clear()
            if self._stopping.is_set():
                return
            version = self._version
            self._connect_once()
            if self._stopping.is_set():
                return
            if version != self._version:
                wait = 0.0
            else:
                self._put(Disconnected(self._why))
                held = 0.0 if self._connected_at is None else time.monotonic() - self._connected_at
                wait = backoff.delay(held)
            if self._stopping.wait(wait):
                return
            try:
                self._client = self._new_client()
            except (OSError, ValueError) as error:  # certificates are just being renewed
                log.error("the link's files cannot be read: %s", error)

    def _connect_once(self) -> None:
        """Connect, and return when the connection is over."""
        client = self._client
        self._connected_at, self._why = None, "the broker closed the connection"
        self._dropped = False
        try:
            client.connect(
                self._config.host,
                self._config.port,
                self._config.keepalive_seconds,
                **self._connect_arguments(),
            )
        except (OSError, ValueError) as error:
            self._why = f"no broker at {self._config.host}:{self._config.port}: {error}"
            return
        client.loop_start()
        self._ended.wait()
        client.loop_stop()

    def _on_connect(
        self, client: paho.Client, _userdata: Any, _flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if self._stopping.is_set():
            client.disconnect()
            return
        if reason.is_failure:
            self._why = f"refused: {reason}"
            if reason.value in _UNSUPPORTED_VERSION and self._may_fall_back(client):
                self._fall_back(client)
            return
        self._connection += 1
        self._connected_at = time.monotonic()
        self._maximum_packet = getattr(properties, "MaximumPacketSize", 0) if properties else 0
        if self._subscriptions:
            client.subscribe([(topic, 1) for topic in self._subscriptions])
        self._put(Connected("5" if self._version == paho.MQTTv5 else "3.1.1"))

    def _on_disconnect(
        self,
        client: paho.Client,
        unacknowledged: Unacknowledged,
        _flags: Any,
        reason: ReasonCode,
        _properties: Any,
    ) -> None:
        if client is not self._client:
            return
        if self._connected_at is not None:
            self._why = f"{reason}{_too_large(*unacknowledged.largest())}"
        self._ended.set()

    def _on_publish(
        self,
        _client: paho.Client,
        unacknowledged: Unacknowledged,
        packet_id: int,
        reason: ReasonCode,
        _properties: Any,
    ) -> None:
        topic, size = unacknowledged.acknowledged(packet_id)
        if reason.is_failure:
            log.error("the broker refuses %d bytes to %s: %s", size, topic, reason)

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            # A broker must not send such a topic. An error here would end paho's thread, and so the link.
            log.warning("dropped a message: its topic is not UTF-8")
            return
        self.bytes_down += len(topic) + len(message.payload)
        self._put(Received(topic, bytes(message.payload), message.mid, message.qos, self._connection))

    def _on_socket_open(self, client: paho.Client, _userdata: Any, _socket: Any) -> None:
        """Some 3.1.1 brokers neither answer nor close when they cannot read an MQTT 5 greeting."""
        if self._may_fall_back(client):
            timer = threading.Timer(CONNACK_SECONDS, self._greeting_timed_out, (client,))
            timer.daemon = True
            timer.start()

    def _greeting_timed_out(self, client: paho.Client) -> None:
        if self._may_fall_back(client) and client.socket() is not None:
            self._fall_back(client)

    def _may_fall_back(self, client: paho.Client) -> bool:
        return (
            client is self._client
            and self._version == paho.MQTTv5
            and self._config.mqtt_version == "auto"
            and self._connection == 0
            and not self._stopping.is_set()
        )

    def _fall_back(self, client: paho.Client) -> None:
        """Go on with MQTT 3.1.1 on a new client; paho cannot change the version of a running one."""
        log.info("the broker does not speak MQTT 5; going on with 3.1.1")
        self._version = paho.MQTTv311
        client.disconnect()
        self._ended.set()

    def _put(self, event: Event) -> None:
        try:
            self.events.put_nowait(event)
        except queue.Full:
            # Not acknowledged, so the broker brings it again: with the next connection, and on this one
            # it takes one of RECEIVE_MAXIMUM places. So there is a new one once the queue is worked off.
            self._dropped |= isinstance(event, Received) and event.qos > 0
            log.warning("the program is too slow: an event was dropped")
