"""Runs a device agent on a real link."""

import logging
import os
import time
from pathlib import Path

from agent.config import KEY_FILE, STORE_FILE, AgentConfig
from agent.device import DeviceAgent
from agent.store import Store
from runtime import memory
from runtime.keys import load_or_make
from runtime.link import Link
from runtime.loop import serve, stop_on_signals

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5


def run(config: AgentConfig) -> None:
    """Take part until SIGINT or SIGTERM."""
    _yield_to_others(config.limits.nice)
    # Importing touched far more of the libraries than running will.
    memory.release_start_up()
    directory = Path(config.state_directory)
    key = load_or_make(directory / KEY_FILE)
    store = Store(directory / STORE_FILE)
    stopping = stop_on_signals()
    link: Link | None = None

    def publish(topic: str, payload: bytes, retain: bool) -> bool:
        return link is not None and link.publish(topic, payload, retain=retain)

    def traffic() -> tuple[int, int]:
        return (link.bytes_up, link.bytes_down) if link else (0, 0)

    agent = DeviceAgent(config, store, key, publish, time.time, traffic=traffic)
    link = Link(config.broker, config.device, agent.subscriptions)
    log.info(
        "device=%s federation=%s broker=%s:%d",
        config.device, config.federation, config.broker.host, config.broker.port,
    )  # fmt: skip
    try:
        serve(agent, link, stopping, tick_seconds=TICK_SECONDS)
    finally:
        store.close()


def _yield_to_others(nice: int) -> None:
    """Take the configured niceness, or keep a higher one that a service manager gave."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    except OSError as error:
        log.warning("limits.nice: the system does not let this process be nice %d: %s", nice, error)
