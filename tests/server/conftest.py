"""Tests that take `database` run on each kind of database that a server may have."""

from collections.abc import Iterator

import pytest

from tests.server.databases import Database, PostgreSQL, running_postgresql, sqlite, why_no_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    missing = why_no_postgresql()
    if missing:
        pytest.skip(missing)
    with running_postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "sqlite":
        yield sqlite
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    yield server
    server.clear()
