"""Going back, by the operators' commands and beside a server that runs: to a release, and to a package."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from protocol.errors import ProtocolError
from protocol.messages import Announcement, Round
from protocol.package import unpack
from protocol.release_coding import release_adapter
from protocol.rollback import Rollback, read_rollback, sign_rollback
from protocol.signing import PrivateKey
from runtime.keys import write_secret
from server import release_commands
from server.replay import SAME, replay_all
from server.withdrawals import OUTCOME
from tests.builders import PARAMETERS, PUBLISHER, private_key, tiny_package
from tests.roots import root
from tests.server.databases import Database
from tests.server.federation import NAMES, PARTS, SERVER_KEY, Federation, update_of
from tests.server.test_command_line import Operator

A, B, C = NAMES
NOW = 1_800_000_000.0
FIVE = tiny_package(filler=5, version=5)
THREE = tiny_package(filler=3, version=3)


class Plant(Operator):
    """Commands on the data directory of a federation whose server runs."""

    def __init__(self, folder: Path, output: pytest.CaptureFixture[str], database: Database) -> None:
        self.url = database(folder / "data")
        self.federation = Federation(folder / "data", database=database)
        self.federation.clock.now = NOW
        super().__init__(folder, output)

    def configure(self, more: str = "") -> None:
        super().configure(f'database = "{self.url}"\n{more}')

    def rounds(self, *levels: float) -> Round:
        """A round of all devices for each level; the last one's message."""
        for level in levels:
            current = self.federation.open_round()
            for name in NAMES:
                self.federation.deliver(name, update_of(name, current, level))
        return current

    def mistake(self, *arguments: str) -> str:
        status, _, errors = self(*arguments)
        assert (status, errors.count("\n")) == (1, 1)
        return errors.removeprefix("error: ").rstrip()

    def push(self, data: bytes, *arguments: str) -> str:
        status, out, errors = self("push", self.package(data), *arguments)
        assert (status, errors) == (0, "")
        return out

    def order(self, **changes: object) -> str:
        """A file with a publisher's order to go back from 5 to 3."""
        fields = {
            "name": "tiny", "from_version": 5, "to_version": 3,
            "to_sha256": unpack(THREE, None).sha256, "expires": NOW + 100,
        }  # fmt: skip
        key = changes.pop("key", PUBLISHER)
        assert isinstance(key, PrivateKey)
        path = self.folder / "order"
        path.write_bytes(sign_rollback(Rollback(**{**fields, **changes}), key))  # type: ignore[arg-type]
        return str(path)

    def published(self) -> Announcement:
        self.federation.coordinator.tick()
        return self.federation.announcement()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands see the time that the server beside them sees."""
    monkeypatch.setattr(release_commands, "time", SimpleNamespace(time=lambda: NOW))


@pytest.fixture
def plant(tmp_path: Path, capsys: pytest.CaptureFixture[str], database: Database) -> Iterator[Plant]:
    plant = Plant(tmp_path, capsys, database)
    yield plant
    plant.federation.close()


class TestToARelease:
    @pytest.fixture
    def plant(self, plant: Plant) -> Plant:
        """Releases 1, 2 and 3 of three rounds."""
        plant.federation.push()
        plant.federation.register()
        plant.federation.coordinator.tick()
        plant.rounds(0.4, 0.5, -0.9)
        return plant

    def test_the_running_server_notices_and_publishes_it(self, plant: Plant) -> None:
        federation = plant.federation
        wanted = federation.store.release(1)
        assert wanted is not None
        status, out, errors = plant("rollback", "1", "--reason", "the pumps sing")
        assert (status, out, errors) == (0, "release 4 is release 1 once more\n", "")
        assert federation.release().number == 3
        federation.coordinator.tick()
        release = federation.release()
        assert (release.number, release.withdraws, release.restores) == (4, 3, 1)
        assert release.adapter_sha256 == wanted.sha256
        assert release_adapter(release, None, PARTS, PARAMETERS).tobytes() == wanted.adapter.tobytes()
        [row] = plant.table("withdrawals")
        assert (row["release"], row["replacement"]) == (3, 4)
        assert row["reason"] == "by the operator: the pumps sing"

    def test_rounds_go_on_from_it_and_replay_gives_the_same(self, plant: Plant) -> None:
        plant("rollback", "1")
        plant.federation.coordinator.tick()
        current = plant.rounds(0.1)
        restored = plant.federation.store.release(1)
        assert restored is not None
        assert current.base == restored.sha256
        assert plant.federation.release().number == 5
        assert {found.verdict for found in replay_all(plant.federation.store, "pumps")} == {SAME}
        status, out, _ = plant("replay", "4")
        assert status == 0
        assert SAME in out

    def test_to_the_initial_release(self, plant: Plant) -> None:
        plant("rollback", "0")
        plant.federation.coordinator.tick()
        release = plant.federation.release()
        assert (release.number, release.restores) == (4, 0)
        assert not release_adapter(release, None, PARTS, PARAMETERS).any()
        plant.rounds(0.2)
        assert {found.verdict for found in replay_all(plant.federation.store, "pumps")} == {SAME}

    def test_an_open_round_ends_and_its_updates_count_nowhere(self, plant: Plant) -> None:
        federation = plant.federation
        current = federation.open_round()
        assert federation.deliver(A, update_of(A, current))[0].verdict == "counted"
        plant("rollback", "1")
        [receipt] = federation.deliver(B, update_of(B, current))  # before the next tick
        assert (receipt.verdict, "was withdrawn" in receipt.reason) == ("late", True)
        assert federation.store.rounds()[0]["outcome"] == OUTCOME
        assert federation.release().number == 4
        plant.rounds(0.1)
        assert federation.release().updates == 3
        assert {found.verdict for found in replay_all(federation.store, "pumps")} == {SAME}

    @pytest.mark.parametrize("started_from", [1, 2, 3])
    def test_late_updates_of_what_was_left_are_refused(
        self, tmp_path: Path, database: Database, capsys: pytest.CaptureFixture[str], started_from: int
    ) -> None:
        """Releases between the one that is gone back to and the one that is left are undone, too."""
        plant = Plant(tmp_path / "late", capsys, database)
        federation = plant.federation
        federation.push()
        federation.register()
        federation.coordinator.tick()
        late = {}
        for number in range(4):  # the round after release `number`; C answers none of them
            current = federation.open_round()
            late[number] = update_of(C, current, 0.1)
            for name in (A, B):
                federation.deliver(name, update_of(name, current, 0.3))
            federation.clock.advance(100.0)
            federation.coordinator.tick()
        assert federation.release().number == 4
        plant("rollback", "1")
        federation.coordinator.tick()
        [receipt] = federation.deliver(C, late[started_from])
        if started_from == 1:
            assert receipt.verdict == "counted"
            assert "late, with weight" in receipt.reason
        else:
            assert receipt.verdict == "late"
            assert receipt.reason == f"the release that round {started_from + 1} started from was withdrawn"
        plant.rounds(0.1)
        assert {found.verdict for found in replay_all(federation.store, "pumps")} == {SAME}
        federation.close()

    def test_a_restarted_server_goes_on_from_it(self, plant: Plant) -> None:
        plant("rollback", "2")
        plant.federation.restart()
        assert (plant.federation.release().number, plant.federation.release().restores) == (4, 2)

    def test_twice_in_a_row(self, plant: Plant) -> None:
        plant("rollback", "2")
        plant("rollback", "0")
        plant.federation.coordinator.tick()
        release = plant.federation.release()
        assert (release.number, release.withdraws, release.restores) == (5, 4, 0)
        assert {found.verdict for found in replay_all(plant.federation.store, "pumps")} == {SAME}

    def test_what_makes_no_sense_is_refused(self, plant: Plant) -> None:
        assert "expected a release before 3, the newest, got 3" in plant.mistake("rollback", "3")
        assert "there is no release 9" in plant.mistake("rollback", "9")
        plant.federation.push(0.5, filler=9)
        assert "is of another package than the one that runs" in plant.mistake("rollback", "2")
        assert plant.table("withdrawals") == []


class TestToAPackage:
    @pytest.fixture
    def plant(self, plant: Plant) -> Plant:
        plant.push(FIVE)
        return plant

    def test_an_older_one_is_not_pushed_by_mistake(self, plant: Plant) -> None:
        refused = plant.mistake("push", plant.package(THREE))
        assert "version 3 of tiny is older than 5" in refused
        assert "to go back, add --rollback" in refused
        assert plant.published().version == 1

    def test_without_publishers_the_server_orders_it(self, plant: Plant) -> None:
        # As its daemon has it, the signing key is in the data directory.
        write_secret(plant.folder / "data" / "server.key", SERVER_KEY.raw)
        plant.push(THREE, "--rollback")
        announcement = plant.published()
        assert announcement.version == 2
        order = read_rollback(announcement.rollback, [SERVER_KEY.public])
        assert (order.name, order.from_version, order.to_version) == ("tiny", 5, 3)
        assert order.to_sha256 == announcement.package.sha256 == unpack(THREE, None).sha256
        assert order.expires == NOW + 90 * 86_400
        plant.federation.restart()
        assert plant.federation.announcement().rollback == announcement.rollback

    def test_a_publisher_orders_it(self, plant: Plant) -> None:
        plant.configure(f'publishers = ["{PUBLISHER.public.raw.hex()}"]\n')
        assert "only a publisher may order to go back" in plant.mistake(
            "push", plant.package(THREE), "--rollback"
        )
        plant.push(THREE, "--rollback", plant.order())
        order = read_rollback(plant.published().rollback, [PUBLISHER.public])
        assert (order.from_version, order.to_version) == (5, 3)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"from_version": 4}, "and not from 5 to this package"),
            ({"to_version": 2}, "and not from 5 to this package"),
            ({"name": "other"}, "and not from 5 to this package"),
            ({"to_sha256": b"x" * 32}, "and not from 5 to this package"),
            ({"expires": 5.0}, "or it has expired"),
            ({"key": private_key(66)}, "not signed by a publisher"),
        ],
        ids=lambda value: str(value)[:24],
    )
    def test_an_order_for_something_else_is_refused(
        self, plant: Plant, changes: dict[str, object], message: str
    ) -> None:
        plant.configure(f'publishers = ["{PUBLISHER.public.raw.hex()}"]\n')
        order = plant.order(**changes)
        assert message in plant.mistake("push", plant.package(THREE), "--rollback", order)
        assert plant.published().version == 1

    def test_the_publishers_of_the_root_count_where_the_configuration_names_none(self, plant: Plant) -> None:
        plant.federation.store.add_root(root(publishers=[PUBLISHER.public]), "pumps", NOW)
        assert "only a publisher may order" in plant.mistake("push", plant.package(THREE), "--rollback")
        stranger = tiny_package(version=6, key=private_key(66))
        assert "signature does not match" in plant.mistake("push", plant.package(stranger))
        plant.push(THREE, "--rollback", plant.order())
        assert read_rollback(plant.published().rollback, [PUBLISHER.public]).to_version == 3

    def test_what_needs_no_order_gets_none(self, plant: Plant) -> None:
        plant.push(tiny_package(filler=7, version=5), "--rollback")
        plant.push(tiny_package(filler=8, version=6))
        plant.push(tiny_package(name="other", version=1))
        assert plant.published().rollback == b""

    def test_a_package_of_another_name_in_between_hides_no_version(self, plant: Plant) -> None:
        """Devices remember the version that they had of each name; they would refuse the older one."""
        plant.push(tiny_package(name="other", version=1))
        assert "is older than 5, which devices had" in plant.mistake("push", plant.package(THREE))
        write_secret(plant.folder / "data" / "server.key", SERVER_KEY.raw)
        plant.push(THREE, "--rollback")
        assert read_rollback(plant.published().rollback, [SERVER_KEY.public]).from_version == 5

    def test_after_going_back_the_next_one_counts_from_there(self, plant: Plant) -> None:
        plant.push(THREE, "--rollback")
        plant.push(tiny_package(filler=4, version=4))
        assert plant.published().rollback == b""

    def test_a_package_that_has_expired_is_not_pushed(self, plant: Plant) -> None:
        expired = tiny_package(version=6, expires=NOW - 1)
        assert "package tiny 6 has expired: no device would install it" in plant.mistake(
            "push", plant.package(expired)
        )
        plant.push(tiny_package(version=6, expires=NOW + 1000))

    def test_a_file_that_is_no_order_is_refused(self, plant: Plant) -> None:
        plant.configure(f'publishers = ["{PUBLISHER.public.raw.hex()}"]\n')
        path = plant.folder / "order"
        path.write_bytes(b"no order")
        assert "COSE" in plant.mistake("push", plant.package(THREE), "--rollback", str(path))
        missing = str(plant.folder / "missing")
        assert "No such file" in plant.mistake("push", plant.package(THREE), "--rollback", missing)

    def test_the_order_is_said_with_the_package_and_no_longer_than_that(self, plant: Plant) -> None:
        write_secret(plant.folder / "data" / "server.key", SERVER_KEY.raw)
        plant.push(THREE, "--rollback")
        first = plant.published()
        plant.push(tiny_package(filler=9, version=7))
        assert plant.published().rollback == b""
        with pytest.raises(ProtocolError):
            read_rollback(b"", [SERVER_KEY.public])
        assert first.rollback


def test_a_release_of_before_is_the_same_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = Plant(tmp_path, capsys, lambda _: "")
    plant.federation.push()
    plant.federation.register()
    plant.federation.coordinator.tick()
    plant.rounds(0.4, -0.9)
    before = plant.federation.store.release(1)
    plant("rollback", "1")
    after = plant.federation.store.newest_release()
    assert before is not None
    assert after is not None
    assert before.adapter.tobytes() == after.adapter.tobytes()
    assert np.array_equal(np.asarray(before.residual), np.asarray(after.residual))
    plant.federation.close()
