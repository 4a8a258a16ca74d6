"""The operators' commands on devices, run as they are typed."""

import json
from pathlib import Path
from typing import Any

import pytest

from server import device_commands, revocation
from server.admission import Claim, Pending
from server.errors import ServerError
from server.identities import NewCertificate
from server.store import Store
from tests.builders import private_key
from tests.server.test_command_line import Operator

KEY, OTHER = private_key(1).public, private_key(2).public
FAR = 4_000_000_000.0


class Fleet(Operator):
    """Commands on a store in which devices enrol."""

    def with_store(self, act: Any) -> Any:
        store = Store(self.folder / "data")
        try:
            return act(store)
        finally:
            store.close()

    def enrol(self, device: str, token: str = "", number: int = 1, *, approval: bool = False) -> bytes:
        claim = Claim(device, private_key(number).public, token, bytes([number]) * 32)
        serial = int.from_bytes(device.encode(), "big") * 256 + number
        made = NewCertificate(serial, claim.request, FAR, b"pem")
        found: bytes = self.with_store(
            lambda store: store.enrol(claim, 1000.0, lambda: made, approval=approval, agent="0.1")
        )
        return found

    def token(self, device: str, *arguments: str) -> str:
        status, out, _ = self("devices", "token", device, *arguments)
        assert status == 0
        name, token = out.split()
        assert name == device
        return token

    def device(self, name: str = "pump-1") -> dict[str, Any]:
        [row] = self.table("devices", "show", name)
        return row

    def enrolled(self, name: str = "pump-1") -> None:
        self.enrol(name, self.token(name))


@pytest.fixture
def fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fleet:
    return Fleet(tmp_path, capsys)


def test_tokens_are_printed_one_a_line(fleet: Fleet) -> None:
    status, out, errors = fleet("devices", "token", "pump-1", "pump-2")
    assert (status, errors) == (0, "")
    tokens = dict(line.split() for line in out.splitlines())
    assert set(tokens) == {"pump-1", "pump-2"}
    assert fleet.enrol("pump-2", tokens["pump-2"]) == b"pem"


def test_tokens_are_written_for_their_owner_alone(fleet: Fleet) -> None:
    folder = fleet.folder / "tokens"
    status, out, _ = fleet("devices", "token", "pump-1", "pump-2", "--output", str(folder), "--days", "30")
    assert status == 0
    assert out == f"wrote 2 tokens to {folder}; each is good once, for 30 days\n"
    assert {path.name for path in folder.iterdir()} == {"pump-1.token", "pump-2.token"}
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        token = path.read_text("ascii").strip()
        assert token not in out
        assert fleet.enrol(path.stem, token) == b"pem"
    assert "never overwritten" in fleet.mistake("devices", "token", "pump-1", "--output", str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("token", "a/b"), "expected 1 to 64 characters"),
        (("token", "pump-1", "graftwork-server-pumps"), "does not begin with graftwork-"),
        (("add", "graftwork-server-pumps", KEY.raw.hex()), "does not begin with graftwork-"),
        (("token", "pump-1", "--days", "0"), "--days: expected 0.01 to 3650"),
        (("token", "pump-1", "--days", "nan"), "--days: expected 0.01 to 3650"),
        (("token", "pump-1", "--days", "inf"), "--days: expected 0.01 to 3650"),
        (
            ("approve", "pump-1"),
            "no device 'pump-1' waits for approval; see: graftwork-server devices requests",
        ),
        (("approve", "pump-1", "--key", "00"), "expected an Ed25519 public key of 32 bytes"),
        (("revoke", "pump-9"), "no device 'pump-9' is registered"),
        (("quarantine", "pump-9"), "no device 'pump-9' is registered"),
        (("reinstate", "pump-9"), "no device 'pump-9' is registered"),
        (("show", "pump-9"), "no device 'pump-9' is registered"),
    ],
)
def test_mistakes_are_one_line(fleet: Fleet, arguments: tuple[str, ...], message: str) -> None:
    assert message in fleet.mistake("devices", *arguments)


def test_a_device_that_waits_is_let_in(fleet: Fleet) -> None:
    with pytest.raises(Pending):
        fleet.enrol("pump-1", approval=True)
    [row] = fleet.table("devices", "requests")
    assert (row["device"], row["public_key"], row["agent_version"]) == ("pump-1", KEY.raw.hex(), "0.1")
    assert "pump-1" in fleet("devices", "requests")[1]
    status, out, _ = fleet("devices", "approve", "pump-1")
    assert status == 0
    assert f"approved pump-1 with key {KEY.raw.hex()}" in out
    assert fleet.enrol("pump-1", approval=True) == b"pem"
    assert fleet.table("devices", "requests") == []


def test_of_two_keys_the_one_that_the_device_shows_is_named(fleet: Fleet) -> None:
    for number in (1, 2):
        with pytest.raises(Pending):
            fleet.enrol("pump-1", number=number, approval=True)
    assert "asked for with several keys" in fleet.mistake("devices", "approve", "pump-1")
    assert fleet("devices", "approve", "pump-1", "--key", OTHER.raw.hex())[0] == 0
    assert fleet.enrol("pump-1", number=2, approval=True) == b"pem"


def test_a_device_is_shown_with_its_certificates(fleet: Fleet) -> None:
    fleet.enrolled()
    row = fleet.device()
    assert (row["id"], row["status"], row["certificate_until"]) == ("pump-1", "active", FAR)
    [certificate] = row["certificates"]
    assert (certificate["not_after"], certificate["revoked_at"]) == (FAR, None)
    text = " ".join(fleet("devices", "show", "pump-1")[1].split())
    assert "2096-10-02" in text  # with its year: a certificate is good for months
    assert "2096" in "".join(fleet("devices", "list")[1].split())


def test_quarantine_and_back(fleet: Fleet) -> None:
    fleet.enrolled()
    assert "in quarantine" in fleet("devices", "quarantine", "pump-1", "--reason", "odd updates")[1]
    row = fleet.device()
    assert (row["status"], row["status_reason"]) == ("quarantined", "odd updates")
    assert "is quarantined already" in fleet.mistake("devices", "quarantine", "pump-1")
    assert fleet("devices", "reinstate", "pump-1")[1] == "reinstated pump-1\n"
    assert fleet.device()["status"] == "active"
    assert "is active already" in fleet.mistake("devices", "reinstate", "pump-1")


def test_without_a_broker_directory_the_rest_is_said_to_be_the_operators(fleet: Fleet) -> None:
    fleet.enrolled()
    status, out, errors = fleet("devices", "revoke", "pump-1", "--reason", "stolen")
    assert (status, errors) == (0, "")
    assert "revoked pump-1: nothing that it says is taken any more" in out
    assert "end sessions and certificates at the broker by hand" in out
    assert (fleet.device()["status"], fleet.device()["status_reason"]) == ("revoked", "stolen")
    for command in ("revoke", "quarantine", "reinstate"):
        status, _, errors = fleet("devices", command, "pump-1")
        assert (status, "is revoked already" in errors) == (1, True)
    assert "enrols anew" in fleet("devices", "reinstate", "pump-1")[2]


def test_a_device_with_a_certificate_is_revoked_before_it_is_removed(fleet: Fleet) -> None:
    fleet.enrolled()
    assert "revoke it first (devices revoke)" in fleet.mistake("devices", "remove", "pump-1")
    fleet("devices", "revoke", "pump-1")
    assert fleet("devices", "remove", "pump-1") == (0, "removed pump-1\n", "")
    assert fleet.table("devices") == []


def test_of_several_that_are_revoked_one_unknown_name_holds_up_none(fleet: Fleet) -> None:
    fleet.enrolled()
    status, out, errors = fleet("devices", "revoke", "unknown", "pump-1", "pump-1")
    assert (status, out.count("revoked pump-1")) == (1, 1)
    assert "no device 'unknown' is registered" in errors
    assert fleet.device()["status"] == "revoked"


class TestAtTheBroker:
    @pytest.fixture
    def ended(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A configured broker that is only told to end sessions."""
        broker, told = fleet.folder / "broker", fleet.folder / "told"
        assert fleet("ca", "init")[0] == 0
        assert fleet("broker-config", str(broker), "--host", "localhost")[0] == 0
        fleet.configure(f'[trust]\nbroker_directory = "broker"\nrestart_command = ["touch", "{told}"]\n')
        ended: list[str] = []
        monkeypatch.setattr(revocation, "end_session", lambda _broker, device: ended.append(device))
        monkeypatch.setattr(revocation, "SETTLE_SECONDS", 0.01)
        monkeypatch.setattr(revocation, "RETRY_SECONDS", 0.01)
        fleet.enrolled()
        return ended

    def test_a_revoked_device_is_on_the_list_and_gone_when_the_command_returns(
        self, fleet: Fleet, ended: list[str]
    ) -> None:
        status, out, errors = fleet("devices", "revoke", "pump-1")
        assert (status, errors) == (0, "")
        assert "certificates are on the broker's list, and sessions were ended" in out
        assert ended == ["pump-1"]
        assert (fleet.folder / "told").exists()
        assert fleet.with_store(lambda store: list(store.sessions_to_end())) == []

    def test_while_the_broker_is_away_the_command_says_so_and_the_server_goes_on(
        self, fleet: Fleet, ended: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_: object) -> None:
            raise ServerError("the broker is away")

        monkeypatch.setattr(revocation, "end_session", away)
        monkeypatch.setattr(device_commands, "PATIENCE_SECONDS", 0.0)
        status, out, errors = fleet("devices", "revoke", "pump-1")
        assert status == 1
        assert "revoked pump-1" in out
        assert "a running server goes on trying" in errors
        assert ended == []
        assert fleet.device()["status"] == "revoked"
        assert fleet.with_store(lambda store: list(store.sessions_to_end())) == ["pump-1"]
        assert "session that is not ended yet" in fleet.mistake("devices", "remove", "pump-1")


def test_the_list_is_json_for_programs(fleet: Fleet) -> None:
    fleet("devices", "add", "by-hand", KEY.raw.hex())
    status, out, _ = fleet("devices", "--json")
    assert status == 0
    [row] = json.loads(out)
    assert (row["id"], row["status"], row["certificate_until"]) == ("by-hand", "active", None)
    assert [row["id"] for row in json.loads(fleet("devices", "list", "--json")[1])] == ["by-hand"]
