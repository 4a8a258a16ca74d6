"""The server's database: opened, checked, and read row by row."""

from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from server import tables
from server.errors import ServerError


class Database:
    """A database with the server's tables."""

    def __init__(self, directory: Path, url: str = "") -> None:
        """Open or create the database.

        Args:
            directory: the server's data directory.
            url: SQLAlchemy URL; empty: SQLite in the directory.

        Raises:
            ServerError: it cannot be opened, or was written by another version.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.engine = sql.create_engine(url or f"sqlite:///{directory / 'server.sqlite'}")
        if self.engine.dialect.name == "sqlite":
            sql.event.listen(self.engine, "connect", _prepare_sqlite)
        try:
            tables.metadata.create_all(self.engine)
            self._check_version()
        except ServerError:
            self.close()
            raise
        except SQLAlchemyError as error:
            self.close()
            raise ServerError(f"cannot open the database {self.engine.url}: {error}") from error

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

    def _check_version(self) -> None:
        row = self.first(sql.select(tables.settings).where(tables.settings.c.name == "schema_version"))
        if row is None:
            with self.engine.begin() as connection:
                connection.execute(
                    tables.settings.insert().values(name="schema_version", value=str(tables.SCHEMA_VERSION))
                )
        elif row["value"] != str(tables.SCHEMA_VERSION):
            raise ServerError(
                f"the database has schema version {row['value']}, this program needs {tables.SCHEMA_VERSION}"
            )


def next_number(connection: sql.Connection, column: sql.Column[Any], first: int) -> int:
    """One more than the largest number in a column, `first` where there is none."""
    newest = connection.execute(sql.select(sql.func.max(column))).scalar()
    return first if newest is None else int(newest) + 1


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers (the operators' commands) never wait for the server, and a commit survives a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA busy_timeout = 10000")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
