"""The main loop of a program on the link: events in, acknowledgements out, time by the tick."""

import logging
import queue
import signal
import threading
import time
from typing import Protocol

from runtime.link import Connected, Disconnected, Link, Received

log = logging.getLogger(__name__)


class Program(Protocol):
    """What the loop drives; all its work happens in the loop's thread."""

    def connected(self) -> None:
        """The link is up."""

    def disconnected(self) -> None:
        """The link is down, or an attempt to connect failed."""

    def handle(self, topic: str, payload: bytes) -> None:
        """A message came; when this returns, its effect is on disk."""

    def tick(self) -> float | None:
        """Time passed; returns in how many seconds there is work to go on with, None: nothing in a hurry."""

    def will(self) -> tuple[str, bytes] | None:
        """Topic and message of going away; None: nobody is told."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def serve(program: Program, link: Link, stopping: threading.Event, *, tick_seconds: float) -> None:
    """Start the link, drive the program until it has finished or `stopping` is set, and say goodbye."""
    will = program.will()
    if will:
        link.set_will(*will)
    link.start()
    try:
        _drive(program, link, stopping, tick_seconds)
    finally:
        will = program.will()
        if will:
            link.publish(*will, retain=True)
        link.stop()


def _drive(program: Program, link: Link, stopping: threading.Event, tick_seconds: float) -> None:
    next_tick = time.monotonic()
    logged = ""  # a broker that is away for days does not fill the log with its absence
    while not (stopping.is_set() or program.finished):
        try:
            event = link.events.get(timeout=max(0.0, next_tick - time.monotonic()))
        except queue.Empty:
            event = None
        if isinstance(event, Connected):
            log.info("connected with MQTT %s", event.mqtt_version)
            logged = ""
            program.connected()
        elif isinstance(event, Disconnected):
            log.log(
                logging.DEBUG if event.reason == logged else logging.WARNING, "disconnected: %s", event.reason
            )
            logged = event.reason
            program.disconnected()
        elif isinstance(event, Received):
            program.handle(event.topic, event.payload)
            link.acknowledge(event)  # after the commit: a message is lost nowhere in between
        if time.monotonic() >= next_tick:
            wanted = program.tick()
            next_tick = time.monotonic() + min(tick_seconds, tick_seconds if wanted is None else wanted)
