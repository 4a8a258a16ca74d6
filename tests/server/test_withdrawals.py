"""A release that is worse for most devices goes, once, with its evidence; the one before goes on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocol.messages import Release, Report, Round, sign_message
from protocol.release_coding import release_adapter
from server.ledger_records import ReleaseRecord
from server.replay import DIFFERENT, SAME, replay, replay_all
from server.round import RoundPolicy
from server.withdrawals import OUTCOME
from tests.builders import PARAMETERS
from tests.server.databases import Database
from tests.server.federation import KEYS, MANY, PARTS, TOPICS, Federation, update_of

DEVICES = MANY[:8]
LATE = DEVICES[-1]


@pytest.fixture
def federation(tmp_path: Path, database: Database) -> Iterator[Federation]:
    """Release 1 is good, release 2 is made of poisoned updates, and everyone holds it."""
    policy = RoundPolicy(minimum_devices=2, deadline_seconds=100.0)
    federation = Federation(tmp_path / "data", database=database, round_policy=policy, names=DEVICES)
    federation.push()
    federation.register()
    federation.coordinator.tick()
    run_round(federation, 0.4)
    report(federation, [0.3] * 8)
    run_round(federation, -0.9)
    yield federation
    federation.close()


def run_round(federation: Federation, level: float, missing: str = "") -> Round:
    current = federation.open_round()
    for name in federation.names:
        if name != missing:
            federation.deliver(name, update_of(name, current, level))
    if missing:
        federation.clock.advance(100.0)
        federation.coordinator.tick()
    return current


def report(federation: Federation, gains: list[float], **changes: object) -> None:
    """What the devices say of the newest release beside the one before."""
    number = newest(federation).number
    for name, gain in zip(federation.names, gains, strict=False):
        message = replace(
            Report(number, "local", 8, release_gain=gain, compared_with=number - 1),
            **changes,  # type: ignore[arg-type]
        )
        topic = TOPICS.up(name, "report")
        federation.hand(topic, sign_message(message, KEYS[name], topic))


def newest(federation: Federation) -> ReleaseRecord:
    found = federation.store.newest_release()
    assert found is not None
    return found


def release_of(federation: Federation, number: int) -> ReleaseRecord:
    found = federation.store.release(number)
    assert found is not None
    return found


def adapter_of(release: Release) -> bytes:
    """What a device that holds nothing makes of a release."""
    return release_adapter(release, None, PARTS, PARAMETERS).tobytes()


WORSE = [-0.7, -0.5, -0.9, -0.6, -0.4, -0.8, -0.3, -0.6]


def test_a_poisoned_release_is_withdrawn_once_and_the_rounds_go_on(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = release_of(federation, 1), newest(federation)
    assert bad.sha256 != good.sha256
    for name in DEVICES:
        federation.say(name)
    report(federation, WORSE)
    federation.coordinator.tick()
    assert "withdrew release=2: worse for 8 of 8 devices" in caplog.text
    published = federation.release()
    assert (published.number, published.withdraws) == (3, 2)
    assert published.adapter_sha256 == good.sha256
    assert adapter_of(published) == good.adapter.tobytes()
    assert np.array_equal(np.asarray(newest(federation).residual), np.asarray(good.residual))
    # Whatever is said of it, what the fleet has gone back to stays.
    report(federation, WORSE)
    federation.coordinator.tick()
    assert run_round(federation, 0.1).base == good.sha256
    assert (federation.release().number, federation.release().withdraws) == (4, -1)
    report(federation, [0.2] * 8)
    run_round(federation, 0.1)
    assert newest(federation).number == 5
    assert [row["release"] for row in federation.store.withdrawals()] == [2]
    assert {found.verdict for found in replay_all(federation.store, "pumps")} == {SAME}


def test_the_evidence_is_kept(federation: Federation) -> None:
    for name in DEVICES:
        federation.say(name)
    report(federation, WORSE)
    federation.coordinator.tick()
    federation.restart()
    [row] = federation.store.withdrawals()
    assert (row["release"], row["replacement"]) == (2, 3)
    assert row["evidence"]["gains"] == dict(zip(DEVICES, WORSE, strict=True))
    assert row["evidence"]["worse"] == 8
    assert row["evidence"]["share_chance"] == pytest.approx(0.3**8)
    assert row["evidence"]["policy"] == {"share": 0.3, "minimum_devices": 6, "tolerance": 0.05}
    assert "worse for 8 of 8 devices" in row["reason"]
    assert federation.release().withdraws == 2  # said again to a broker without memory


def test_a_round_that_started_from_it_ends_and_its_updates_count_nowhere(federation: Federation) -> None:
    current = federation.open_round()
    for name in DEVICES[:4]:
        assert federation.deliver(name, update_of(name, current))[0].verdict == "counted"
    report(federation, WORSE)
    federation.coordinator.tick()
    assert federation.release().withdraws == 2
    assert federation.store.rounds()[0]["outcome"] == OUTCOME
    [receipt] = federation.deliver(DEVICES[5], update_of(DEVICES[5], current))
    assert (receipt.verdict, receipt.reason) == (
        "late",
        "the release that round 3 started from was withdrawn",
    )
    assert federation.deliver(DEVICES[0], update_of(DEVICES[0], current))[0].verdict == "duplicate"
    federation.restart()
    following = run_round(federation, 0.2)
    assert (following.number, federation.release().number, federation.release().updates) == (4, 4, 8)
    assert {found.verdict for found in replay_all(federation.store, "pumps")} == {SAME}


def test_without_all_reports_it_is_judged_before_a_round_builds_on_it(federation: Federation) -> None:
    current = federation.open_round()
    report(federation, WORSE[:7])  # the last one is online and silent
    federation.coordinator.tick()
    assert newest(federation).number == 2
    for name in DEVICES:
        federation.deliver(name, update_of(name, current))
    assert (federation.release().number, federation.release().withdraws) == (3, 2)
    assert len(federation.store.withdrawals()[0]["evidence"]["gains"]) == 7
    assert run_round(federation, 0.2).number == 4


def test_a_late_update_of_a_round_before_goes_to_the_next_one(tmp_path: Path, database: Database) -> None:
    federation = Federation(tmp_path / "late", database=database, names=DEVICES)
    federation.push()
    federation.register()
    federation.coordinator.tick()
    run_round(federation, 0.4)
    second = run_round(federation, -0.9, missing=LATE)
    third = federation.open_round()
    [receipt] = federation.deliver(LATE, update_of(LATE, second, 0.3))
    assert (receipt.verdict, receipt.reason) == ("counted", "1 release late, with weight 7")
    federation.deliver(DEVICES[0], update_of(DEVICES[0], third))
    report(federation, WORSE)
    federation.coordinator.tick()
    assert federation.release().withdraws == 2
    run_round(federation, 0.2)
    assert (federation.release().number, federation.release().updates) == (4, 9)
    assert {found.verdict for found in replay_all(federation.store, "pumps")} == {SAME}
    federation.close()


@pytest.mark.parametrize("silent", [{"compared_with": 0}, {"holdout_windows": 0}])
def test_reports_that_compare_nothing_withdraw_nothing(
    federation: Federation, silent: dict[str, int]
) -> None:
    for name in DEVICES:
        federation.say(name)
    report(federation, WORSE, **silent)
    run_round(federation, 0.1)
    assert (newest(federation).number, federation.store.withdrawals()) == (3, [])


def test_five_devices_withdraw_nothing_however_bad_their_windows(tmp_path: Path, database: Database) -> None:
    federation = Federation(tmp_path / "five", database=database, names=MANY[:5])
    federation.push()
    federation.register()
    federation.coordinator.tick()
    for _ in range(3):
        run_round(federation, 0.4)
        report(federation, [-4.0] * 5)
    run_round(federation, 0.4)
    assert (newest(federation).number, federation.store.withdrawals()) == (4, [])
    federation.close()


def test_the_first_release_of_a_package_is_never_withdrawn(tmp_path: Path, database: Database) -> None:
    federation = Federation(tmp_path / "first", database=database, names=DEVICES)
    federation.push()
    federation.register()
    federation.coordinator.tick()
    for name in DEVICES:
        federation.say(name)
    report(federation, [-4.0] * 8)
    federation.coordinator.tick()
    assert newest(federation).number == 0
    federation.close()


def test_a_push_that_was_faster_leaves_nothing_to_withdraw(federation: Federation) -> None:
    for name in DEVICES:
        federation.say(name)
    report(federation, WORSE)
    federation.push(0.5, filler=3)
    federation.coordinator.tick()
    assert (federation.release().number, federation.release().withdraws) == (3, -1)
    assert federation.store.withdrawals() == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_replay_tells_a_withdrawal_that_did_not_go_back(federation: Federation) -> None:
    for name in DEVICES:
        federation.say(name)
    report(federation, WORSE)
    federation.coordinator.tick()
    assert replay(federation.store, 3, "pumps").verdict == SAME
    bad = release_of(federation, 2)
    with federation.store._database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE releases SET adapter = ?, sha256 = ? WHERE number = 3",
            (bad.adapter.tobytes(), bad.sha256),
        )
    found = replay(federation.store, 3, "pumps")
    assert (found.verdict, "not that of release 1" in found.reason) == (DIFFERENT, True)


def test_a_fleet_that_makes_the_same_bad_release_again_rests_longer_each_time(federation: Federation) -> None:
    waited = []
    for _ in range(4):
        report(federation, [-0.5] * 8)
        federation.coordinator.tick()
        assert newest(federation).withdraws is not None
        waited.append(opens_after(federation))
        run_round(federation, -0.9)
    assert waited == [0, 120, 240, 480]


def test_the_rest_is_kept_across_a_restart_and_is_over_once_a_release_stays(federation: Federation) -> None:
    for _ in range(2):
        report(federation, [-0.5] * 8)
        federation.coordinator.tick()
        assert newest(federation).withdraws is not None
        if newest(federation).number == 3:
            run_round(federation, -0.9)
    federation.restart()
    assert opens_after(federation) == 120
    run_round(federation, 0.4)
    report(federation, [0.3] * 8)
    run_round(federation, -0.9)
    report(federation, [-0.5] * 8)
    federation.coordinator.tick()
    assert opens_after(federation) == 0


def opens_after(federation: Federation) -> int:
    """Seconds until the next round opens, all devices being there, to the nearest ten."""
    before = federation.store.next_round_number()
    for seconds in range(0, 2000, 10):
        federation.open_round_if_due()
        if federation.store.next_round_number() > before:
            return seconds
        federation.clock.advance(10.0)
    raise AssertionError("no round opened")
