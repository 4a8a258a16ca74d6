"""A store that an earlier version wrote is opened, kept as it was, brought up to date, and goes on.

`version_1` is such a store, as the code with schema version 1 left it: releases 0 to 2, and round 3 open with
one of three updates. `version_2` to `version_5` hold the same.
"""

import contextlib
import hashlib
import logging
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from protocol.messages import Round
from protocol.release_coding import release_adapter
from server import migrations, tables
from server.errors import ServerError
from server.exclusion import only_server
from server.replay import SAME, replay_all
from server.store import Store
from tests.builders import PARAMETERS
from tests.server.databases import Database as Databases
from tests.server.federation import NAMES, PARTS, Federation, update_of

A, B, C = NAMES
VERSIONS = (1, 2, 3, 4, 5)
"""Earlier ones, each with a store that it wrote."""


@dataclass(frozen=True)
class Old:
    """A data directory with a store of an earlier schema version."""

    directory: Path
    database: Databases
    version: int = 0

    @property
    def written(self) -> Path:
        """What that version wrote."""
        return Path(__file__).parent / f"version_{self.version}"

    @property
    def file(self) -> Path:
        return self.directory / "server.sqlite"

    def open(self) -> Store:
        return Store(self.directory, self.database(self.directory))

    @contextlib.contextmanager
    def engine(self) -> Iterator[sql.Engine]:
        engine = sql.create_engine(self.database(self.directory) or f"sqlite:///{self.file}")
        yield engine
        engine.dispose()

    def contents(self) -> object:
        """Schema and rows, whichever version it has."""
        with self.engine() as engine, engine.connect() as connection:
            found = sql.MetaData()
            found.reflect(connection)
            rows = {
                name: [
                    tuple(row) for row in connection.execute(sql.select(table).order_by(*table.primary_key))
                ]
                for name, table in found.tables.items()
            }
            return schema(engine), rows

    def set_version(self, version: str) -> None:
        with self.engine() as engine, engine.begin() as connection:
            connection.execute(sql.update(tables.settings).values(value=version))


@pytest.fixture(params=VERSIONS)
def old(tmp_path: Path, database: Databases, request: pytest.FixtureRequest) -> Old:
    old = Old(tmp_path / "data", database, request.param)
    (old.directory / "packages").mkdir(parents=True)
    package = old.written / "package.zip"
    name = f"{hashlib.sha256(package.read_bytes()).hexdigest()}.zip"
    shutil.copy(package, old.directory / "packages" / name)
    with contextlib.closing(sqlite3.connect(old.file)) as connection:
        connection.executescript((old.written / "server.sql").read_text("utf-8"))
    if database(old.directory):
        copy_rows(old)
    return old


def copy_rows(old: Old) -> None:
    """Move the store to a database of another kind, with the same tables."""
    metadata = sql.MetaData()
    source = sql.create_engine(f"sqlite:///{old.file}")

    @sql.event.listens_for(metadata, "column_reflect")
    def of_any_database(_inspector: object, table: sql.Table, column: dict[str, Any]) -> None:
        generic = column["type"].as_generic()
        column["type"] = sql.JSON(none_as_null=True) if isinstance(generic, sql.JSON) else generic
        column["autoincrement"] = table.name == "refusals"

    metadata.reflect(source)
    with old.engine() as target, source.connect() as reading, target.begin() as writing:
        metadata.create_all(writing)
        for table in metadata.sorted_tables:
            rows = [dict(row) for row in reading.execute(sql.select(table)).mappings()]
            if rows:
                writing.execute(table.insert(), rows)
    source.dispose()
    old.file.unlink()


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


def test_a_migrated_store_has_the_schema_of_a_fresh_one(old: Old, tmp_path: Path) -> None:
    old.open().close()
    fresh = Old(tmp_path / "new", old.database)
    fresh.open().close()
    schemas = []
    for store in (old, fresh):
        with store.engine() as engine, engine.connect() as connection:
            schemas.append(schema(engine))
            assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    assert schemas[0] == schemas[1]


def test_nothing_is_lost_on_the_way(old: Old) -> None:
    with contextlib.closing(old.open()) as store:
        assert [row["number"] for row in store.releases()] == [2, 1, 0]
        assert [row["id"] for row in store.devices()] == list(NAMES)
        assert [row["counted"] for row in store.rounds()] == [1, 3, 3]
        assert sorted(store.reports(2)) == [A, B]
        assert len(store.refusals()) == 1
        record, release = store.open_round_record(), store.newest_release()
        assert record is not None
        assert (record.number, record.release_step_ratio, record.training["epochs"]) == (3, 1.5, 20)
        assert release is not None
        assert (release.difference is None) == (old.version == 1)
        assert (np.size(release.residual) == PARAMETERS) == (old.version > 1)


def test_the_releases_of_the_old_version_are_recomputed_to_the_same_bits(old: Old) -> None:
    with contextlib.closing(old.open()) as store:
        replays = list(replay_all(store, "pumps"))
    assert [(replay.release, replay.verdict, replay.updates) for replay in replays] == [
        (2, SAME, 3),
        (1, SAME, 3),
        (0, SAME, 0),
    ]


def test_the_open_round_goes_on(old: Old) -> None:
    federation = Federation(old.directory, database=old.database)
    published = federation.release()
    before = federation.store.newest_release()
    assert before is not None
    base = federation.store.release(1)
    assert base is not None
    assert release_adapter(published, base.adapter, PARTS, PARAMETERS).tobytes() == before.adapter.tobytes()
    current: Round = federation.newest(Round, "round")
    assert current.number == 3
    [(device, envelope, *_)] = federation.store.journalled_updates(3)
    assert (device, federation.deliver(A, envelope)[0].verdict) == (A, "duplicate")
    for name in (B, C):
        assert federation.deliver(name, update_of(name, current))[0].verdict == "counted"
    assert (federation.release().number, federation.release().updates) == (3, 3)
    newest = federation.store.newest_release()
    assert newest is not None
    assert newest.difference is not None
    assert {replay.verdict for replay in replay_all(federation.store, "pumps")} == {SAME}
    federation.close()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_old_database_is_kept_and_named(old: Old, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        old.open().close()
    copy = old.directory / f"server.sqlite.version-{old.version}"
    newest = tables.SCHEMA_VERSION
    assert f"from schema version {old.version} to {newest}; it is kept as {copy}" in caplog.text
    with contextlib.closing(sqlite3.connect(copy)) as kept:
        assert "\n".join(kept.iterdump()) + "\n" == (old.written / "server.sql").read_text("utf-8")
    caplog.clear()
    copy.unlink()
    old.open().close()
    assert not caplog.records
    assert not copy.exists()


def test_a_migration_that_breaks_off_changes_nothing(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(operations: Operations) -> None:
        steps[old.version + 1](operations)
        raise sql.exc.OperationalError("ALTER TABLE", {}, Exception("disk full"))

    steps, before = migrations.STEPS, old.contents()
    with monkeypatch.context() as patch:
        patch.setattr("server.migrations.STEPS", {old.version + 1: break_off})
        with pytest.raises(ServerError, match="disk full"):
            old.open()
    assert old.contents() == before
    with contextlib.closing(old.open()) as store:
        assert {replay.verdict for replay in replay_all(store, "pumps")} == {SAME}


def test_programs_that_start_together_migrate_once(old: Old, caplog: pytest.LogCaptureFixture) -> None:
    def start(_: int) -> int:
        with contextlib.closing(old.open()) as store:
            return len(store.releases())

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, range(4))) == [3] * 4
    assert caplog.text.count("migrating the database") == 1


def test_no_command_migrates_under_a_running_server(old: Old) -> None:
    before = old.contents()
    with (
        old.engine() as engine,
        only_server(engine, old.directory),
        pytest.raises(ServerError, match="a server runs on this database already"),
    ):
        old.open()
    assert old.contents() == before
    old.open().close()


@pytest.mark.parametrize("version", [str(tables.SCHEMA_VERSION + 1), "99"])
def test_a_newer_store_is_refused_and_left_alone(old: Old, version: str) -> None:
    old.set_version(version)
    before = old.contents()
    needed = f"has schema version {version}, this program needs {tables.SCHEMA_VERSION}"
    with pytest.raises(ServerError, match=needed):
        old.open()
    assert old.contents() == before


def test_a_version_that_is_no_number_is_refused(old: Old) -> None:
    old.set_version("new")
    with pytest.raises(ServerError, match="schema version 'new', expected a number"):
        old.open()
