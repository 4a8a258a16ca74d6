"""What each device may, and its certificates, on each kind of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.errors import ServerError
from server.identities import ACTIVE, QUARANTINED, REVOKED, NewCertificate, Refused
from server.store import Store
from tests.builders import private_key
from tests.server.databases import Database

NOW, DAY = 1_800_000_000.0, 86_400.0
KEY = private_key(1).public
LARGE = (1 << 159) - 1


@pytest.fixture
def store(tmp_path: Path, database: Database) -> Iterator[Store]:
    store = Store(tmp_path / "data", database(tmp_path / "data"))
    store.register_device("pump-1", KEY, NOW)
    yield store
    store.close()


def renew(
    store: Store, serial: int = 1, device: str = "pump-1", *, now: float = NOW, until: float = DAY
) -> bytes:
    request = serial.to_bytes(32, "big")
    made = NewCertificate(serial, request, now + until, f"pem {serial}".encode())
    return store.renew(device, request, now, lambda: made)


def status(store: Store) -> str:
    found = store.identity("pump-1")
    assert found is not None
    return found.status


def test_a_device_is_active_and_has_no_certificate_until_it_gets_one(store: Store) -> None:
    found = store.identity("pump-1")
    assert found is not None
    assert (found.key, found.status, found.certificate_until) == (KEY, ACTIVE, None)
    assert store.identity("pump-9") is None
    assert renew(store) == b"pem 1"
    found = store.identity("pump-1")
    assert found is not None
    assert found.certificate_until == NOW + DAY


def test_a_serial_is_kept_to_its_last_bit(store: Store) -> None:
    renew(store, LARGE)
    store.set_status("pump-1", REVOKED, "", NOW + 1)
    assert store.revoked_serials(NOW + 2) == [(LARGE, NOW + 1)]


def test_the_same_request_gets_the_same_certificate(store: Store) -> None:
    made = []

    def issue() -> NewCertificate:
        made.append(1)
        return NewCertificate(len(made), b"r" * 32, NOW + DAY, f"pem {len(made)}".encode())

    answers = {store.renew("pump-1", b"r" * 32, NOW, issue) for _ in range(3)}
    assert (answers, len(made)) == ({b"pem 1"}, 1)
    assert store.renew("pump-1", b"r" * 32, NOW + DAY + 1, issue) == b"pem 2"  # that one had ended


def test_two_devices_may_ask_with_the_same_bytes(store: Store) -> None:
    store.register_device("pump-2", private_key(2).public, NOW)
    request = b"r" * 32
    for serial, device in ((1, "pump-1"), (2, "pump-2")):
        made = NewCertificate(serial, request, NOW + DAY, device.encode())
        assert store.renew(device, request, NOW, lambda made=made: made) == device.encode()  # type: ignore[misc]


def test_only_registered_devices_that_are_not_revoked_renew(store: Store) -> None:
    with pytest.raises(Refused, match="not registered"):
        renew(store, device="pump-9")
    store.set_status("pump-1", QUARANTINED, "odd", NOW)
    renew(store)
    store.set_status("pump-1", REVOKED, "stolen", NOW)
    with pytest.raises(Refused, match="the device is revoked"):
        renew(store)
    with pytest.raises(Refused, match="the device is revoked"):
        renew(store, 2)
    assert len(store.certificates("pump-1")) == 1


def test_a_failure_keeps_nothing(store: Store) -> None:
    def fail() -> NewCertificate:
        raise ServerError("the CA has ended")

    with pytest.raises(ServerError):
        store.renew("pump-1", b"r" * 32, NOW, fail)
    assert store.certificates("pump-1") == []
    assert renew(store) == b"pem 1"


def test_quarantine_and_back(store: Store) -> None:
    assert store.set_status("pump-1", QUARANTINED, "odd updates", NOW)
    assert status(store) == QUARANTINED
    assert not store.set_status("pump-1", QUARANTINED, "again", NOW)
    [row] = store.devices()
    assert (row["status_reason"], row["status_at"]) == ("odd updates", NOW)
    assert store.set_status("pump-1", ACTIVE, "", NOW + 1)
    assert not store.set_status("pump-1", ACTIVE, "", NOW + 1)
    assert not store.set_status("pump-9", QUARANTINED, "", NOW)
    assert list(store.sessions_to_end()) == []


def test_a_revoked_device_stays_so(store: Store) -> None:
    assert store.set_status("pump-1", REVOKED, "stolen", NOW)
    for other in (ACTIVE, QUARANTINED, REVOKED):
        assert not store.set_status("pump-1", other, "", NOW + 1)
    assert status(store) == REVOKED
    [row] = store.devices()
    assert (row["status_reason"], row["status_at"]) == ("stolen", NOW)


def test_with_a_device_all_its_certificates_are_revoked(store: Store) -> None:
    store.register_device("pump-2", private_key(2).public, NOW)
    renew(store, 1, until=DAY)
    renew(store, 2, until=3 * DAY)
    renew(store, 3, "pump-2", until=9 * DAY)
    store.set_status("pump-1", REVOKED, "", NOW + 5)
    assert store.revoked_serials(NOW + 6) == [(1, NOW + 5), (2, NOW + 5)]
    assert store.revoked_serials(NOW + 2 * DAY) == [(2, NOW + 5)]  # the other one has ended by itself
    assert store.revoked_serials(NOW + 4 * DAY) == []
    assert [row["revoked_at"] for row in store.certificates("pump-2")] == [None]


def test_a_session_is_to_end_until_it_has_ended(store: Store) -> None:
    store.register_device("pump-0", private_key(2).public, NOW)
    store.set_status("pump-1", REVOKED, "", NOW)
    store.set_status("pump-0", REVOKED, "", NOW)
    assert list(store.sessions_to_end()) == ["pump-0", "pump-1"]
    store.note_session_ended("pump-1", NOW + 1)
    assert list(store.sessions_to_end()) == ["pump-0"]
    rows = {row["id"]: row for row in store.devices()}
    assert (rows["pump-1"]["session_ended_at"], rows["pump-1"]["online"]) == (NOW + 1, False)


def test_a_reason_of_any_length_and_text_is_kept(store: Store) -> None:
    store.set_status("pump-1", QUARANTINED, "\0ü" * 400, NOW)
    [row] = store.devices()
    assert len(row["status_reason"]) == 500
    assert "\0" not in row["status_reason"]


def test_certificates_are_listed_newest_first(store: Store) -> None:
    for serial in (3, 1, 2):
        renew(store, serial, now=NOW + serial)
    assert [int(row["serial"], 16) for row in store.certificates("pump-1")] == [3, 2, 1]
    assert store.certificates("pump-9") == []
