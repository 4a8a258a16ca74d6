"""A link and a broker that sends what no broker may send."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

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
                while connection.recv(1024):
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
