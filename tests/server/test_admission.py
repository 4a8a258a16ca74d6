"""Who is let in, on each kind of database: tokens, approvals, and what happens to the key before."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.signing import PublicKey
from server import admission
from server.admission import TOKEN_BYTES, Claim, Pending, token_sha256
from server.errors import ServerError
from server.identities import ACTIVE, QUARANTINED, REVOKED, NewCertificate, Refused
from server.store import Store
from tests.builders import private_key
from tests.server.databases import Database

NOW, DAY = 1_800_000_000.0, 86_400.0
ONE, TWO, THREE = (private_key(number).public for number in (1, 2, 3))


class Plant:
    """A store, and certificates that are nothing but their number."""

    def __init__(self, directory: Path, url: str) -> None:
        self.store = Store(directory, url)
        self.made = 0

    def issue(self, request: bytes) -> Callable[[], NewCertificate]:
        def make() -> NewCertificate:
            self.made += 1
            return NewCertificate(self.made, request, NOW + 60 * DAY, f"certificate {self.made}".encode())

        return make

    def token(self, device: str = "pump-1", *, until: float = NOW + DAY, replace: bool = False) -> str:
        return self.store.make_tokens([device], until, NOW, replace=replace)[device]

    def enrol(
        self,
        device: str = "pump-1",
        key: PublicKey = ONE,
        token: str = "",
        request: bytes = b"r" * 32,
        *,
        now: float = NOW,
        approval: bool = False,
        agent: str = "0.1",
    ) -> bytes:
        claim = Claim(device, key, token, request)
        return self.store.enrol(claim, now, self.issue(request), approval=approval, agent=agent)

    def status(self, device: str = "pump-1") -> tuple[PublicKey, str]:
        found = self.store.identity(device)
        assert found is not None
        return found.key, found.status


@pytest.fixture
def plant(tmp_path: Path, database: Database) -> Iterator[Plant]:
    plant = Plant(tmp_path / "data", database(tmp_path / "data"))
    yield plant
    plant.store.close()


def test_a_token_is_good_once_for_its_device(plant: Plant) -> None:
    token = plant.token()
    with pytest.raises(Refused, match="not one of this federation for this device"):
        plant.enrol("pump-2", token=token)
    assert plant.enrol(token=token) == b"certificate 1"
    assert plant.status() == (ONE, ACTIVE)
    with pytest.raises(Refused, match="copy of another device's card"):
        plant.enrol(key=TWO, token=token)
    assert plant.enrol(token=token) == b"certificate 1"
    assert plant.made == 1


def test_tokens_are_random_and_only_their_hashes_are_kept(plant: Plant) -> None:
    made = plant.store.make_tokens(["a", "b", "c"], NOW + DAY, NOW)
    assert set(made) == {"a", "b", "c"}
    assert len(set(made.values())) == 3
    assert all(len(bytes.fromhex(token)) == TOKEN_BYTES for token in made.values())
    with plant.store._database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT sha256, device FROM tokens").fetchall()
    assert {bytes(row[0]): row[1] for row in rows} == {
        token_sha256(token): name for name, token in made.items()
    }


def test_several_tokens_of_a_device_are_each_good_until_it_is_there(plant: Plant) -> None:
    first, second = plant.token(), plant.token()
    assert plant.enrol(token=second) == b"certificate 1"
    with pytest.raises(Refused, match="needs a token with --replace"):
        plant.enrol(key=TWO, token=first)


@pytest.mark.parametrize("token", ["", "0" * 40, "x", "\0", "ü" * 128])
def test_without_a_token_of_this_federation_nobody_is_let_in(plant: Plant, token: str) -> None:
    plant.token()
    with pytest.raises(Refused, match="token"):
        plant.enrol(token=token)
    assert plant.store.identity("pump-1") is None
    assert plant.made == 0


def test_a_token_ends_when_it_ends(plant: Plant) -> None:
    token = plant.token(until=NOW + 5)
    with pytest.raises(Refused, match="the token has expired"):
        plant.enrol(token=token, now=NOW + 6)
    assert plant.enrol(token=token, now=NOW + 5) == b"certificate 1"


def test_what_fails_uses_up_no_token(plant: Plant) -> None:
    token = plant.token()

    def fail() -> NewCertificate:
        raise ServerError("the request is none")

    with pytest.raises(ServerError):
        plant.store.enrol(Claim("pump-1", ONE, token, b"r" * 32), NOW, fail, approval=False)
    assert plant.store.identity("pump-1") is None
    assert plant.enrol(key=TWO, token=token) == b"certificate 1"


def test_another_key_needs_a_token_made_for_replacing(plant: Plant) -> None:
    plant.enrol(token=plant.token())
    with pytest.raises(Refused, match="a token made with --replace is needed"):
        plant.enrol(key=TWO)
    with pytest.raises(Refused, match="needs a token with --replace"):
        plant.enrol(key=TWO, token=plant.token())
    assert plant.enrol(key=TWO, token=plant.token(replace=True), request=b"s" * 32) == b"certificate 2"
    assert plant.status() == (TWO, ACTIVE)


def test_the_key_before_loses_its_certificates_and_its_session(plant: Plant) -> None:
    plant.enrol(token=plant.token())
    plant.enrol(request=b"s" * 32)
    assert list(plant.store.sessions_to_end()) == []
    plant.enrol(key=TWO, token=plant.token(replace=True), request=b"t" * 32, now=NOW + 7)
    assert plant.store.revoked_serials(NOW + 7) == [(1, NOW + 7), (2, NOW + 7)]
    assert list(plant.store.sessions_to_end()) == ["pump-1"]
    plant.store.note_session_ended("pump-1", NOW + 8)
    assert list(plant.store.sessions_to_end()) == []
    assert [row["revoked_at"] for row in plant.store.certificates("pump-1")].count(None) == 1


def test_a_quarantine_does_not_forget_the_session_of_the_key_before(plant: Plant) -> None:
    plant.enrol(token=plant.token())
    plant.enrol(key=TWO, token=plant.token(replace=True), request=b"s" * 32)
    plant.store.set_status("pump-1", QUARANTINED, "odd", NOW)
    assert list(plant.store.sessions_to_end()) == ["pump-1"]


def test_a_used_token_undoes_no_replacement(plant: Plant) -> None:
    first, second = plant.token(replace=True), plant.token(replace=True)
    plant.enrol(token=first)
    plant.enrol(key=TWO, token=second, request=b"s" * 32)
    with pytest.raises(Refused, match="removed or replaced since"):
        plant.enrol(key=ONE, token=first, request=b"t" * 32)
    assert plant.status() == (TWO, ACTIVE)


def test_a_used_token_undoes_no_removal(plant: Plant) -> None:
    token = plant.token()
    plant.enrol(token=token)
    plant.store.set_status("pump-1", REVOKED, "sold", NOW)
    plant.store.note_session_ended("pump-1", NOW)
    assert plant.store.remove_device("pump-1")
    for key in (ONE, TWO):
        with pytest.raises(Refused, match="the token was used"):
            plant.enrol(key=key, token=token)
    assert plant.store.identity("pump-1") is None


def test_a_device_whose_session_stands_cannot_be_removed(plant: Plant) -> None:
    """Else nobody would know any more that the broker has to be told."""
    plant.enrol(token=plant.token())
    with pytest.raises(ServerError, match="has a certificate: revoke it first"):
        plant.store.remove_device("pump-1")
    plant.store.set_status("pump-1", REVOKED, "sold", NOW)
    with pytest.raises(ServerError, match="session that is not ended yet"):
        plant.store.remove_device("pump-1")
    plant.store.note_session_ended("pump-1", NOW)
    assert plant.store.remove_device("pump-1")
    assert plant.store.revoked_serials(NOW) == [(1, NOW)]  # its certificate stays on the list


def test_a_revoked_key_is_refused_and_a_new_one_may_come(plant: Plant) -> None:
    plant.enrol(token=plant.token())
    plant.store.set_status("pump-1", REVOKED, "stolen", NOW)
    for token in ("", plant.token(), plant.token(replace=True)):
        with pytest.raises(Refused, match="this key was revoked"):
            plant.enrol(token=token)
    assert plant.enrol(key=TWO, token=plant.token(replace=True), request=b"s" * 32) == b"certificate 2"
    assert plant.status() == (TWO, ACTIVE)


def test_a_device_in_quarantine_may_renew_and_stays_there(plant: Plant) -> None:
    plant.enrol(token=plant.token())
    plant.store.set_status("pump-1", QUARANTINED, "odd", NOW)
    assert plant.enrol(request=b"s" * 32) == b"certificate 2"
    assert plant.status() == (ONE, QUARANTINED)


def test_a_device_registered_by_hand_gets_a_certificate_without_a_token(plant: Plant) -> None:
    plant.store.register_device("pump-1", ONE, NOW)
    assert plant.enrol() == b"certificate 1"
    with pytest.raises(Refused, match="registered with another key"):
        plant.enrol(key=TWO, approval=True)


def test_a_request_of_its_own_gets_a_certificate_of_its_own(plant: Plant) -> None:
    plant.enrol(token=plant.token())
    assert plant.enrol(request=b"s" * 32) == b"certificate 2"
    assert plant.enrol() == b"certificate 1"
    assert plant.enrol(now=NOW + 61 * DAY) == b"certificate 3"  # what has ended is no answer


def test_without_a_token_an_operator_decides(plant: Plant) -> None:
    for moment in range(3):
        with pytest.raises(Pending):
            plant.enrol(approval=True, now=NOW + moment)
    [row] = plant.store.requests()
    assert (row["device"], bytes(row["public_key"]), row["asked_at"], row["agent_version"]) == (
        "pump-1", ONE.raw, NOW + 2, "0.1",
    )  # fmt: skip
    assert plant.store.approve("pump-1", None, NOW) == ONE.raw
    assert plant.enrol(approval=True) == b"certificate 1"
    assert plant.store.requests() == []


def test_an_approval_counts_only_while_operators_may_approve(plant: Plant) -> None:
    with pytest.raises(Pending):
        plant.enrol(approval=True)
    plant.store.approve("pump-1", None, NOW)
    with pytest.raises(Refused, match="a one-time token is needed"):
        plant.enrol(approval=False)


def test_of_several_keys_the_operator_names_one(plant: Plant) -> None:
    for key in (ONE, TWO):
        with pytest.raises(Pending):
            plant.enrol(key=key, approval=True)
    with pytest.raises(ServerError, match="asked for with several keys"):
        plant.store.approve("pump-1", None, NOW)
    with pytest.raises(ServerError, match="no device 'pump-1' waits"):
        plant.store.approve("pump-1", THREE.raw, NOW)
    with pytest.raises(ServerError, match="no device 'pump-9' waits"):
        plant.store.approve("pump-9", None, NOW)
    assert plant.store.approve("pump-1", TWO.raw, NOW) == TWO.raw
    with pytest.raises(Pending):
        plant.enrol(key=ONE, approval=True)
    assert plant.enrol(key=TWO, approval=True) == b"certificate 1"
    with pytest.raises(Refused, match="registered with another key"):
        plant.enrol(key=ONE, approval=True)


def test_a_wrong_token_is_no_request_for_approval(plant: Plant) -> None:
    with pytest.raises(Refused, match="not one of this federation"):
        plant.enrol(token="0" * 40, approval=True)
    assert plant.store.requests() == []


def test_a_token_needs_no_approval(plant: Plant) -> None:
    with pytest.raises(Pending):
        plant.enrol(approval=True)
    assert plant.enrol(token=plant.token(), approval=True) == b"certificate 1"
    assert plant.store.requests() == []


def test_a_flood_of_requests_forgets_the_oldest_and_no_approval(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_PENDING", 5)
    with pytest.raises(Pending):
        plant.enrol("approved", approval=True)
    plant.store.approve("approved", None, NOW)
    for number in range(20):
        with pytest.raises(Pending):
            plant.enrol(f"flood-{number}", approval=True, now=NOW + 1 + number)
    waiting = [row["device"] for row in plant.store.requests()]
    assert waiting == [f"flood-{number}" for number in range(15, 20)]
    assert plant.enrol("approved", approval=True) == b"certificate 1"


@pytest.mark.parametrize("agent", ["\0", "0.1\0" * 16, "ü" * 64, "x" * 500])
def test_what_a_newcomer_says_of_itself_harms_no_database(plant: Plant, agent: str) -> None:
    """PostgreSQL takes no character 0 in a text, and a newcomer is anybody."""
    with pytest.raises(Pending):
        plant.enrol(approval=True, agent=agent)
    assert len(plant.store.requests()) == 1
