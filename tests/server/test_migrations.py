"""A store that an earlier version wrote is opened, kept as it was, brought up to date, and goes on.

`version_1` is such a store, as the code with schema version 1 left it: releases 0 to 2, and round 3 open with
one of three updates.
"""

import contextlib
import logging
import shutil
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from protocol.messages import Round
from protocol.release_coding import release_adapter
from server import migrations, tables
from server.database import Database
from server.errors import ServerError
from server.exclusion import only_server
from server.replay import SAME, replay_all
from server.store import Store
from tests.builders import PARAMETERS
from tests.server.federation import NAMES, PARTS, Federation, update_of

A, B, C = NAMES
VERSION_1 = Path(__file__).parent / "version_1"
PACKAGE = "34dd7f995e7d6577795a42b858c411c6f4ca8ac60c515db8fcff33c49dc63a10"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A data directory with a store of schema version 1."""
    directory = tmp_path / "data"
    (directory / "packages").mkdir(parents=True)
    shutil.copy(VERSION_1 / "package.zip", directory / "packages" / f"{PACKAGE}.zip")
    with contextlib.closing(sqlite3.connect(directory / "server.sqlite")) as database:
        database.executescript((VERSION_1 / "server.sql").read_text("utf-8"))
    return directory


def dump(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return "\n".join(database.iterdump()) + "\n"


def schema(engine: sql.Engine) -> Mapping[str, object]:
    """What the database itself says of its tables; the order of columns means nothing to the program."""
    inspector = sql.inspect(engine)
    return {
        name: (
            {
                column["name"]: (str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(name)
            },
            inspector.get_pk_constraint(name)["constrained_columns"],
            [
                (key["constrained_columns"], key["referred_table"], key["referred_columns"])
                for key in inspector.get_foreign_keys(name)
            ],
            [(index["name"], index["column_names"]) for index in inspector.get_indexes(name)],
        )
        for name in inspector.get_table_names()
    }


def test_every_version_after_the_first_has_a_step() -> None:
    assert sorted(migrations.STEPS) == list(range(2, tables.SCHEMA_VERSION + 1))


def test_a_migrated_store_has_the_schema_of_a_fresh_one(old: Path, tmp_path: Path) -> None:
    with (
        contextlib.closing(Database(old)) as migrated,
        contextlib.closing(Database(tmp_path / "new")) as fresh,
    ):
        assert schema(migrated.engine) == schema(fresh.engine)
        for database in (migrated, fresh):
            with database.engine.connect() as connection:
                context = MigrationContext.configure(connection)
                assert compare_metadata(context, tables.metadata) == []


def test_nothing_is_lost_on_the_way(old: Path) -> None:
    with contextlib.closing(Store(old)) as store:
        assert [row["number"] for row in store.releases()] == [2, 1, 0]
        assert [row["id"] for row in store.devices()] == list(NAMES)
        assert [row["counted"] for row in store.rounds()] == [1, 3, 3]
        assert sorted(store.reports(2)) == [A, B]
        assert len(store.refusals()) == 1
        record, release = store.open_round_record(), store.newest_release()
        assert record is not None
        assert (record.number, record.release_step_ratio, record.training["epochs"]) == (3, 1.5, 20)
        assert release is not None
        assert (release.difference, release.residual) == (None, 0)


def test_the_releases_of_the_old_version_are_recomputed_to_the_same_bits(old: Path) -> None:
    with contextlib.closing(Store(old)) as store:
        replays = list(replay_all(store, "pumps"))
    assert [(replay.release, replay.verdict, replay.updates) for replay in replays] == [
        (2, SAME, 3),
        (1, SAME, 3),
        (0, SAME, 0),
    ]


def test_the_open_round_goes_on(old: Path) -> None:
    federation = Federation(old)
    published = federation.release()
    before = federation.store.newest_release()
    assert before is not None
    assert release_adapter(published, None, PARTS, PARAMETERS).tobytes() == before.adapter.tobytes()
    current: Round = federation.newest(Round, "round")
    assert current.number == 3
    assert federation.deliver(A, update_of(A, current, 0.2, weight=5))[0].verdict == "duplicate"
    for name in (B, C):
        assert federation.deliver(name, update_of(name, current))[0].verdict == "counted"
    assert (federation.release().number, federation.release().updates) == (3, 3)
    newest = federation.store.newest_release()
    assert newest is not None
    assert newest.difference is not None
    assert {replay.verdict for replay in replay_all(federation.store, "pumps")} == {SAME}
    federation.close()


def test_the_old_database_is_kept_and_named(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Store(old).close()
    copy = old / "server.sqlite.version-1"
    assert f"from schema version 1 to 2; it is kept as {copy}" in caplog.text
    assert dump(copy) == (VERSION_1 / "server.sql").read_text("utf-8")
    caplog.clear()
    copy.unlink()
    Store(old).close()
    assert not caplog.records
    assert not copy.exists()


def test_a_migration_that_breaks_off_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(operations: Operations) -> None:
        migrations.version_2.upgrade(operations)
        raise sql.exc.OperationalError("ALTER TABLE", {}, Exception("disk full"))

    with monkeypatch.context() as patch:
        patch.setattr("server.migrations.STEPS", {2: break_off})
        with pytest.raises(ServerError, match="disk full"):
            Store(old)
    assert dump(old / "server.sqlite") == (VERSION_1 / "server.sql").read_text("utf-8")
    with contextlib.closing(Store(old)) as store:
        assert {replay.verdict for replay in replay_all(store, "pumps")} == {SAME}


def test_programs_that_start_together_migrate_once(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    def start(_: int) -> int:
        with contextlib.closing(Store(old)) as store:
            return len(store.releases())

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, range(4))) == [3] * 4
    assert caplog.text.count("migrating the database") == 1


def test_no_command_migrates_under_a_running_server(old: Path) -> None:
    engine = sql.create_engine(f"sqlite:///{old / 'server.sqlite'}")
    with only_server(engine, old), pytest.raises(ServerError, match="a server runs on this database already"):
        Store(old)
    engine.dispose()
    assert dump(old / "server.sqlite") == (VERSION_1 / "server.sql").read_text("utf-8")
    Store(old).close()


@pytest.mark.parametrize("version", ["3", "99"])
def test_a_newer_store_is_refused_and_left_alone(old: Path, version: str) -> None:
    with contextlib.closing(sqlite3.connect(old / "server.sqlite")) as database, database:
        database.execute("UPDATE settings SET value = ? WHERE name = 'schema_version'", (version,))
    before = dump(old / "server.sqlite")
    with pytest.raises(ServerError, match=f"has schema version {version}, this program needs 2"):
        Store(old)
    assert dump(old / "server.sqlite") == before


def test_a_version_that_is_no_number_is_refused(old: Path) -> None:
    with contextlib.closing(sqlite3.connect(old / "server.sqlite")) as database, database:
        database.execute("UPDATE settings SET value = 'new' WHERE name = 'schema_version'")
    with pytest.raises(ServerError, match="schema version 'new', expected a number"):
        Store(old)
