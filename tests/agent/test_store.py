"""The device's memory: what was committed survives a kill, and nothing else does."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from agent.errors import AgentError
from agent.participant import State
from agent.store import MAX_OUTBOX, OutboxEntry, Store
from protocol.charter import SendingPolicy, TrainingPolicy
from tests.builders import PARAMETERS

INITIAL = np.arange(PARAMETERS, dtype=np.float32)
PACKAGE, BASE = b"p" * 32, b"b" * 32
POLICY, SENDING = TrainingPolicy(epochs=3), SendingPolicy(quiet_hours=("22:00-06:00",))
ADAPTERS = {
    name: INITIAL + index
    for index, name in enumerate(("global", "local", "personal", "local_full", "personal_full"), 1)
}


def fill(store: Store) -> None:
    store.install(4, PACKAGE, INITIAL, POLICY, SENDING)
    store.adopt(7, BASE, ADAPTERS, "personal", {"windows": "12", "gain": "0.5"})
    store.answer(9, b"s" * 32, b"envelope", 5.0)


def test_an_empty_store_is_a_new_device() -> None:
    store = Store(":memory:")
    assert store.state() == State()
    assert (store.outbox(), store.adapter("local"), store.policy()) == ([], None, TrainingPolicy())
    assert (store.number("windows", 3), store.text("choice")) == (3, "")
    store.close()


def test_a_kill_keeps_what_was_committed(tmp_path: Path) -> None:
    killed = Store(tmp_path / "agent.sqlite")
    fill(killed)
    store = Store(tmp_path / "agent.sqlite")  # the other one was never closed
    assert store.state() == State(version=4, package=PACKAGE, release=7, base=BASE, answered=9)
    assert store.policy() == POLICY
    assert (store.text("choice"), store.number("windows", 0), store.text("gain")) == ("personal", 12, "0.5")
    assert store.outbox() == [OutboxEntry(b"s" * 32, 9, b"envelope", 5.0)]
    for name, vector in {**ADAPTERS, "initial": INITIAL}.items():
        found = store.adapter(name)
        assert found is not None
        assert found.dtype == np.float32
        assert found.tolist() == vector.tolist()
    store.close()
    killed.close()


def test_a_kill_within_a_step_leaves_nothing_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "agent.sqlite")
    fill(store)

    class Killed(Exception):  # noqa: N818 - no error of the program
        pass

    class Fatal(dict[str, np.ndarray]):
        def items(self) -> object:  # type: ignore[override]
            raise Killed

    with pytest.raises(Killed):
        store.adopt(8, b"c" * 32, Fatal(), "global", {"gain": "9"})
    again = Store(tmp_path / "agent.sqlite")
    for opened in (store, again):
        assert (opened.state().release, opened.state().base, opened.text("gain")) == (7, BASE, "0.5")
    store.adopt(8, b"c" * 32, ADAPTERS, "global", {})
    assert again.state().release == 8
    store.close()
    again.close()


def test_a_new_package_forgets_adapters_and_base_and_keeps_release_and_outbox() -> None:
    store = Store(":memory:")
    fill(store)
    store.install(5, b"q" * 32, INITIAL * 2, TrainingPolicy(), SendingPolicy())
    assert store.state() == State(version=5, package=b"q" * 32, release=7, base=b"", answered=9)
    assert store.adapter("global") is None
    local = store.adapter("local")
    assert local is not None
    assert local.tolist() == (INITIAL * 2).tolist()
    assert store.text("choice") == "backbone"
    assert len(store.outbox()) == 1
    store.close()


def test_a_receipt_clears_one_update_once() -> None:
    store = Store(":memory:")
    for number in (3, 1, 2):
        store.answer(number, bytes([number]) * 32, b"", 0.0)
    assert [entry.round for entry in store.outbox()] == [1, 2, 3]
    assert store.clear(b"\x02" * 32)
    assert not store.clear(b"\x02" * 32)
    assert not store.clear(b"")
    assert [entry.round for entry in store.outbox()] == [1, 3]
    store.close()


def test_the_same_update_stands_in_the_outbox_once() -> None:
    store = Store(":memory:")
    for _ in range(2):
        store.answer(1, b"s" * 32, b"envelope", 0.0)
    assert len(store.outbox()) == 1
    store.close()


def test_a_full_outbox_drops_the_oldest() -> None:
    store = Store(":memory:")
    dropped = [
        store.answer(number, number.to_bytes(32, "big"), b"", 0.0) for number in range(1, MAX_OUTBOX + 4)
    ]
    assert dropped == [0] * MAX_OUTBOX + [1, 1, 1]
    assert [entry.round for entry in store.outbox()] == list(range(4, MAX_OUTBOX + 4))
    store.close()


def test_the_charter_can_change_without_a_new_package() -> None:
    store = Store(":memory:")
    fill(store)
    assert store.sending() == SENDING
    store.set_charter(5, TrainingPolicy("sgd"), SendingPolicy(bytes_per_day=9))
    assert store.policy().optimizer == "sgd"
    assert store.sending().bytes_per_day == 9
    assert store.state().version == 5
    store.close()


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(AgentError, match=r"agent\.sqlite: expected a schema version up to 3, got 9.*newer"):
        Store(path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(AgentError, match=r"agent\.sqlite: cannot open the store"):
        Store(path)
    with pytest.raises(AgentError, match="cannot open the store"):
        Store(tmp_path / "missing" / "agent.sqlite")


def test_a_store_of_the_version_before_is_opened_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    store = Store(path)
    fill(store)
    store.close()
    database = sqlite3.connect(path)  # as version 1 left it
    database.executescript("DROP TABLE traffic; PRAGMA user_version = 1;")
    database.close()
    store = Store(path)
    assert store.state() == State(version=4, package=PACKAGE, release=7, base=BASE, answered=9)
    assert [entry.round for entry in store.outbox()] == [9]
    store.note_traffic(5, 100)
    assert store.traffic_since(4) == 100
    store.close()
