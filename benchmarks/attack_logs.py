"""Who of a secured federation noticed an attack: the logs of brokers, server and devices since a moment."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.attack_book import NOTHING, Trace
from server.incidents import parse
from server.store import Store
from simulation.experiment import Experiment
from simulation.processes import Program

NEWCOMERS_LOG = "enrolment.log"
NOTICE_SECONDS = 1.0
"""How long to look for an entry in a log."""
LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Mark:
    """A moment in all logs."""

    lengths: dict[Path, int]
    refusal: int


class Logs:
    """What the honest programs of a run write down."""

    def __init__(self, experiment: Experiment, store: Store, server: Program, broker: Path) -> None:
        """Take who writes.

        Args:
            experiment: what is run.
            store: the server's, for its list of refusals.
            server: its program.
            broker: log of the broker for devices.
        """
        self._federation = experiment.federation
        self._store = store
        self._server = server
        self._broker = broker
        self._newcomers = broker.parent / NEWCOMERS_LOG
        self._agents = {p.device.id: p.directory / "agent.log" for p in experiment.participants}

    def mark(self) -> Mark:
        """Now, in all logs."""
        files = [self._broker, self._newcomers, self._server.log_file, *self._agents.values()]
        newest = self._store.refusals()[:1]
        return Mark(
            {path: path.stat().st_size if path.exists() else 0 for path in files},
            newest[0]["id"] if newest else 0,
        )

    def broker(self, mark: Mark, *kinds: str, device: str = "") -> Trace:
        """What the broker's log says of an attack since a mark.

        Args:
            mark: from before.
            kinds: of incidents (server/incidents.py) that would say it.
            device: whom it has to name; empty: nobody.
        """
        return self._incident(self._broker, mark, kinds, device)

    def newcomers(self, mark: Mark, *kinds: str, device: str = "") -> Trace:
        """The same of the broker for newcomers."""
        return self._incident(self._newcomers, mark, kinds, device)

    def _incident(self, log: Path, mark: Mark, kinds: tuple[str, ...], device: str) -> Trace:
        def look() -> Trace | None:
            for line in self._new_text(log, mark).splitlines():
                incident = parse(line, self._federation)
                if incident and incident.kind in kinds and incident.device == device:
                    return Trace("broker", incident.device, incident.kind)
            return None

        return _soon(look)

    def server(self, mark: Mark, device: str, words: str = "") -> Trace:
        """What the server's list of refusals says of an attack since a mark."""

        def look() -> Trace | None:
            for row in self._store.refusals():
                if row["id"] > mark.refusal and row["device"] == device and words in row["reason"]:
                    return Trace("server", device if device != "?" else "", row["reason"])
            return None

        return _soon(look)

    def server_log(self, mark: Mark, device: str, words: str) -> Trace:
        """What the server's log says of a device since a mark."""

        def look() -> Trace | None:
            for line in self._new_text(self._server.log_file, mark).splitlines():
                _, found, rest = line.partition(f"device={device} ")
                if found and words in rest:
                    return Trace("server", device, rest)
            return None

        return _soon(look)

    def device(self, mark: Mark, device: str, words: str) -> Trace:
        """What a machine's log says since a mark."""

        def look() -> Trace | None:
            for line in self._new_text(self._agents[device], mark).splitlines():
                if "dropped a message" in line and words in line:
                    return Trace("device", device, line.split("dropped a message", 1)[1].strip())
            return None

        return _soon(look)

    def _new_text(self, path: Path, mark: Mark) -> str:
        with path.open("rb") as file:
            file.seek(mark.lengths[path])
            return file.read().decode("utf-8", "replace")


def _soon(look: Callable[[], Trace | None]) -> Trace:
    """The first trace that is found within a while."""
    deadline = time.monotonic() + NOTICE_SECONDS
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            return found or NOTHING
        time.sleep(LOOK_SECONDS)
