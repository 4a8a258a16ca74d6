"""The server's memory: one database and a folder of packages.

Every change is one transaction, committed before anything that depends on it is published; a server that is
killed at any point goes on from the last commit.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sql
from numpy.typing import NDArray
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from protocol.messages import DeviceState, Report, adapter_bytes
from protocol.signing import PublicKey
from server import tables
from server.errors import ServerError

MAX_REFUSALS = 10_000
"""Older refusals are forgotten, so that a noisy device cannot fill the disk."""


@dataclass(frozen=True)
class PackageRecord:
    """A package that was pushed."""

    version: int
    sha256: bytes
    name: str
    pushed_at: float


@dataclass(frozen=True)
class ReleaseRecord:
    """A release, its adapter float32 [parameters]."""

    number: int
    package_version: int
    round: int | None
    parent: bytes
    sha256: bytes
    adapter: NDArray[np.float32]
    created_at: float
    updates: int
    weight: int
    metrics: Mapping[str, float]
    default_choice: str = "local"


@dataclass(frozen=True)
class RoundRecord:
    """A round, open while `closed_at` is None."""

    number: int
    package_version: int
    base_release: int
    cohort: tuple[str, ...]
    opened_at: float
    deadline: float
    closed_at: float | None = None
    outcome: str | None = None


class Store:
    """All reads and writes of the server."""

    def __init__(self, directory: Path, url: str = "") -> None:
        """Open or create the store.

        Raises:
            ServerError: the database cannot be opened, or was written by another version.
        """
        (directory / "packages").mkdir(parents=True, exist_ok=True)
        self._packages = directory / "packages"
        self._engine = sql.create_engine(url or f"sqlite:///{directory / 'server.sqlite'}")
        if self._engine.dialect.name == "sqlite":
            sql.event.listen(self._engine, "connect", _prepare_sqlite)
        try:
            tables.metadata.create_all(self._engine)
            self._check_version()
        except ServerError:
            self.close()
            raise
        except SQLAlchemyError as error:
            self.close()
            raise ServerError(f"cannot open the database {self._engine.url}: {error}") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # Packages

    def add_package(
        self, data: bytes, sha256: bytes, name: str, initial: NDArray[np.float32], now: float
    ) -> int:
        """Keep a package and its initial adapter as the newest release; returns the package's version.

        The package that runs already is left as it is: pushing twice does nothing.

        An open round of the package before ends without a release.
        """
        newest = self.newest_package()
        path = self.package_path(sha256)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        if newest and newest.sha256 == sha256:
            return newest.version
        with self._engine.begin() as connection:
            version = self._next(connection, tables.packages.c.version, 1)
            number = self._next(connection, tables.releases.c.number, 0)
            connection.execute(
                tables.packages.insert().values(version=version, sha256=sha256, name=name, pushed_at=now)
            )
            connection.execute(
                tables.rounds.update()
                .where(tables.rounds.c.closed_at.is_(None))
                .values(closed_at=now, outcome="superseded by a new package")
            )
            release = ReleaseRecord(
                number, version, None, b"", _sha256(initial), initial, now, updates=0, weight=0, metrics={}
            )
            connection.execute(tables.releases.insert().values(_release_row(release)))
        return version

    def package_path(self, sha256: bytes) -> Path:
        """Where a package lies."""
        return self._packages / f"{sha256.hex()}.zip"

    def newest_package(self) -> PackageRecord | None:
        """The package that the federation runs."""
        row = self._one(sql.select(tables.packages).order_by(tables.packages.c.version.desc()).limit(1))
        return PackageRecord(**row) if row else None

    # Devices

    def register_device(self, device: str, key: PublicKey, now: float) -> None:
        """Register a device.

        Raises:
            ServerError: the name is taken by another key.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    tables.devices.insert().values(id=device, public_key=key.raw, registered_at=now)
                )
        except IntegrityError:
            if self.device_key(device) != key:
                raise ServerError(
                    f"device {device!r} is registered with another key; remove it first"
                ) from None

    def remove_device(self, device: str) -> bool:
        """Forget a device; its later messages are refused. False: it was not known."""
        with self._engine.begin() as connection:
            result = connection.execute(tables.devices.delete().where(tables.devices.c.id == device))
        return bool(result.rowcount)

    def device_key(self, device: str) -> PublicKey | None:
        """The key of a registered device."""
        row = self._one(sql.select(tables.devices.c.public_key).where(tables.devices.c.id == device))
        return PublicKey(row["public_key"]) if row else None

    def set_device_state(self, device: str, state: DeviceState, now: float) -> None:
        """Note what a device says of itself; a state of an earlier session is ignored."""
        with self._engine.begin() as connection:
            connection.execute(
                tables.devices.update()
                .where(tables.devices.c.id == device, tables.devices.c.session <= state.session)
                .values(
                    online=state.online,
                    session=state.session,
                    last_seen=now,
                    agent_version=state.agent_version,
                    package=state.package,
                    release=state.release,
                    labelled_windows=state.labelled_windows,
                )
            )

    def devices(self) -> list[dict[str, Any]]:
        """All registered devices, by name."""
        return self._all(sql.select(tables.devices).order_by(tables.devices.c.id))

    # Rounds and updates

    def open_round(self, record: RoundRecord) -> None:
        """Note a new round."""
        with self._engine.begin() as connection:
            connection.execute(
                tables.rounds.insert().values({**asdict(record), "cohort": list(record.cohort)})
            )

    def extend_round(self, number: int, deadline: float) -> None:
        """Note a later deadline."""
        with self._engine.begin() as connection:
            connection.execute(
                tables.rounds.update().where(tables.rounds.c.number == number).values(deadline=deadline)
            )

    def open_round_record(self) -> RoundRecord | None:
        """The round that is open."""
        row = self._one(sql.select(tables.rounds).where(tables.rounds.c.closed_at.is_(None)))
        return RoundRecord(**{**row, "cohort": tuple(row["cohort"])}) if row else None

    def rounds(self) -> list[dict[str, Any]]:
        """All rounds with the number of updates counted, newest first."""
        counted = sql.func.count(tables.updates.c.device).label("counted")
        return self._all(
            sql.select(tables.rounds, counted)
            .outerjoin(tables.updates, tables.updates.c.round == tables.rounds.c.number)
            .group_by(tables.rounds.c.number)
            .order_by(tables.rounds.c.number.desc())
        )

    def next_round_number(self) -> int:
        """Number of the next round to open."""
        with self._engine.connect() as connection:
            return self._next(connection, tables.rounds.c.number, 1)

    def rounds_done(self, package_version: int) -> int:
        """Rounds of a package that ended with a release."""
        row = self._one(
            sql.select(sql.func.count().label("done"))
            .select_from(tables.releases)
            .where(tables.releases.c.package_version == package_version, tables.releases.c.round.isnot(None))
        )
        return int(row["done"]) if row else 0

    def journal_update(
        self, device: str, number: int, sha256: bytes, envelope: bytes, *, key: PublicKey, now: float
    ) -> bytes:
        """Keep an update and whose signature it bears, once per device and round.

        Returns the hash of the one that is kept.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    tables.updates.insert().values(
                        device=device,
                        round=number,
                        sha256=sha256,
                        envelope=envelope,
                        public_key=key.raw,
                        received_at=now,
                    )
                )
        except IntegrityError:
            row = self._one(
                sql.select(tables.updates.c.sha256).where(
                    tables.updates.c.device == device, tables.updates.c.round == number
                )
            )
            return bytes(row["sha256"]) if row else b""
        return sha256

    def journalled_update(self, device: str, number: int) -> bytes | None:
        """Hash of the update that is kept of a device in a round."""
        row = self._one(
            sql.select(tables.updates.c.sha256).where(
                tables.updates.c.device == device, tables.updates.c.round == number
            )
        )
        return bytes(row["sha256"]) if row else None

    def journalled_updates(self, number: int) -> Iterator[tuple[str, bytes, PublicKey]]:
        """(device, envelope, key) of each update kept in a round, a few in memory at a time."""
        columns = (tables.updates.c.device, tables.updates.c.envelope, tables.updates.c.public_key)
        statement = sql.select(*columns).where(tables.updates.c.round == number)
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=16).execute(statement):
                yield row.device, bytes(row.envelope), PublicKey(bytes(row.public_key))

    def close_round(self, number: int, release: ReleaseRecord, now: float) -> bool:
        """End a round and keep its release, both or neither; False: a new package ended the round before."""
        with self._engine.begin() as connection:
            result = connection.execute(
                tables.rounds.update()
                .where(tables.rounds.c.number == number, tables.rounds.c.closed_at.is_(None))
                .values(closed_at=now, outcome="released")
            )
            if not result.rowcount:
                return False
            connection.execute(tables.releases.insert().values(_release_row(release)))
        return True

    # Releases, reports, refusals

    def newest_release(self) -> ReleaseRecord | None:
        """The release that the federation runs."""
        statement = sql.select(tables.releases).order_by(tables.releases.c.number.desc()).limit(1)
        row = self._one(statement)
        return ReleaseRecord(**{**row, "adapter": np.frombuffer(row["adapter"], "<f4")}) if row else None

    def releases(self) -> list[dict[str, Any]]:
        """All releases without their adapters, newest first."""
        columns = [column for column in tables.releases.c if column.name != "adapter"]
        return self._all(sql.select(*columns).order_by(tables.releases.c.number.desc()))

    def add_report(self, device: str, report: Report, now: float) -> None:
        """Keep a device's report on a release; a later one on the same release replaces it."""
        with self._engine.begin() as connection:
            connection.execute(
                tables.reports.delete().where(
                    tables.reports.c.device == device, tables.reports.c.release == report.release
                )
            )
            connection.execute(
                tables.reports.insert().values(
                    device=device, release=report.release, received_at=now, figures=asdict(report)
                )
            )

    def reports(self, release: int) -> dict[str, dict[str, Any]]:
        """Reports of all devices on a release, by device."""
        rows = self._all(sql.select(tables.reports).where(tables.reports.c.release == release))
        return {row["device"]: row["figures"] for row in rows}

    def add_refusal(self, device: str, reason: str, now: float) -> None:
        """Note a message that was refused."""
        with self._engine.begin() as connection:
            result = connection.execute(
                tables.refusals.insert().values(device=device, received_at=now, reason=reason[:500])
            )
            [newest] = result.inserted_primary_key or (0,)
            connection.execute(tables.refusals.delete().where(tables.refusals.c.id <= newest - MAX_REFUSALS))

    def refusals(self) -> list[dict[str, Any]]:
        """Messages that were refused, newest first."""
        return self._all(sql.select(tables.refusals).order_by(tables.refusals.c.id.desc()))

    def _check_version(self) -> None:
        row = self._one(sql.select(tables.settings).where(tables.settings.c.name == "schema_version"))
        if row is None:
            with self._engine.begin() as connection:
                connection.execute(
                    tables.settings.insert().values(name="schema_version", value=str(tables.SCHEMA_VERSION))
                )
        elif row["value"] != str(tables.SCHEMA_VERSION):
            raise ServerError(
                f"the database has schema version {row['value']}, this program needs {tables.SCHEMA_VERSION}"
            )

    def _one(self, statement: sql.Select[Any]) -> dict[str, Any] | None:
        with self._engine.connect() as connection:
            row = connection.execute(statement).mappings().first()
        return dict(row) if row else None

    def _all(self, statement: sql.Select[Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    @staticmethod
    def _next(connection: sql.Connection, column: sql.Column[Any], first: int) -> int:
        newest = connection.execute(sql.select(sql.func.max(column))).scalar()
        return first if newest is None else int(newest) + 1


def _sha256(adapter: NDArray[np.float32]) -> bytes:
    return hashlib.sha256(adapter_bytes(adapter)).digest()


def _release_row(release: ReleaseRecord) -> dict[str, Any]:
    return {
        **{column.name: getattr(release, column.name) for column in tables.releases.c},
        "adapter": adapter_bytes(release.adapter),
        "metrics": dict(release.metrics),
    }


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers (the operators' commands) never wait for the server, and a commit survives a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA busy_timeout = 10000")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
