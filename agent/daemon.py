"""Runs a device agent on a real link: events in, acknowledgements out, time by the second."""

import logging
import queue
import signal
import threading
import time
from pathlib import Path

from agent.config import AgentConfig
from agent.device import DeviceAgent
from agent.store import Store
from runtime.keys import load_or_make
from runtime.link import Connected, Disconnected, Link, Received

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
KEY_FILE = "device.key"
STORE_FILE = "agent.sqlite"


def run(config: AgentConfig) -> None:
    """Take part until SIGINT or SIGTERM."""
    directory = Path(config.state_directory)
    key = load_or_make(directory / KEY_FILE)
    store = Store(directory / STORE_FILE)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    link: Link | None = None

    def publish(topic: str, payload: bytes, retain: bool) -> bool:
        return link is not None and link.publish(topic, payload, retain=retain)

    def traffic() -> tuple[int, int]:
        return (link.bytes_up, link.bytes_down) if link else (0, 0)

    agent = DeviceAgent(config, store, key, publish, time.time, traffic=traffic)
    link = Link(config.broker, config.device, agent.subscriptions)
    link.set_will(*agent.will())
    link.start()
    log.info(
        "device=%s federation=%s broker=%s:%d",
        config.device, config.federation, config.broker.host, config.broker.port,
    )  # fmt: skip
    try:
        _serve(agent, link, stopping)
    finally:
        link.publish(*agent.will(), retain=True)
        link.stop()
        store.close()


def _serve(agent: DeviceAgent, link: Link, stopping: threading.Event) -> None:
    next_tick = time.monotonic()
    while not stopping.is_set():
        try:
            event = link.events.get(timeout=max(0.0, next_tick - time.monotonic()))
        except queue.Empty:
            event = None
        if isinstance(event, Connected):
            log.info("connected with MQTT %s", event.mqtt_version)
            agent.connected()
        elif isinstance(event, Disconnected):
            log.warning("disconnected: %s", event.reason)
        elif isinstance(event, Received):
            agent.handle(event.topic, event.payload)
            link.acknowledge(event)  # after the commit: a message is lost nowhere in between
        if time.monotonic() >= next_tick:
            agent.tick()
            next_tick = time.monotonic() + TICK_SECONDS
