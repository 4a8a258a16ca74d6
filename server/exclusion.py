"""One server at a time on a database.

SQLite: a lock on a file beside it; PostgreSQL: an advisory lock of a connection of its own, which holds
across machines. Both end with the process, however it ends. Operators' commands take no part in this.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from server.errors import ServerError

SERVER_LOCK = 0x67726674_00000001
WRITER_LOCK = 0x67726674_00000002
"""Advisory locks of PostgreSQL; other programs in the same database may have others."""

PATIENCE_SECONDS = 2
"""PostgreSQL needs a moment to notice that the server before was killed."""
LOCK_NOT_AVAILABLE = "55P03"


@contextmanager
def only_server(engine: sql.Engine, directory: Path) -> Iterator[None]:
    """Hold the database as its only server.

    Args:
        engine: of the database.
        directory: for the lock, where the database is neither a file nor PostgreSQL.

    Raises:
        ServerError: another server holds it.
    """
    if engine.dialect.name == "postgresql":
        with _advisory_lock(engine):
            yield
    else:
        file = sqlite_file(engine) or directory / "server"
        with _file_lock(file.with_name(f"{file.name}.lock")):
            yield


@contextmanager
def only_writer(engine: sql.Engine) -> Iterator[sql.Connection]:
    """A transaction beside which no other one of this kind runs; it waits for its turn.

    On SQLite nothing else writes at all.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif engine.dialect.name == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(WRITER_LOCK)))
        yield connection


def sqlite_file(engine: sql.Engine) -> Path | None:
    """The file of a SQLite database; None: it has none, or is another database."""
    name = engine.url.database
    return Path(name) if engine.dialect.name == "sqlite" and name and name != ":memory:" else None


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(f"a server runs on this database already ({path} is locked)") from None
        yield


@contextmanager
def _advisory_lock(engine: sql.Engine) -> Iterator[None]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # the lock is the session's: closing must end it, not hand it to the pool
        connection.exec_driver_sql(f"SET lock_timeout = '{PATIENCE_SECONDS}s'")
        try:
            connection.execute(sql.select(sql.func.pg_advisory_lock(SERVER_LOCK)))
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise ServerError(f"a server runs on this database already ({engine.url})") from None
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):  # a connection that was lost has no lock any more
                connection.execute(sql.select(sql.func.pg_advisory_unlock(SERVER_LOCK)))
