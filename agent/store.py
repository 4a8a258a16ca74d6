"""The device's memory: one SQLite file. What belongs together is committed together.

Killed at any point, the device goes on from the last commit: a release half adopted is adopted again, an
update is in the outbox until its receipt is here.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.engine import Floats
from agent.errors import AgentError
from agent.participant import State
from protocol import cbor, records
from protocol.charter import SchedulePolicy, SendingPolicy, TrainingPolicy
from protocol.messages import adapter_bytes

SCHEMA_VERSION = 3
MAX_OUTBOX = 256
"""Updates kept while there is no server; the oldest leave first, for they are worth least."""
_SCHEMAS = {
    1: """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE adapters (name TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
    sha256 BLOB PRIMARY KEY, round INTEGER NOT NULL, envelope BLOB NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
""",
    2: "CREATE TABLE traffic (hour INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);",
    # One adapter was in use until then, and every training left windows out: those go on in full from there.
    3: """
INSERT OR REPLACE INTO adapters SELECT 'local_full', vector FROM adapters WHERE name = 'local';
INSERT OR REPLACE INTO adapters SELECT 'personal_full', vector FROM adapters WHERE name = 'adopted';
UPDATE facts SET value = CAST('personal' AS BLOB) WHERE name = 'choice' AND value = CAST('mixed' AS BLOB);
DELETE FROM adapters WHERE name = 'adopted';
DELETE FROM facts WHERE name = 'mixed_gain';
""",
}
"""By version, what makes it of the version before."""


@dataclass(frozen=True)
class OutboxEntry:
    """An update without receipt."""

    sha256: bytes
    round: int
    envelope: bytes
    created: float


class Store:
    """All reads and writes of the agent."""

    def __init__(self, path: Path | str) -> None:
        """Open or create the store; ":memory:" for tests.

        Raises:
            AgentError: the file cannot be opened, or was written by another version.
        """
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise AgentError(f"{path}: cannot open the store: {error}") from error
        try:
            self._prepare(path)
        except sqlite3.Error as error:
            self._db.close()
            raise AgentError(f"{path}: cannot open the store: {error}") from error
        except AgentError:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def state(self) -> State:
        """Where the device stood at the last commit."""
        return State(
            version=self.number("version", 0),
            package=self._fact("package") or b"",
            release=self.number("release", -1),
            base=self._fact("base") or b"",
            answered=self.number("answered", 0),
        )

    def number(self, name: str, default: int) -> int:
        """A whole number by name."""
        value = self._fact(name)
        return default if value is None else int(value)

    def text(self, name: str) -> str:
        """A text by name; empty when it was never set."""
        return (self._fact(name) or b"").decode()

    def blob(self, name: str) -> bytes:
        """Bytes by name; empty when they were never set."""
        return self._fact(name) or b""

    def note_blob(self, name: str, value: bytes) -> None:
        """Commit bytes, a text or a number in digits under a name."""
        with self._db:
            self._set(name, value)

    def adapter(self, name: str) -> Floats | None:
        """An adapter by name, float32 [parameters].

        Of the names initial, received, global, local, personal, local_full, personal_full; "withheld" is the
        sum of the differences that were not sent.
        """
        row = self._db.execute("SELECT vector FROM adapters WHERE name = ?", (name,)).fetchone()
        return np.frombuffer(row[0], "<f4").astype(np.float32) if row else None

    def policy(self) -> TrainingPolicy:
        """How the installed package is trained; the default where none is installed."""
        data = self._fact("policy")
        if data is None:
            return TrainingPolicy()
        return records.from_numbered(TrainingPolicy, cbor.decode(data, limit=4096))

    def sending(self) -> SendingPolicy:
        """When the charter lets updates be sent."""
        data = self._fact("sending")
        if data is None:
            return SendingPolicy()
        return records.from_numbered(SendingPolicy, cbor.decode(data, limit=4096))

    def schedule(self) -> SchedulePolicy:
        """How much the charter lets the device train, and when an update is worth sending."""
        data = self._fact("schedule")
        if data is None:
            return SchedulePolicy()
        return records.from_numbered(SchedulePolicy, cbor.decode(data, limit=4096))

    def note_idle(self, idle: bool) -> None:
        """Commit whether updates are not worth their bytes at the moment."""
        with self._db:
            self._set("idle", int(idle))

    def note_traffic(self, hour: int, count: int) -> None:
        """Commit bytes on the link in an hour since 1970; what is older than two days is forgotten."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT INTO traffic VALUES (?, ?) ON CONFLICT (hour) DO UPDATE SET bytes = bytes + ?",
                (hour, count, count),
            )
            self._db.execute("DELETE FROM traffic WHERE hour < ? OR hour > ?", (hour - 48, hour))

    def traffic_since(self, hour: int) -> int:
        """Bytes on the link after an hour since 1970."""
        [total] = self._db.execute("SELECT SUM(bytes) FROM traffic WHERE hour > ?", (hour,)).fetchone()
        return int(total or 0)

    def note_waiting(self, since: int) -> None:
        """Commit since when, Unix seconds, the update has been too small to be sent."""
        with self._db:
            self._set("waiting_since", since)

    def next_session(self, now: int) -> int:
        """Count a start of the agent: Unix milliseconds, but growing even on a clock that went back."""
        session = max(now, self.number("session", 0) + 1)
        self._set("session", session)
        return session

    def set_charter(
        self,
        version: int,
        training: TrainingPolicy,
        sending: SendingPolicy,
        *,
        schedule: SchedulePolicy | None = None,
    ) -> None:
        """Note that the installed package has another version, or the federation another charter."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._set_charter(version, training, sending, schedule)

    def install(
        self,
        version: int,
        package: bytes,
        initial: Floats,
        training: TrainingPolicy,
        sending: SendingPolicy,
        *,
        schedule: SchedulePolicy | None = None,
    ) -> None:
        """Commit a new package: training alone starts from its initial adapter."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._set_charter(version, training, sending, schedule)
            self._set("package", package)
            self._set("base", b"")
            self._set("effort", b"")
            self._set("idle", 0)
            self._db.execute("DELETE FROM adapters")
            self._put_adapters({"local": initial, "local_full": initial, "initial": initial})
            self._set("choice", b"backbone")

    def forget_package(self) -> None:
        """Commit that the installed package is gone: it is to be fetched, and the release taken, again.

        Nothing older than these is taken for it.
        """
        state = self.state()
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._set("version", max(0, state.version - 1))
            self._set("package", b"")
            self._set("release", max(-1, state.release - 1))
            self._set("base", b"")

    def receive(self, adapter: Floats) -> None:
        """Commit the adapter of a release, checked: the next one's difference starts from it."""
        with self._db:
            self._put_adapters({"received": adapter})

    def adopt(
        self, number: int, base: bytes, adapters: dict[str, Floats], choice: str, facts: dict[str, str]
    ) -> None:
        """Commit a release with the adapters trained from it and the gate's choice."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._set("release", number)
            self._set("base", base)
            self._set("choice", choice.encode())
            for name, value in facts.items():
                self._set(name, value.encode())
            self._put_adapters(adapters)

    def checkpoint(self) -> bytes | None:
        """The training in progress, as it was last written down."""
        return self._fact("checkpoint") or None

    def note_training(self, checkpoint: bytes | None, progress: float) -> None:
        """Commit a checkpoint and the share of the training that is done; None: nothing is in progress."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._set("checkpoint", checkpoint or b"")
            self._set("progress", repr(progress).encode())

    def note_pause(self, reason: str) -> None:
        """Commit why training waits; empty: it does not."""
        with self._db:
            self._set("paused", reason.encode())

    def answer(self, number: int, sha256: bytes, envelope: bytes, now: float) -> int:
        """Commit an update to the outbox and the round as answered; returns how many old ones had to go."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._set("answered", number)
            self._set("sent_release", self.number("release", -1))
            self._set("update_bytes", len(envelope))
            self._set("waiting_since", 0)
            self._db.execute("DELETE FROM adapters WHERE name = 'withheld'")
            self._db.execute(
                "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?)", (sha256, number, envelope, now)
            )
            dropped = self._db.execute(
                "DELETE FROM outbox WHERE sha256 NOT IN "
                "(SELECT sha256 FROM outbox ORDER BY round DESC LIMIT ?)",
                (MAX_OUTBOX,),
            )
        return dropped.rowcount

    def outbox(self) -> list[OutboxEntry]:
        """Updates without receipt, oldest first."""
        rows = self._db.execute("SELECT sha256, round, envelope, created FROM outbox ORDER BY round")
        return [OutboxEntry(*row) for row in rows]

    def outbox_length(self) -> int:
        """Number of updates without receipt."""
        [length] = self._db.execute("SELECT COUNT(*) FROM outbox").fetchone()
        return int(length)

    def clear(self, sha256: bytes) -> bool:
        """Drop an update that has its receipt; False: it was not there."""
        with self._db:
            return bool(self._db.execute("DELETE FROM outbox WHERE sha256 = ?", (sha256,)).rowcount)

    def _prepare(self, path: Path | str) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA busy_timeout = 5000")
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise AgentError(
                f"{path}: expected a schema version up to {SCHEMA_VERSION}, got {version}; "
                "it was written by a newer version of graftwork"
            )
        if version < SCHEMA_VERSION:
            steps = " ".join(_SCHEMAS[step] for step in range(version + 1, SCHEMA_VERSION + 1))
            self._db.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def _set_charter(
        self,
        version: int,
        training: TrainingPolicy,
        sending: SendingPolicy,
        schedule: SchedulePolicy | None,
    ) -> None:
        self._set("version", version)
        self._set("policy", cbor.encode(records.to_numbered(training)))
        self._set("sending", cbor.encode(records.to_numbered(sending)))
        self._set("schedule", cbor.encode(records.to_numbered(schedule or SchedulePolicy())))

    def _fact(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def _set(self, name: str, value: bytes | int) -> None:
        data = str(value).encode() if isinstance(value, int) else value
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, data))

    def _put_adapters(self, adapters: dict[str, Floats]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO adapters VALUES (?, ?)",
            [(name, adapter_bytes(vector)) for name, vector in adapters.items()],
        )
