"""Opening the server's database: what happens to SQLite's modes where several programs start at once."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from server import database
from server.database import Database
from server.errors import ServerError


def test_a_database_without_a_log_is_opened_by_several_at_once(tmp_path: Path) -> None:
    # A copy that was kept of a store has no log beside it, and all of them want to begin one.
    programs = 6
    for number in range(20):
        directory = tmp_path / str(number)
        _leave_wal(directory)
        together = threading.Barrier(programs)

        def start(_: int, directory: Path = directory, together: threading.Barrier = together) -> None:
            together.wait()
            Database(directory).engine.dispose()

        with ThreadPoolExecutor(programs) as pool:
            list(pool.map(start, range(programs)))


def test_a_database_that_stays_locked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0)
    file = _leave_wal(tmp_path)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ServerError, match="locked"):
            Database(tmp_path)
    Database(tmp_path).engine.dispose()


def _leave_wal(directory: Path) -> Path:
    Database(directory).engine.dispose()
    file = directory / "server.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return file
