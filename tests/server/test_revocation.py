"""Revocation at the broker: the list first, then the session, and again after every crash between.

The broker is a command that leaves a line whenever it is started anew, or a program called mosquitto.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from agent.identity import Identity
from runtime.broker import BrokerConfig
from server import broker_config, broker_restart, revocation
from server.admission import Claim
from server.authority import DIRECTORY, Authority
from server.broker_config import READ
from server.broker_settings import REVOKED as LIST
from server.config import ServerConfig, TrustPolicy
from server.errors import ServerError
from server.identities import QUARANTINED, REVOKED, NewCertificate
from server.revocation import RETRY_SECONDS, SETTLE_SECONDS, START_SECONDS, Revocations, open_revocations
from server.store import Store
from tests.builders import Clock, private_key
from tests.server.databases import Database
from tests.server.running_broker import running_broker

NOW, DAY = 1_800_000_000.0, 86_400.0


class Plant:
    """Enrolled devices, a broker's directory, and a broker that only notes whom it sent away."""

    def __init__(self, folder: Path, database: Database, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.clock = folder, Clock(NOW)
        self.data, self.broker = folder / "data", folder / "broker"
        self.data.mkdir()
        self.url = database(self.data)
        self.store = Store(self.data, self.url)
        self.authority = Authority.create(self.data / DIRECTORY, "pumps", NOW)
        broker_config.write(self.broker, "pumps", self.authority, hosts=["localhost"], now=NOW)
        self.restarted = folder / "restarted"
        self.ended: list[str] = []
        self.away = False
        patch.setattr(revocation, "end_session", self._end_session)
        self.start()
        self.tick()
        self.tick(SETTLE_SECONDS)
        assert self.restarts() == 0  # nobody is revoked: there is nothing to read

    def start(self, *command: str) -> None:
        self.revocations = Revocations(
            self.store,
            self.authority,
            BrokerConfig(),
            self.clock,
            directory=self.broker,
            restart_command=command or ("sh", "-c", f"echo x >> {self.restarted}"),
        )

    def restart(self, *command: str) -> None:
        self.store.close()
        self.store = Store(self.data, self.url)
        self.start(*command)

    def _end_session(self, _broker: BrokerConfig, device: str) -> None:
        if self.away:
            raise ServerError("the broker is away")
        self.ended.append(device)

    def enrol(self, device: str, number: int = 1, *, replace: bool = False) -> int:
        """Returns the serial."""
        csr = Identity(self.folder / f"{device}-{number}", device).signing_request()
        token = self.store.make_tokens([device], NOW + 99 * DAY, NOW, replace=replace)[device]
        issued = self.authority.issue_device(csr, device, self.clock(), days=60)
        made = NewCertificate(issued.serial, bytes([number]) * 32, issued.not_after, issued.certificate)
        claim = Claim(device, private_key(number).public, token, made.request)
        self.store.enrol(claim, self.clock(), lambda: made, approval=False)
        return issued.serial

    def revoke(self, device: str) -> None:
        assert self.store.set_status(device, REVOKED, "stolen", self.clock())

    def listed(self) -> set[int]:
        return {entry.serial_number for entry in x509.load_pem_x509_crl((self.broker / LIST).read_bytes())}

    def restarts(self) -> int:
        return len(self.restarted.read_text("ascii").split()) if self.restarted.exists() else 0

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.revocations.tick()


@pytest.fixture
def plant(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    plant = Plant(tmp_path, database, monkeypatch)
    yield plant
    plant.store.close()


@pytest.fixture
def on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    plant = Plant(tmp_path, lambda _: "", monkeypatch)
    yield plant
    plant.store.close()


def test_first_the_list_then_the_session(plant: Plant) -> None:
    serial, other = plant.enrol("pump-1"), plant.enrol("pump-2", 2)
    plant.tick()
    assert (plant.restarts(), plant.ended) == (0, [])
    plant.revoke("pump-1")
    plant.tick()
    assert (plant.listed(), plant.restarts(), plant.ended) == ({serial}, 1, [])
    plant.tick(SETTLE_SECONDS / 2)  # the broker reads it meanwhile
    assert plant.ended == []
    plant.tick(SETTLE_SECONDS / 2)
    assert (plant.ended, list(plant.store.sessions_to_end())) == (["pump-1"], [])
    plant.tick(100)
    assert (plant.restarts(), plant.ended) == (1, ["pump-1"])
    assert other not in plant.listed()


def test_one_that_is_revoked_in_the_middle_of_a_tick_is_listed_first(
    on_sqlite: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's command is a process of its own: it may commit between any two queries of the server."""
    plant = on_sqlite
    serial = plant.enrol("pump-1")
    for name in ("sessions_to_end", "revocations"):
        ask = getattr(plant.store, name)

        def asked(ask: Callable[[], object] = ask) -> object:
            found = ask()
            plant.store.set_status("pump-1", REVOKED, "stolen", plant.clock())
            return found

        with monkeypatch.context() as patch:
            patch.setattr(plant.store, name, asked)
            plant.tick()
        assert plant.ended == []
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    assert (plant.listed(), plant.ended) == ({serial}, ["pump-1"])


def test_a_clock_that_goes_back_keeps_no_revoked_device_alive(plant: Plant) -> None:
    plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.tick()
    plant.clock.advance(-DAY)
    plant.tick()
    assert plant.ended == ["pump-1"]


def test_several_at_once_are_one_list(plant: Plant) -> None:
    serials = {plant.enrol(f"pump-{number}", number) for number in (1, 2, 3)}
    for number in (1, 2, 3):
        plant.revoke(f"pump-{number}")
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    assert (plant.listed(), plant.restarts(), plant.ended) == (serials, 1, ["pump-1", "pump-2", "pump-3"])


def test_one_that_is_revoked_while_the_broker_reads_is_listed_before_its_session_ends(plant: Plant) -> None:
    first, second = plant.enrol("pump-1"), plant.enrol("pump-2", 2)
    plant.revoke("pump-1")
    plant.tick()
    plant.revoke("pump-2")
    plant.tick(SETTLE_SECONDS)
    assert (plant.listed(), plant.ended) == ({first, second}, [])
    plant.tick(SETTLE_SECONDS)
    assert plant.ended == ["pump-1", "pump-2"]


def test_a_server_that_is_killed_before_the_list_writes_it_after_the_start(plant: Plant) -> None:
    serial = plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.restart()
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    assert (plant.listed(), plant.ended) == ({serial}, ["pump-1"])


def test_a_server_that_is_killed_between_list_and_session_ends_it_after_the_start(plant: Plant) -> None:
    serial = plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.tick()
    plant.restart()
    plant.tick()  # the note says that the broker has read the list
    assert (plant.listed(), plant.restarts(), plant.ended) == ({serial}, 1, ["pump-1"])


@pytest.mark.parametrize("survives", ["nothing", "the list", "the list, and the note on another one"])
def test_a_server_that_is_killed_before_the_broker_has_read_the_list_has_it_read(
    plant: Plant, survives: str
) -> None:
    serial = plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.tick()
    listed, note = plant.broker / LIST, plant.broker / READ
    if survives == "nothing":
        listed.unlink()
    if survives == "the list, and the note on another one":
        note.write_text("0" * 64)
    else:
        note.unlink()
    plant.restart()
    plant.tick()
    assert (plant.restarts(), plant.ended) == (2, [])
    plant.tick(SETTLE_SECONDS)
    assert (plant.listed(), plant.restarts(), plant.ended) == ({serial}, 2, ["pump-1"])


def test_a_list_that_was_changed_by_hand_is_read_again(plant: Plant) -> None:
    """With a device missing from it, the note beside it does not fit."""
    serial = plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    broker_config.write_revocations(plant.broker, plant.authority, [], NOW)
    plant.restart()
    plant.tick()
    assert (plant.listed(), plant.restarts()) == ({serial}, 2)


def test_a_start_of_the_server_disturbs_no_broker_that_has_read_the_list(plant: Plant) -> None:
    plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.tick()
    for _ in range(3):
        plant.restart()
        plant.tick(SETTLE_SECONDS)
    assert (plant.restarts(), plant.ended) == (1, ["pump-1"])


def test_the_server_and_an_operators_command_start_the_broker_anew_once(plant: Plant) -> None:
    plant.enrol("pump-1")
    plant.revoke("pump-1")
    server = plant.revocations
    with broker_restart.alone(plant.broker) as alone:
        assert alone
        plant.tick()
        assert (plant.restarts(), plant.listed()) == (0, set())  # the other one is at it
    plant.start()
    plant.tick()
    plant.revocations = server
    plant.tick(SETTLE_SECONDS)
    assert (plant.restarts(), plant.ended) == (1, ["pump-1"])


def test_a_server_that_is_killed_in_the_middle_of_it_goes_on(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    serials = {plant.enrol("pump-1"), plant.enrol("pump-2", 2)}
    plant.revoke("pump-1")
    plant.revoke("pump-2")
    plant.tick()
    note = plant.store.note_session_ended

    def die(device: str, now: float) -> None:
        note(device, now)
        raise Killed

    monkeypatch.setattr(plant.store, "note_session_ended", die)
    with pytest.raises(Killed):
        plant.tick(SETTLE_SECONDS)
    plant.restart()
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    assert plant.ended == ["pump-1", "pump-2"]
    assert plant.listed() == serials


def test_while_the_broker_is_away_it_is_tried_again(plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.away = True
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    assert caplog.text == ""  # it is just starting
    plant.tick(START_SECONDS)
    assert "revocations do not reach the broker, which is tried again: the broker is away" in caplog.text
    plant.away = False
    plant.tick(RETRY_SECONDS / 2)
    assert plant.ended == []
    plant.tick(RETRY_SECONDS / 2)
    assert (plant.ended, plant.restarts()) == (["pump-1"], 1)


@pytest.mark.parametrize("command", [("false",), ("/nonexistent/restart",)])
def test_no_session_ends_before_the_broker_has_the_list(
    plant: Plant, command: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """The device would come back at once, with the certificate that the broker still takes."""
    plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.start(*command)
    for _ in range(3):
        plant.tick(RETRY_SECONDS)
    assert "trust.restart_command failed" in caplog.text
    assert plant.ended == []
    plant.start()
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    assert plant.ended == ["pump-1"]


def test_a_disk_that_is_full_is_tried_again(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant.enrol("pump-1")
    plant.revoke("pump-1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(broker_config.whole_files, "write", full)
        plant.tick()
    assert "No space left" in caplog.text
    assert plant.restarts() == 0
    plant.tick(RETRY_SECONDS)
    plant.tick(SETTLE_SECONDS)
    assert plant.ended == ["pump-1"]


def test_the_key_before_a_repair_is_listed_and_its_session_ends(plant: Plant) -> None:
    """The card that was replaced may have been stolen: its certificate must not outlive it."""
    before, after = plant.enrol("pump-1"), plant.enrol("pump-1", 2, replace=True)
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    assert (plant.listed(), plant.ended) == ({before}, ["pump-1"])
    assert after not in plant.listed()
    plant.tick(100)
    assert plant.ended == ["pump-1"]


def test_a_device_that_came_back_is_revoked_like_any_other(plant: Plant) -> None:
    first = plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.tick()
    second = plant.enrol("pump-1", 2, replace=True)  # before its session was ended
    plant.revoke("pump-1")
    plant.tick(SETTLE_SECONDS)
    assert (plant.listed(), plant.ended) == ({first, second}, [])
    plant.tick(SETTLE_SECONDS)
    assert plant.ended == ["pump-1"]


def test_a_device_without_a_certificate_needs_no_list(plant: Plant) -> None:
    plant.store.register_device("by-hand", private_key(9).public, NOW)
    plant.revoke("by-hand")
    plant.tick()
    assert (plant.ended, plant.restarts()) == (["by-hand"], 0)


def test_what_has_ended_by_itself_leaves_the_list(plant: Plant) -> None:
    plant.enrol("pump-1")
    plant.revoke("pump-1")
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    plant.clock.advance(61 * DAY)
    later = plant.enrol("pump-2", 2)
    plant.revoke("pump-2")
    plant.tick()
    assert plant.listed() == {later}


def test_quarantine_is_nothing_for_the_broker(plant: Plant) -> None:
    plant.enrol("pump-1")
    plant.store.set_status("pump-1", QUARANTINED, "odd", NOW)
    plant.tick()
    plant.tick(SETTLE_SECONDS)
    assert (plant.ended, plant.restarts()) == ([], 0)


class TestWithoutACommand:
    def start(self, plant: Plant) -> None:
        plant.revocations = Revocations(
            plant.store, plant.authority, BrokerConfig(), plant.clock, directory=plant.broker
        )
        plant.enrol("pump-1")
        plant.revoke("pump-1")

    def test_the_broker_is_ended_and_reads_the_list_when_it_starts(self, on_sqlite: Plant) -> None:
        with running_broker(on_sqlite.broker) as broker:
            self.start(on_sqlite)
            on_sqlite.tick()
            assert broker.wait(timeout=60) == 0
        assert on_sqlite.ended == []
        on_sqlite.away = True
        on_sqlite.tick(SETTLE_SECONDS)
        on_sqlite.away = False
        with running_broker(on_sqlite.broker):
            on_sqlite.tick(SETTLE_SECONDS)
        assert on_sqlite.ended == ["pump-1"]

    def test_one_that_nobody_starts_again_is_an_error_that_says_so(
        self, on_sqlite: Plant, caplog: pytest.LogCaptureFixture
    ) -> None:
        with running_broker(on_sqlite.broker):
            self.start(on_sqlite)
            on_sqlite.tick()
        on_sqlite.away = True
        on_sqlite.tick(START_SECONDS)
        assert "what supervises it must start it again whenever it ends" in caplog.text
        assert on_sqlite.ended == []

    def test_a_broker_that_answers_but_is_not_seen_may_not_have_read_it(
        self, on_sqlite: Plant, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It runs in a container, or on another machine."""
        self.start(on_sqlite)
        on_sqlite.tick()
        on_sqlite.tick(SETTLE_SECONDS)
        assert on_sqlite.ended == ["pump-1"]
        assert "start it anew, and set trust.restart_command" in caplog.text
        on_sqlite.restart()
        on_sqlite.tick()
        on_sqlite.tick(SETTLE_SECONDS)
        assert on_sqlite.restarts() == 1  # nobody knows whether the list was read

    def test_a_broker_of_another_user_is_named(
        self, on_sqlite: Plant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def denied(_pid: int, _signal: signal.Signals) -> None:
            raise PermissionError(1, "Operation not permitted")

        with running_broker(on_sqlite.broker), monkeypatch.context() as patch:
            patch.setattr(os, "kill", denied)
            self.start(on_sqlite)
            on_sqlite.tick()
        assert "cannot be ended, so that it reads the list of revoked certificates" in caplog.text
        assert "set trust.restart_command" in caplog.text
        assert on_sqlite.ended == []


def test_where_nothing_is_configured_there_is_nothing_to_do(on_sqlite: Plant) -> None:
    data, broker = str(on_sqlite.data), str(on_sqlite.broker)
    configured = ServerConfig("pumps", data, trust=TrustPolicy(broker_directory=broker))
    assert open_revocations(configured, on_sqlite.store, on_sqlite.clock) is not None
    assert open_revocations(ServerConfig("pumps", data), on_sqlite.store, on_sqlite.clock) is None
    elsewhere = ServerConfig("pumps", str(on_sqlite.folder), trust=TrustPolicy(broker_directory=broker))
    assert open_revocations(elsewhere, on_sqlite.store, on_sqlite.clock) is None
