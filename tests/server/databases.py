"""Databases for tests: SQLite, and a PostgreSQL of the tests' own on a socket that nobody else sees."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sql

Database = Callable[[Path], str]
"""The URL of a server's database by its data directory."""


def sqlite(_: Path) -> str:
    """As without any setting."""
    return ""


class PostgreSQL:
    """A cluster in a temporary folder."""

    def __init__(self, socket: Path, run: Callable[..., None]) -> None:
        self._socket = socket
        self._run = run
        self._names: dict[Path, str] = {}
        self._made = 0

    def __call__(self, directory: Path) -> str:
        """URL of the empty database of a data directory, always the same one until `clear`."""
        if directory not in self._names:
            name = f"test_{len(self._names)}"
            if len(self._names) == self._made:
                self._execute("postgres", f"CREATE DATABASE {name}")
                self._made += 1
            self._names[directory] = name
        return self._url(self._names[directory])

    def clear(self) -> None:
        """Empty all databases for the next test: several times faster than to make them anew."""
        for name in self._names.values():
            self._execute(
                name,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
                "DROP SCHEMA public CASCADE",
                "CREATE SCHEMA public",
            )
        self._names.clear()

    def crash(self) -> None:
        """All its processes end at once, without a word to anybody; then it starts again."""
        self._run("pg_ctl", "-w", "-m", "immediate", "restart")

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@/{name}?host={self._socket}"

    def _execute(self, name: str, *statements: str) -> None:
        engine = sql.create_engine(self._url(name), isolation_level="AUTOCOMMIT", poolclass=sql.NullPool)
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


def why_no_postgresql() -> str:
    """What is missing; empty: nothing."""
    try:
        import psycopg  # noqa: F401, PLC0415
    except ImportError:
        return "psycopg is not installed (pip install 'graftwork[postgresql]')"
    if _programs() is None:
        return "PostgreSQL is not installed (Debian: apt install postgresql)"
    return ""


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """Start PostgreSQL, as the user postgres where we are root, and stop it in the end."""
    programs = _programs()
    assert programs is not None
    folder = Path(
        tempfile.mkdtemp(prefix="graftwork-")
    )  # short: the socket's path has 107 characters at most
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres", "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(folder / "data"), *arguments]
        log = folder / "log"
        with log.open("ab") as output:
            done = subprocess.run(command, cwd=folder, stdout=output, stderr=output, check=False, **user)  # type: ignore[call-overload]
        assert done.returncode == 0, log.read_text("utf-8", "replace")

    # Nothing that the tests look at depends on a power cut of this machine.
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    try:
        run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "-w", "-o", options, "start")
        try:
            yield PostgreSQL(folder, run)
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """Folder of the newest PostgreSQL: Debian keeps initdb out of the PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None
