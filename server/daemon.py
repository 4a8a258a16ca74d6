"""Runs a coordinator on a real link: events in, acknowledgements out, time by the second."""

import logging
import queue
import signal
import threading
import time
from pathlib import Path

from runtime.keys import load_or_make
from runtime.link import Connected, Disconnected, Link, Received
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.store import Store

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
KEY_FILE = "server.key"


def run(config: ServerConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    directory = Path(config.data_directory)
    key = load_or_make(directory / KEY_FILE)
    store = Store(directory, config.database)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    link: Link | None = None

    def publish(topic: str, payload: bytes, retain: bool) -> bool:
        return link is not None and link.publish(topic, payload, retain=retain)

    coordinator = Coordinator(config, store, key, publish, time.time)
    link = Link(config.broker, f"graftwork-server-{config.federation}", coordinator.subscriptions)
    link.set_will(*coordinator.will())
    link.start()
    log.info("serving federation=%s on %s:%d", config.federation, config.broker.host, config.broker.port)
    try:
        _serve(coordinator, link, stopping)
    finally:
        link.publish(*coordinator.will(), retain=True)
        link.stop()
        store.close()


def _serve(coordinator: Coordinator, link: Link, stopping: threading.Event) -> None:
    next_tick = time.monotonic()
    while not stopping.is_set():
        try:
            event = link.events.get(timeout=max(0.0, next_tick - time.monotonic()))
        except queue.Empty:
            event = None
        if isinstance(event, Connected):
            log.info("connected with MQTT %s", event.mqtt_version)
            coordinator.connected()
        elif isinstance(event, Disconnected):
            log.warning("disconnected: %s", event.reason)
        elif isinstance(event, Received):
            coordinator.handle(event.topic, event.payload)
            link.acknowledge(event)  # after the commit: a message is lost nowhere in between
        if time.monotonic() >= next_tick:
            coordinator.tick()
            next_tick = time.monotonic() + TICK_SECONDS
