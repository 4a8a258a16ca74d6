"""The server's database: opened, brought up to date, and read row by row."""

import logging
import random
import sqlite3
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from server import exclusion, tables
from server.errors import ServerError
from server.exclusion import sqlite_file

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 10
"""How long a statement waits for what another connection holds."""


class Database:
    """A database with the server's tables."""

    def __init__(self, directory: Path, url: str = "") -> None:
        """Open or create the database; one of an earlier version is migrated.

        Args:
            directory: the server's data directory.
            url: SQLAlchemy URL; empty: SQLite in the directory.

        Raises:
            ServerError: it cannot be opened, or was written by a newer version.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        try:
            self.engine = sql.create_engine(url or f"sqlite:///{directory / 'server.sqlite'}")
        except (SQLAlchemyError, ImportError) as error:
            raise ServerError(
                f"database: expected a SQLAlchemy URL whose driver is installed ({error}); for "
                "postgresql+psycopg://, pip install 'graftwork[postgresql]'"
            ) from error
        if self.engine.dialect.name == "sqlite":
            sql.event.listen(self.engine, "connect", _prepare_sqlite)
        try:
            with self.engine.connect() as connection:
                found = _version(connection)
            if found != tables.SCHEMA_VERSION:
                self._bring_up_to_date()
        except ServerError:
            self.close()
            raise
        except SQLAlchemyError as error:
            self.close()
            raise ServerError(f"cannot open the database {self.engine.url}: {reason(error)}") from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def first(self, statement: sql.Select[Any]) -> dict[str, Any] | None:
        """The first row of a query, or None."""
        with self.engine.connect() as connection:
            row = connection.execute(statement).mappings().first()
        return dict(row) if row else None

    def all(self, statement: sql.Select[Any]) -> list[dict[str, Any]]:
        """All rows of a query."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def only_server(self) -> AbstractContextManager[None]:
        """Hold the database as its only server.

        Raises:
            ServerError: another server holds it.
        """
        return exclusion.only_server(self.engine, self._directory)

    def only_writer(self) -> AbstractContextManager[sql.Connection]:
        """A transaction beside which no other one of this kind runs."""
        return exclusion.only_writer(self.engine)

    def _bring_up_to_date(self) -> None:
        with self.only_writer() as connection:
            found = _version(connection)  # another program may have been faster
            if found is None:
                tables.metadata.create_all(connection)
                version = {"name": "schema_version", "value": str(tables.SCHEMA_VERSION)}
                connection.execute(tables.settings.insert().values(version))
            elif found > tables.SCHEMA_VERSION:
                raise ServerError(
                    f"the database has schema version {found}, this program needs {tables.SCHEMA_VERSION}; "
                    "it was written by a newer version of graftwork"
                )
            elif found < tables.SCHEMA_VERSION:
                with self.only_server():
                    self._migrate(connection, found)

    def _migrate(self, connection: sql.Connection, found: int) -> None:
        # Here, so that what opens a current database does without Alembic.
        from server import migrations  # noqa: PLC0415
        from server.migrations.backup import keep_copy  # noqa: PLC0415

        file = sqlite_file(self.engine)
        copy = keep_copy(file, found) if file else None
        log.warning(
            "migrating the database from schema version %d to %d; %s",
            found, tables.SCHEMA_VERSION, f"it is kept as {copy}" if copy else "no copy is kept",
        )  # fmt: skip
        migrations.migrate(connection, found, tables.SCHEMA_VERSION)


def _version(connection: sql.Connection) -> int | None:
    """Schema version of the database; None: it is new."""
    if not sql.inspect(connection).has_table(tables.settings.name):
        return None
    statement = sql.select(tables.settings.c.value).where(tables.settings.c.name == "schema_version")
    value = connection.execute(statement).scalar()
    if value is not None and not value.isdecimal():
        raise ServerError(f"the database has schema version {value!r}, expected a number")
    return None if value is None else int(value)


def reason(error: SQLAlchemyError) -> str:
    """What a database said, in one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def text(received: str) -> str:
    """Text that every database takes: PostgreSQL has no character 0."""
    return received.replace("\0", "\N{REPLACEMENT CHARACTER}")


def next_number(connection: sql.Connection, column: sql.Column[Any], first: int) -> int:
    """One more than the largest number in a column, `first` where there is none."""
    newest = connection.execute(sql.select(sql.func.max(column))).scalar()
    return first if newest is None else int(newest) + 1


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers (the operators' commands) never wait for the server, and a commit survives a power cut."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {PATIENCE_SECONDS * 1000}")
    _go_over_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _go_over_to_wal(cursor: sqlite3.Cursor) -> None:
    # It needs the file alone, and SQLite does not wait for that where two connections want it at once:
    # both would wait for each other, so it says "locked" at once, whatever the timeout.
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 -- not both again at the same time
        else:
            return
