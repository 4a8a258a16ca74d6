"""What the server does beside rounds from time to time: forget, revoke at the broker, read its logs."""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from runtime import whole_files
from server.broker_log import Follower, Place
from server.config import ServerConfig
from server.metrics import Metrics
from server.retention import PRUNE_SECONDS
from server.revocation import Revocations
from server.store import Store
from server.watch import Watch

log = logging.getLogger(__name__)

LOGS = ("mosquitto.log", "enrolment.log")
"""Of the brokers, beside their configuration."""
LOOK_SECONDS = 1.0
COUNT_SECONDS = 10.0
PLACES_FILE = "broker-logs.json"
"""In the data directory: up to where the logs were read."""


class Housekeeping:
    """Chores of one server."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        watch: Watch,
        metrics: Metrics,
        now: Callable[[], float],
        *,
        revocations: Revocations | None = None,
        traffic: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """Take what there is to do.

        Args:
            config: the server's configuration.
            store: what is kept.
            watch: takes what the broker's logs show.
            metrics: take the numbers of devices.
            now: Unix seconds.
            revocations: brings them to the broker; None: an operator does.
            traffic: bytes (up, down) of the link so far.
        """
        self._config = config
        self._store = store
        self._watch = watch
        self._metrics = metrics
        self._now = now
        self._revocations = revocations
        self._traffic = traffic
        self._places = Path(config.data_directory) / PLACES_FILE
        self._followers = _followers(config, self._places)
        self._pruned_at = self._looked_at = self._counted_at = -math.inf

    def tick(self) -> None:
        """Do what is due."""
        if self._revocations:
            self._revocations.tick()
        if self._followers and self._due(self._looked_at, LOOK_SECONDS):
            self._looked_at = self._now()
            self._look_at_logs()
        if self._due(self._counted_at, COUNT_SECONDS):
            self._counted_at = self._now()
            self._count()
        if self._due(self._pruned_at, PRUNE_SECONDS):
            self._pruned_at = self._now()
            self._prune()

    def close(self) -> None:
        """Let go of the logs."""
        for follower in self._followers.values():
            follower.close()

    def _due(self, last: float, seconds: float) -> bool:
        return not 0 <= self._now() - last < seconds  # clocks go back, too

    def _look_at_logs(self) -> None:
        before = {name: follower.place for name, follower in self._followers.items()}
        for follower in self._followers.values():
            for incident in follower.read():
                self._watch.incident(incident)
        places = {name: follower.place for name, follower in self._followers.items()}
        if places != before:
            text = json.dumps({name: asdict(place) for name, place in places.items()})
            try:
                whole_files.write(self._places, text.encode(), whole_files.PUBLIC)
            except OSError as error:
                log.error("%s: cannot be written: %s", self._places, error.strerror)

    def _count(self) -> None:
        rows = self._store.devices()
        counts = Counter(row["status"] for row in rows)
        counts["online"] = sum(row["online"] for row in rows)
        self._metrics.devices(counts)
        self._metrics.traffic(*self._traffic())

    def _prune(self) -> None:
        staleness = self._config.staleness.maximum
        forgotten = self._store.prune(self._config.retention, staleness, self._now())
        if forgotten:
            log.info(
                "forgot what is old: %d updates, %d releases, %d reports",
                forgotten.updates, forgotten.releases, forgotten.reports,
            )  # fmt: skip


def _followers(config: ServerConfig, places: Path) -> dict[str, Follower]:
    """Followers of the brokers' logs, each from where it was left."""
    if not config.trust.broker_directory:
        return {}
    folder = Path(config.trust.broker_directory)
    try:
        found = {name: Place(**place) for name, place in json.loads(places.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        found = {}
    return {name: Follower(folder / name, config.federation, found.get(name)) for name in LOGS}
