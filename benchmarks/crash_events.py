"""Sees from outside how far a running federation is: log files, files that grow, databases read only.

No connection to a database outlives a look. A connection that stayed open while its program is killed would
keep the write-ahead log's index alive, and the program would come back without the recovery that a crash asks
for.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from agent.config import STORE_FILE
from benchmarks.crash_points import ROUNDS, Event
from protocol.artifacts import CHUNK_BYTES

_LOGGED = {
    "installed": r"installed package",
    "adopted": r"release={number} windows=",
    "receipt": r"round={number} update (counted|duplicate)",
    "opened": r"opened round={number} ",
}
_CONNECTED = "connected with MQTT"


class Log:
    """A growing log file, read on from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self.text = ""
        """What was read so far."""

    def read(self) -> str:
        """Everything that is there now."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                new = file.read()
        except FileNotFoundError:
            return self.text
        self._place += len(new)
        self.text += new.decode("utf-8", "replace")
        return self.text

    def connections(self) -> int:
        """How often the program has connected to the broker."""
        return self.read().count(_CONNECTED)


class Observer:
    """Whether an event has happened yet; once it has, it stays so."""

    def __init__(self, server: Path, devices: dict[str, Path]) -> None:
        """Take the folders.

        Args:
            server: the server's folder, with `server.log` and `data`.
            devices: of each device, with `agent.log` and `state`.
        """
        self.logs = {"server": Log(server / "server.log")}
        self.logs |= {name: Log(folder / "agent.log") for name, folder in devices.items()}
        self.database = server / "data" / "server.sqlite"
        self.states = {name: folder / "state" for name, folder in devices.items()}

    def has_happened(self, event: Event) -> bool:
        """Look for an event."""
        if event.kind == "started":
            return True
        if event.kind in _LOGGED:
            pattern = _LOGGED[event.kind].format(number=event.number)
            return re.search(pattern, self.logs[event.device or "server"].read()) is not None
        if event.kind == "chunk":
            return self._kept_bytes(event.device) > event.number * CHUNK_BYTES
        if event.kind == "answered":
            return self.fact(event.device, "answered") >= event.number
        if event.kind == "journalled":
            rows = query(self.database, "SELECT count(*) FROM updates WHERE round = ?", event.number)
            return bool(rows) and rows[0][0] >= event.count
        return self.newest_release() >= event.number

    def newest_release(self) -> int:
        """Number of the newest release that the server has committed, -1 when there is none."""
        rows = query(self.database, "SELECT max(number) FROM releases")
        return -1 if not rows or rows[0][0] is None else int(rows[0][0])

    def fact(self, device: str, name: str) -> int:
        """A number of the device's store, -1 when it is not there."""
        rows = query(self.states[device] / STORE_FILE, "SELECT value FROM facts WHERE name = ?", name)
        return int(rows[0][0]) if rows else -1

    def outbox(self, device: str) -> list[tuple[Any, ...]]:
        """(round, SHA-256) of each update without receipt."""
        return query(self.states[device] / STORE_FILE, "SELECT round, sha256 FROM outbox ORDER BY round")

    def unfinished(self) -> str:
        """What is missing until every device holds the last release and all receipts; "": nothing."""
        newest = self.newest_release()
        if newest < ROUNDS:
            return f"the newest release is {newest} of {ROUNDS}"
        for device in self.states:
            held = self.fact(device, "release")
            waiting = [number for number, _ in self.outbox(device)]
            if held < newest or waiting:
                return f"{device} holds release {held} of {newest}, its outbox rounds {waiting}"
        return ""

    def _kept_bytes(self, device: str) -> int:
        """Size of the partial file; a package that is installed has it no longer, and is large."""
        partial = list((self.states[device] / "packages").glob("*.partial"))
        try:
            if partial:
                return partial[0].stat().st_size
        except FileNotFoundError:
            pass  # installed just now
        return 1 << 62 if "installed package" in self.logs[device].read() else 0


def query(path: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Read rows; none where the database or its tables are not there yet."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return database.execute(statement, values).fetchall()
    except sqlite3.OperationalError:
        return []
