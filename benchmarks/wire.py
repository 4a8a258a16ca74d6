"""Counts what crosses a TCP connection: a proxy on loopback between a device and what it talks to.

Counted are the payload bytes of the TCP streams, connections' own greetings included and TCP/IP headers not.
Whatever protocol runs inside, MQTT or HTTP, is counted in the same way.
"""

import asyncio
import threading
import time
from types import TracebackType

import numpy as np

BLOCK_BYTES = 64 * 1024


class CountingProxy:
    """Forwards connections to a loopback port; use as a context manager."""

    def __init__(self, target: int) -> None:
        """Take the port to forward to."""
        self.port = 0
        """Where to connect to; known once the proxy runs."""
        self.connections = 0
        self._target = target
        self._events: list[tuple[float, int, int]] = []
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def between(self, start: float, stop: float) -> tuple[int, int]:
        """Bytes (up, down) between two moments of the monotonic clock; up is away from the device."""
        events = [(up, down) for moment, up, down in list(self._events) if start <= moment < stop]
        up, down = np.array(events, np.int64).reshape(-1, 2).sum(axis=0).tolist()
        return up, down

    def __enter__(self) -> "CountingProxy":
        self._thread.start()
        if not self._listening.wait(10):
            raise RuntimeError("the counting proxy does not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far, away = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            back.close()
            return
        try:
            await asyncio.gather(self._pump(near, away, up=True), self._pump(far, back, up=False))
        except OSError:
            pass  # one side is gone: the other must learn it
        finally:
            away.close()
            back.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        while block := await source.read(BLOCK_BYTES):
            size = len(block)
            self._events.append((time.monotonic(), size, 0) if up else (time.monotonic(), 0, size))
            sink.write(block)
            await sink.drain()
        sink.write_eof()  # this side has said all; the other may still answer
