"""Runs a coordinator on a real link."""

import logging
import time
from contextlib import closing
from pathlib import Path

from runtime.link import Link
from runtime.loop import serve, stop_on_signals
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.keys import ServerKeys
from server.metrics import Metrics, endpoint
from server.revocation import open_authority, open_revocations
from server.store import Store

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 2.0
"""Between two tries to reach the broker: a single server is no crowd, and the fleet waits for it."""


def run(config: ServerConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    directory = Path(config.data_directory)
    store = Store(directory, config.database)
    try:
        with store.only_server():
            keys = ServerKeys.load_or_make(directory, config.trust.sealing, store.newest_root())
            _serve(config, store, keys)
    finally:
        store.close()


def _serve(config: ServerConfig, store: Store, keys: ServerKeys) -> None:
    stopping = stop_on_signals()
    link: Link | None = None

    def publish(topic: str, payload: bytes, retain: bool) -> bool:
        return link is not None and link.publish(topic, payload, retain=retain)

    metrics = Metrics()
    revocations = open_revocations(config, store, time.time, metrics.revoked)
    coordinator = Coordinator(
        config, store, keys, publish, time.time,
        issuer=open_authority(config), revocations=revocations, metrics=metrics,
        traffic=lambda: (link.bytes_up, link.bytes_down) if link else (0, 0),
    )  # fmt: skip
    name = f"graftwork-server-{config.federation}"
    link = Link(config.broker, name, coordinator.subscriptions, longest_wait_seconds=LONGEST_WAIT_SECONDS)
    log.info("serving federation=%s on %s:%d", config.federation, config.broker.host, config.broker.port)
    with closing(coordinator), endpoint(config.metrics, metrics):
        serve(coordinator, link, stopping, tick_seconds=TICK_SECONDS)
