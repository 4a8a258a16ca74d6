"""A link and a broker that sends what no broker may send."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from runtime.link import BrokerConfig, Connected, Link, Received

CONNACK, SUBACK = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x01"
PATIENCE_SECONDS = 60


def publish(topic: bytes, payload: bytes) -> bytes:
    """A PUBLISH packet at QoS 0."""
    body = len(topic).to_bytes(2, "big") + topic + payload
    return b"\x30" + bytes([len(body)]) + body


@contextmanager
def broker(*packets: bytes) -> Iterator[int]:
    """Greet one client, send packets after its subscription, and hold the connection until it goes."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with closing(connection):
                connection.recv(1024)
                connection.sendall(CONNACK)
                connection.recv(1024)
                connection.sendall(SUBACK + b"".join(packets))
                with suppress(ConnectionError):  # a client that leaves before everything is read
                    while connection.recv(65_536):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(PATIENCE_SECONDS)


def test_a_topic_that_is_no_text_does_not_end_the_link() -> None:
    packets = [publish(b"\xff\xfe", b"bad"), publish(b"\xed\xa0\x80", b"bad"), publish(b"good", b"arrives")]
    with broker(*packets) as port:
        link = Link(BrokerConfig(port=port, mqtt_version="3.1.1"), "device", ["#"])
        link.start()
        try:
            assert isinstance(link.events.get(timeout=PATIENCE_SECONDS), Connected)
            event = link.events.get(timeout=PATIENCE_SECONDS)
        finally:
            link.stop()
    assert isinstance(event, Received)
    assert (event.topic, event.payload) == ("good", b"arrives")


def test_a_broker_that_sends_megabytes_fills_no_more_memory_than_agreed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At QoS 0 nothing but the queue holds a sender back."""
    monkeypatch.setattr("runtime.link.EVENT_BYTES", 1000)
    packets = [publish(b"big", bytes(90)) for _ in range(100)]
    with broker(*packets) as port:
        link = Link(BrokerConfig(port=port, mqtt_version="3.1.1"), "device", ["#"])
        link.start()
        try:
            assert isinstance(link.events.get(timeout=PATIENCE_SECONDS), Connected)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while link.bytes_down < 100 * 93 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert link.bytes_down == 100 * 93
            assert link.events.qsize() == 1000 // 93
        finally:
            link.stop()
    assert "an event was dropped" in caplog.text


def test_a_broker_that_acknowledges_nothing_is_given_no_more_than_agreed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runtime.backlog.SENT_BYTES", 10_000)
    with broker() as port:
        link = Link(BrokerConfig(port=port, mqtt_version="3.1.1"), "device", ["#"])
        link.start()
        try:
            assert isinstance(link.events.get(timeout=PATIENCE_SECONDS), Connected)
            taken = [link.publish("a", bytes(1000)) for _ in range(100)]
            assert taken == [True] * 10 + [False] * 90
            assert link.bytes_up == 10 * 1001
            retained = [link.publish("a", bytes(1000), retain=True) for _ in range(100)]
            assert retained == [True] * 10 + [False] * 90
        finally:
            link.stop()
    warnings = [text for record in caplog.records if "too slow" in (text := record.getMessage())]
    assert len(warnings) == 2  # not one for each message
