"""The server's memory: what was committed is there after a restart, once and no more."""

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.messages import DeviceState, Report, adapter_bytes
from protocol.release_coding import Difference
from server import tables
from server.errors import ServerError
from server.registry import MAX_REFUSALS
from server.store import JournalledUpdate, ReleaseRecord, RoundRecord, Store
from tests.builders import PARAMETERS, private_key, tiny_package
from tests.server.databases import Database

KEY, OTHER = private_key(1).public, private_key(2).public
INITIAL = np.arange(PARAMETERS, dtype=np.float32)
PACKAGE = tiny_package(INITIAL.tolist())
SHA256 = hashlib.sha256(PACKAGE).digest()
RESIDUAL = np.array([0, -1, 1, 1 << 33, -(1 << 33), 7], np.int64)
STATE = DeviceState(True, 10, KEY.raw, "0.1", SHA256, 0, 5)


def journal(store: Store, device: str, number: int, sha256: bytes, *rest: Any) -> bytes:
    envelope, now = rest
    update = JournalledUpdate(device, envelope, KEY, number)
    return store.journal_update(update, sha256, counted_in=number, now=now)


@pytest.fixture
def store(tmp_path: Path, database: Database) -> Iterator[Store]:
    store = Store(tmp_path, database(tmp_path))
    yield store
    store.close()


def push(store: Store, now: float = 1.0) -> int:
    return store.add_package(PACKAGE, SHA256, "tiny 1", INITIAL, now)


def release(number: int, round_number: int | None) -> ReleaseRecord:
    adapter = INITIAL + np.float32(number)
    digest = hashlib.sha256(adapter_bytes(adapter)).digest()
    return ReleaseRecord(
        *(number, 1, round_number, b"p" * 32, digest, adapter, 5.0, 2, 20, {"loss": 0.5}),
        difference=Difference(b"\x01\x02", b"body"),
        residual=RESIDUAL,
    )


def test_a_restart_keeps_everything(tmp_path: Path, database: Database) -> None:
    first = Store(tmp_path, database(tmp_path))
    push(first)
    first.register_device("a", KEY, 2.0)
    first.set_device_state("a", STATE, 3.0)
    first.open_round(RoundRecord(1, 1, 0, ("a", "b"), 4.0, 100.0, release_step_ratio=1.5))
    first.extend_round(1, 200.0)
    journal(first, "a", 1, b"s" * 32, b"envelope", 5.0)
    first.add_report("a", Report(0, "local", gain=0.5), 6.0)
    first.add_refusal("a", "reason", 7.0)
    first.close()
    store = Store(tmp_path, database(tmp_path))
    package = store.newest_package()
    assert package is not None
    assert (package.version, package.sha256, package.name) == (1, SHA256, "tiny 1")
    assert store.package_path(SHA256).read_bytes() == PACKAGE
    assert store.device_key("a") == KEY
    [device] = store.devices()
    assert (device["online"], device["session"], device["labelled_windows"], device["last_seen"]) == (
        True,
        10,
        5,
        3.0,
    )
    assert store.open_round_record() == RoundRecord(1, 1, 0, ("a", "b"), 4.0, 200.0, release_step_ratio=1.5)
    assert list(store.journalled_updates(1)) == [("a", b"envelope", KEY, 1)]
    assert store.journalled_update("a", 1) == b"s" * 32
    assert store.reports(0)["a"]["gain"] == 0.5
    assert [refusal["reason"] for refusal in store.refusals()] == ["reason"]
    newest = store.newest_release()
    assert newest is not None
    assert (newest.number, newest.round, newest.parent) == (0, None, b"")
    assert newest.adapter.tolist() == INITIAL.tolist()
    assert (newest.difference, newest.residual) == (None, 0)
    store.close()


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert store.newest_package() is None
    assert store.newest_release() is None
    assert store.open_round_record() is None
    assert store.next_round_number() == 1
    assert store.device_key("a") is None
    assert store.journalled_update("a", 1) is None
    assert not store.remove_device("a")


def test_the_first_update_of_a_device_in_a_round_is_kept(store: Store) -> None:
    assert journal(store, "a", 1, b"1" * 32, b"first", 1.0) == b"1" * 32
    assert journal(store, "a", 1, b"2" * 32, b"second", 2.0) == b"1" * 32
    assert journal(store, "a", 1, b"1" * 32, b"first", 3.0) == b"1" * 32
    assert journal(store, "a", 2, b"2" * 32, b"second", 4.0) == b"2" * 32
    assert list(store.journalled_updates(1)) == [("a", b"first", KEY, 1)]


def test_a_new_package_ends_the_open_round_without_release(store: Store) -> None:
    push(store)
    store.open_round(RoundRecord(1, 1, 0, ("a",), 2.0, 100.0))
    assert push(store, 3.0) == 1  # the same package again does nothing
    assert store.open_round_record() is not None
    other = tiny_package(filler=1)
    assert store.add_package(other, hashlib.sha256(other).digest(), "tiny 2", INITIAL, 3.0) == 2
    assert store.open_round_record() is None
    [round_row] = store.rounds()
    assert (round_row["outcome"], round_row["closed_at"]) == ("superseded by a new package", 3.0)
    newest = store.newest_release()
    assert newest is not None
    assert (newest.number, newest.package_version) == (1, 2)
    assert store.next_round_number() == 2


def test_a_round_closes_together_with_its_release(store: Store) -> None:
    push(store)
    store.open_round(RoundRecord(1, 1, 0, ("a", "b"), 2.0, 100.0))
    journal(store, "a", 1, b"1" * 32, b"x", 3.0)
    store.close_round(1, release(1, 1), 4.0)
    [round_row] = store.rounds()
    assert (round_row["outcome"], round_row["counted"], round_row["cohort"]) == ("released", 1, ["a", "b"])
    newest = store.newest_release()
    assert newest is not None
    assert newest.adapter.tolist() == (INITIAL + 1).tolist()
    assert newest.metrics == {"loss": 0.5}
    assert newest.difference == Difference(b"\x01\x02", b"body")
    assert np.asarray(newest.residual).tolist() == RESIDUAL.tolist()
    assert store.rounds_done(1) == 1
    assert [row["number"] for row in store.releases()] == [1, 0]
    assert {"adapter", "body", "residual"}.isdisjoint(store.releases()[0])


def test_a_device_with_another_key_is_refused_until_it_is_removed(store: Store) -> None:
    store.register_device("a", KEY, 1.0)
    store.register_device("a", KEY, 2.0)
    with pytest.raises(ServerError, match="registered with another key; remove it first"):
        store.register_device("a", OTHER, 3.0)
    assert store.device_key("a") == KEY
    assert store.remove_device("a")
    store.register_device("a", OTHER, 4.0)
    assert store.device_key("a") == OTHER


def test_a_state_of_an_earlier_life_is_ignored(store: Store) -> None:
    store.register_device("a", KEY, 1.0)
    store.set_device_state("a", STATE, 2.0)
    store.set_device_state("a", replace(STATE, session=9, online=False), 3.0)
    assert store.devices()[0]["online"]
    store.set_device_state("a", replace(STATE, online=False), 4.0)
    assert not store.devices()[0]["online"]
    store.set_device_state("b", STATE, 5.0)
    assert len(store.devices()) == 1


def test_a_later_report_on_a_release_replaces_the_one_before(store: Store) -> None:
    store.add_report("a", Report(1, "local"), 1.0)
    store.add_report("a", Report(1, "global"), 2.0)
    store.add_report("a", Report(2, "personal"), 3.0)
    assert store.reports(1)["a"]["choice"] == "global"
    assert store.reports(2)["a"]["choice"] == "personal"


def test_a_noisy_device_cannot_fill_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REFUSALS >= 1000
    monkeypatch.setattr("server.registry.MAX_REFUSALS", 5)
    for index in range(12):
        store.add_refusal("a", f"{index}" * 600, float(index))
    assert [refusal["received_at"] for refusal in store.refusals()] == [11.0, 10.0, 9.0, 8.0, 7.0]
    assert max(len(refusal["reason"]) for refusal in store.refusals()) == 500


def test_text_that_a_device_chose_is_taken_by_every_database(store: Store) -> None:
    text = "a\0b\x01\u2028\U0001f527'\"\\"
    store.register_device("a", KEY, 1.0)
    store.set_device_state("a", replace(STATE, agent_version=text), 2.0)
    store.add_refusal("a", text, 3.0)
    store.add_report("a", Report(0, "local", problems=(text,), peak_rss_bytes=(1 << 63) - 1), 4.0)
    kept = text.replace("\0", "\ufffd")
    assert store.devices()[0]["agent_version"] == kept
    assert store.refusals()[0]["reason"] == kept
    figures = store.reports(0)["a"]
    assert (figures["problems"], figures["peak_rss_bytes"]) == ([text], (1 << 63) - 1)


def test_numbers_at_the_end_of_their_range_are_taken(store: Store) -> None:
    store.register_device("a", KEY, 1.0)
    most = (1 << 63) - 1
    store.set_device_state("a", replace(STATE, session=most, release=most, labelled_windows=most), 2.0)
    [device] = store.devices()
    assert (device["session"], device["release"], device["labelled_windows"]) == (most, most, most)


def test_a_server_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ServerError, match="cannot open the database") as caught:
        Store(tmp_path, f"postgresql+psycopg://operator:secret@/graftwork?host={tmp_path}")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql", "nosuch://x", "postgresql+nosuch://x/y"])
def test_an_url_that_means_nothing_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ServerError, match="database: expected a SQLAlchemy URL"):
        Store(tmp_path, url)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    database = sqlite3.connect(tmp_path / "server.sqlite")
    database.execute("UPDATE settings SET value = '99' WHERE name = 'schema_version'")
    database.commit()
    database.close()
    with pytest.raises(ServerError, match=f"schema version 99, this program needs {tables.SCHEMA_VERSION}"):
        Store(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "server.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(ServerError, match="cannot open the database"):
        Store(tmp_path)
