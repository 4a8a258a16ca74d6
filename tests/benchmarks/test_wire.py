"""Bytes on the wire, counted by a proxy."""

import socket
import threading
import time

import pytest

from benchmarks.wire import CountingProxy


@pytest.fixture
def echo() -> int:
    """A server that answers every connection with what it got, twice."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                data = b""
                while block := connection.recv(65536):
                    data += block
                connection.sendall(2 * data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while block := client.recv(65536):
            answer += block
    return answer


@pytest.mark.parametrize("size", [1, 1000, 300_000])
def test_every_byte_passes_and_is_counted_once_in_its_direction(echo: int, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    start = time.monotonic()
    with CountingProxy(echo) as proxy:
        assert exchange(proxy.port, data) == 2 * data
        assert exchange(proxy.port, b"abc") == b"abcabc"
        assert proxy.connections == 2
        assert proxy.between(start, time.monotonic()) == (size + 3, 2 * size + 6)


def test_only_the_time_asked_for_counts(echo: int) -> None:
    with CountingProxy(echo) as proxy:
        exchange(proxy.port, b"early")
        middle = time.monotonic()
        exchange(proxy.port, b"later on")
        assert proxy.between(middle, time.monotonic()) == (8, 16)
        assert proxy.between(0, middle) == (5, 10)
        assert proxy.between(0, 0) == (0, 0)


def test_a_server_that_is_away_costs_the_connection_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with CountingProxy(port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            assert client.recv(1) == b""
        assert proxy.between(0, time.monotonic()) == (0, 0)
