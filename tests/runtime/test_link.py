"""The broker link against a real broker: what is delivered, acknowledged, retained and willed."""

import gc
import importlib.util
import logging
import queue
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.backoff import Backoff
from runtime.broker import BrokerConfig
from runtime.link import Connected, Disconnected, Link, Received
from server.broker import BrokerSupervisor, find_mosquitto
from server.errors import ServerError
from tests import mutual_tls

PATIENCE_SECONDS = 60
"""Longer than any machine needs; nothing here waits for it to pass."""

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerSupervisor]:
    with BrokerSupervisor(tmp_path / "broker", kind="mosquitto", message_size_limit=100_000) as broker:
        yield broker


@contextmanager
def linked(
    broker: BrokerSupervisor,
    name: str,
    *topics: str,
    will: tuple[str, bytes] | None = None,
    version: str = "auto",
) -> Iterator[Link]:
    link = Link(BrokerConfig(port=broker.port, mqtt_version=version), name, list(topics))
    if will:
        link.set_will(*will)
    link.start()
    try:
        wait(link, Connected)
        yield link
    finally:
        link.stop()


def wait(link: Link, kind: type) -> Any:
    """The next event of a kind; others before it are skipped."""
    while True:
        event = link.events.get(timeout=PATIENCE_SECONDS)
        if isinstance(event, kind):
            return event


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def quiet(link: Link, marker: str) -> list[Received]:
    """All messages until one arrives on `marker`, which was published last."""
    received = []
    while (message := wait(link, Received)).topic != marker:
        received.append(message)
    return received


def settle(link: Link, marker: str) -> None:
    """Publish and receive a message, so that the subscription stands."""
    until(lambda: link.publish(marker, b""))
    wait(link, Received)


@pytest.mark.parametrize("version", ["auto", "5", "3.1.1"])
def test_a_message_is_delivered_and_acknowledged(broker: BrokerSupervisor, version: str) -> None:
    with linked(broker, "reader", "a/#", version=version) as reader, linked(broker, "writer") as writer:
        settle(reader, "a/ready")
        assert writer.publish("a/b", b"payload")
        message = wait(reader, Received)
        assert (message.topic, message.payload, message.qos) == ("a/b", b"payload", 1)
        reader.acknowledge(message)
        assert writer.bytes_up == len("a/b") + len("payload")
        assert reader.bytes_down == writer.bytes_up + len("a/ready")


def test_what_was_not_acknowledged_comes_again(broker: BrokerSupervisor) -> None:
    with linked(broker, "reader", "a/#") as reader, linked(broker, "writer") as writer:
        settle(reader, "a/ready")
        writer.publish("a/1", b"acknowledged")
        writer.publish("a/2", b"not acknowledged")
        reader.acknowledge(wait(reader, Received))
        wait(reader, Received)
        until(lambda: not reader._client.want_write())
        reader.stop()
    with linked(broker, "reader", "a/#") as reader:
        settled = {wait(reader, Received).topic for _ in range(2)}  # a/ready was never acknowledged either
        assert settled == {"a/ready", "a/2"}


def test_an_acknowledgement_of_an_earlier_connection_is_not_sent(broker: BrokerSupervisor) -> None:
    with linked(broker, "reader", "a/#") as reader:
        settle(reader, "a/ready")
        sent: list[int] = []
        reader._client.ack = lambda mid, _qos: sent.append(mid)  # type: ignore[method-assign, assignment, return-value]
        stale = Received("a/x", b"", 1, 1, reader._connection - 1)
        reader.acknowledge(stale)
        reader.acknowledge(Received("a/x", b"", 1, 0, reader._connection))
        assert sent == []
        reader.acknowledge(Received("a/x", b"", 7, 1, reader._connection))
        assert sent == [7]


def test_a_retained_message_waits_for_later_readers(broker: BrokerSupervisor) -> None:
    with linked(broker, "writer") as writer:
        writer.publish("a/kept", b"1", retain=True)
        writer.publish("a/lost", b"2")
        with linked(broker, "probe", "a/kept") as probe:
            wait(probe, Received)
        with linked(broker, "reader", "a/#") as reader:
            message = wait(reader, Received)
            assert (message.topic, message.payload) == ("a/kept", b"1")


def test_the_will_is_published_when_a_link_breaks_and_not_when_it_stops(broker: BrokerSupervisor) -> None:
    with linked(broker, "reader", "will/#", "a/#") as reader, linked(broker, "writer") as writer:
        settle(reader, "a/ready")
        with linked(broker, "orderly", will=("will/orderly", b"gone")):
            pass
        with linked(broker, "broken", will=("will/broken", b"gone")) as broken:
            broken._stopping.set()
            broken._client.loop_stop()
            broken._client.socket().close()  # type: ignore[union-attr]
            message = wait(reader, Received)
        assert (message.topic, message.payload) == ("will/broken", b"gone")
        writer.publish("a/end", b"")
        assert quiet(reader, "a/end") == []


def test_a_broker_that_restarts_is_found_again(broker: BrokerSupervisor) -> None:
    with linked(broker, "reader", "a/#") as reader:
        settle(reader, "a/ready")
        broker.kill()
        wait(reader, Disconnected)
        assert not reader.publish("a/b", b"into the void")
        broker.start()
        wait(reader, Connected)
        until(lambda: reader.publish("a/b", b"again"))
        while (message := wait(reader, Received)).topic != "a/b":
            pass
        assert message.payload == b"again"


def test_without_a_broker_a_link_says_so_and_goes_on(tmp_path: Path) -> None:
    broker = BrokerSupervisor(tmp_path, kind="mosquitto")
    link = Link(BrokerConfig(port=broker.port), "early", ["a/#"])
    link.start()
    try:
        assert "no broker at 127.0.0.1" in wait(link, Disconnected).reason
        assert not link.publish("a/b", b"")
        with broker:
            assert wait(link, Connected).mqtt_version == "5"
    finally:
        link.stop()


def test_a_message_too_large_for_the_broker_is_not_sent(broker: BrokerSupervisor) -> None:
    with linked(broker, "writer", "a/#") as writer:
        settle(writer, "a/ready")
        writer._maximum_packet = 100_000  # as a broker would announce it
        assert not writer.publish("a/b", bytes(200_000))
        assert writer.publish("a/b", bytes(50_000))
        assert len(wait(writer, Received).payload) == 50_000


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_broker_that_takes_less_than_a_message_is_named_with_the_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    """The setting max_packet_size of mosquitto: MQTT 5 learns it at the start, 3.1.1 is thrown off."""
    with (
        BrokerSupervisor(tmp_path, kind="mosquitto", settings={"max_packet_size": "20000"}) as broker,
        linked(broker, "writer", "a/#", version=version) as writer,
    ):
        settle(writer, "a/ready")
        sent = writer.publish("a/chunk", bytes(61_440))
        if version == "5":
            assert not sent
        else:
            reason = wait(writer, Disconnected).reason
            assert "61440 bytes to a/chunk" in reason
            assert "max_packet_size" in reason
            wait(writer, Connected)
        until(lambda: writer.publish("a/small", b"still works"))
        while wait(writer, Received).topic != "a/small":
            pass
    if version == "5":
        [error] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert error.startswith("not sent to a/chunk: 614")
        assert "the broker takes 20000; raise max_packet_size" in error


def test_a_message_over_the_limit_that_is_not_announced_is_named_with_the_setting(
    broker: BrokerSupervisor,
) -> None:
    """The setting message_size_limit of mosquitto: its answer is no MQTT 5, and the link breaks."""
    with linked(broker, "writer", "a/#", version="5") as writer:
        settle(writer, "a/ready")
        assert writer.publish("a/large", bytes(100_500))  # limit 100,000, packets 1,024 more
        reason = wait(writer, Disconnected).reason
        assert "100500 bytes to a/large" in reason
        assert "message_size_limit" in reason


def test_what_the_access_rules_deny_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic read a/#\ntopic write a/mine\n", "ascii")
    rules.chmod(0o600)
    settings = {"acl_file": str(rules)}
    with (
        BrokerSupervisor(tmp_path / "broker", kind="mosquitto", settings=settings) as broker,
        linked(broker, "writer", "a/#", version="5") as writer,
    ):
        settle(writer, "a/mine")
        writer.publish("a/others", bytes(7))
        until(lambda: "the broker refuses 7 bytes to a/others: Not authorized" in caplog.text)


def test_a_broker_that_never_comes_costs_neither_memory_nor_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days without a broker: hundreds of attempts without the waits between them."""
    attempts: list[float] = []

    def delay(_: Backoff, held_seconds: float) -> float:
        attempts.append(held_seconds)
        return 0.0

    monkeypatch.setattr(Backoff, "delay", delay)
    link = Link(BrokerConfig(port=BrokerSupervisor(tmp_path, kind="mosquitto").port), "early", ["a/#"])
    threads = threading.active_count()
    link.start()
    try:
        with traced(lambda: [wait(link, Disconnected) for _ in range(50)]) as growth:
            for _ in range(400):
                assert not link.publish("a/b", bytes(10_000))
                wait(link, Disconnected)
                assert threading.active_count() <= threads + 2
        assert growth[0] < 200_000
        assert len(attempts) >= 449
        assert set(attempts) == {0.0}
    finally:
        link.stop()


def test_a_broker_that_drops_its_clients_at_once_leaves_nothing_behind_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker that runs out of memory takes connections and messages, acknowledges none, and breaks."""
    monkeypatch.setattr(Backoff, "delay", lambda *_: 0.0)
    payload = 50_000
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_SECONDS)
        link = Link(BrokerConfig(port=server.getsockname()[1], mqtt_version="5"), "writer", [])
        link.start()
        try:

            def flap() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(PATIENCE_SECONDS)
                    connection.recv(4096)
                    connection.sendall(b"\x20\x03\x00\x00\x00")  # CONNACK: welcome
                    wait(link, Connected)
                    for _ in range(10):
                        link.publish("a/b", bytes(payload))
                    connection.recv(1)
                wait(link, Disconnected)

            flaps = 20
            with traced(flap) as growth:
                for _ in range(flaps):
                    flap()
            assert growth[0] < flaps * 10 * payload / 10
        finally:
            link.stop()


@contextmanager
def traced(warm_up: Callable[[], object]) -> Iterator[list[int]]:
    """Bytes that Python holds more at the end than after `warm_up`."""
    warm_up()
    tracemalloc.start()
    try:
        growth: list[int] = []
        yield growth
    finally:
        gc.collect()
        growth.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()


def test_a_full_queue_drops_events_and_not_the_link(broker: BrokerSupervisor) -> None:
    with linked(broker, "reader", "a/#") as reader:
        settle(reader, "a/ready")
        reader.events = queue.Queue(1)
        for index in range(5):
            until(lambda: reader.publish("a/b", bytes([index])))  # noqa: B023 - used at once
        until(reader.events.full)
        assert wait(reader, Received).payload == b"\x00"
        until(lambda: reader.publish("a/c", b""))
        assert wait(reader, Received).topic in {"a/b", "a/c"}


def test_what_was_dropped_comes_again_once_the_program_has_caught_up(
    broker: BrokerSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker delivers again on the next connection only: without one, the last of them would never come."""
    monkeypatch.setattr("runtime.link.EVENT_BYTES", 10_000)
    monkeypatch.setattr(Backoff, "delay", lambda *_: 0.0)
    with linked(broker, "reader", "a/#") as reader, linked(broker, "writer") as writer:
        settle(reader, "a/ready")
        for index in range(20):
            until(lambda: writer.publish("a/b", bytes([index]) * 4000))  # noqa: B023 - used at once
        until(lambda: reader.bytes_down >= 20 * 4000)
        arrived: set[int] = set()
        while len(arrived) < 20:
            message = wait(reader, Received)
            arrived |= set(message.payload)
            reader.acknowledge(message)
        assert arrived == set(range(20))


def test_mutual_tls_works_with_certificate_and_key_in_one_file_or_in_two(tmp_path: Path) -> None:
    authority = mutual_tls.Authority(tmp_path / "authority")
    both, alien = authority.issue("device"), mutual_tls.Authority(tmp_path / "foreign").issue("device")
    text = both.read_text("ascii")
    key, certificate = tmp_path / "device.key", tmp_path / "device.crt"
    key.write_text(text[text.index("-----BEGIN PRIVATE KEY") :], "ascii")
    certificate.write_text(text[: text.index("-----BEGIN PRIVATE KEY")], "ascii")
    settings = mutual_tls.settings(authority)
    with BrokerSupervisor(tmp_path / "broker", kind="mosquitto", settings=settings) as broker:
        for files in ((both, None), (certificate, key), (alien, None)):
            config = BrokerConfig(
                port=broker.port,
                tls_ca=str(authority.file),
                tls_certificate=str(files[0]),
                tls_key=str(files[1] or ""),
            )
            link = Link(config, "device", ["a/#"])
            link.start()
            try:
                expected = Disconnected if files[0] == alien else Connected
                assert isinstance(link.events.get(timeout=PATIENCE_SECONDS), expected)
            finally:
                link.stop()


@pytest.mark.skipif(importlib.util.find_spec("amqtt") is None, reason="amqtt is not installed")
def test_with_a_broker_of_old_the_link_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.link.CONNACK_SECONDS", 0.5)
    with BrokerSupervisor(tmp_path, kind="amqtt") as broker:
        link = Link(BrokerConfig(port=broker.port), "modern", ["a/#"])
        link.start()
        try:
            assert wait(link, Connected).mqtt_version == "3.1.1"
            settle(link, "a/ready")
        finally:
            link.stop()


def test_a_broker_that_cannot_start_says_where_its_output_is(tmp_path: Path) -> None:
    broker = BrokerSupervisor(tmp_path / "broker", kind="mosquitto", message_size_limit=-1)
    assert "mosquitto on 127.0.0.1" in broker.description
    with pytest.raises(ServerError, match=f"did not start on port {broker.port}; its output is in"):
        broker.start()
