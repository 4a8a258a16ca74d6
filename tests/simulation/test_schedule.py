"""A federation under an adaptive schedule: it learns, comes to rest together, and wakes up once a day."""

from pathlib import Path

import pytest

from protocol.charter import ADAPTIVE, FIXED, SchedulePolicy
from server.round import RoundPolicy
from simulation.in_process import SERVER, InProcessFederation
from tests.builders import WideEngine, two_levels, write_recording
from tests.simulation.test_in_process import NAMES, PACKAGE, TRAINING

HOUR = 3600.0
SCHEDULE = SchedulePolicy(ADAPTIVE, nats_per_kib=10.0, fitted=10.0)
"""Dear enough that this fleet, which learns little, comes to rest after a few releases."""


def federation(tmp_path: Path, schedule: SchedulePolicy = SCHEDULE) -> InProcessFederation:
    spools = {name: tmp_path / "spools" / name for name in NAMES}
    for index, spool in enumerate(spools.values()):
        if not spool.exists():
            spool.mkdir(parents=True)
            write_recording(spool / "a.csv", two_levels(12 + 2 * index))
    return InProcessFederation(
        tmp_path / "programs",
        PACKAGE,
        spools,
        RoundPolicy(minimum_devices=2, gather_seconds=10.0, pause_seconds=HOUR),
        training=TRAINING,
        server={"schedule": schedule},
        make_engine=lambda *_: WideEngine(),
    )


def pass_time(run: InProcessFederation, hours: int) -> int:
    """Number of the newest release afterwards."""
    for _ in range(hours * 6):
        run.step(HOUR / 6)
    return newest(run)


def newest(run: InProcessFederation) -> int:
    assert run.server_store is not None
    release = run.server_store.newest_release()
    assert release is not None
    return release.number


@pytest.fixture
def resting(tmp_path: Path) -> InProcessFederation:
    """A federation of which nobody sends any more."""
    run = federation(tmp_path)
    assert pass_time(run, 12) == newest(run) < 9
    return run


def test_all_devices_come_to_wait_at_the_same_release(resting: InProcessFederation) -> None:
    rested = newest(resting)
    assert rested >= 4
    assert {store.state().release for store in resting.agent_stores.values()} == {rested}
    assert {store.number("idle", 0) for store in resting.agent_stores.values()} == {1}
    assert pass_time(resting, 10) == rested
    assert resting.server_store is not None
    assert {row["waits"] for row in resting.server_store.devices()} == {"little to gain"}
    resting.close()


def test_once_a_day_everybody_sends(resting: InProcessFederation) -> None:
    rested = newest(resting)
    assert pass_time(resting, 48) == rested + 2
    assert resting.server_store is not None
    last = resting.server_store.newest_release()
    assert last is not None
    assert last.updates == len(NAMES)
    resting.close()


def test_it_rests_whoever_is_killed_and_goes_on_where_it_was(resting: InProcessFederation) -> None:
    rested = newest(resting)
    plans = {name: store.text("effort") for name, store in resting.agent_stores.items()}
    for name in (*NAMES, SERVER):
        resting.kill(name)
        resting.step(HOUR / 6)
        resting.start(name)
        resting.step(HOUR / 6)
    assert pass_time(resting, 4) == rested
    assert {name: store.text("effort") for name, store in resting.agent_stores.items()} == plans
    assert pass_time(resting, 24) == rested + 1
    resting.close()


def test_a_fleet_under_the_fixed_schedule_goes_on_for_ever(tmp_path: Path) -> None:
    run = federation(tmp_path, SchedulePolicy(FIXED))
    first = pass_time(run, 12)
    assert first >= 10
    assert pass_time(run, 12) >= first + 10
    assert all(not store.text("plan") for store in run.agent_stores.values())
    run.close()
