"""A device with an adaptive schedule: plans from what it saw, waits and says so, and survives power cuts."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import __main__ as command_line
from agent.scheduling import FLEET_GAIN
from agent.work import CHECKPOINT_SECONDS
from protocol.artifacts import describe
from protocol.charter import ADAPTIVE, SchedulePolicy, SendingPolicy
from protocol.messages import Announcement, DeviceState, Receipt, Release, Update
from protocol.release_coding import adapter_sha256, encode_keyframe
from tests.agent.test_device import NAME, PACKAGE, POLICY, TOPICS, Device, adapters_of
from tests.builders import PARAMETERS, LogisticEngine, two_levels, write_recording

SCHEDULE = SchedulePolicy(ADAPTIVE, nats_per_kib=1.0, fitted=10.0)
"""What it takes to come to rest within a few releases of a package that learns little."""


class Adaptive(Device):
    """A device under an adaptive schedule, whose fleet tells what releases bring."""

    def announce_adaptive(self, schedule: SchedulePolicy = SCHEDULE, version: int = 1) -> None:
        told = Announcement(version, "tiny", describe(PACKAGE), POLICY, SendingPolicy(), schedule=schedule)
        self.tell(TOPICS.all("announcement"), told)

    def take(self, number: int, gain: float | None = 0.0) -> Release:
        """A release, and its round, and the receipt of what was sent."""
        adapter = np.full(PARAMETERS, 0.01 * number, np.float32)
        metrics = {} if gain is None else {FLEET_GAIN: gain}
        body = encode_keyframe(adapter)
        release = Release(
            number, describe(PACKAGE).sha256, b"", adapter_sha256(adapter), body, 30, 900, metrics
        )
        self.tell(TOPICS.all("release"), release)
        current = self.open_round(number + 1, release)
        for entry in self.store.outbox():
            self.tell(TOPICS.down(NAME, "receipt"), Receipt(entry.sha256, current.number, "counted"))
        return release

    def plan(self) -> dict[str, object]:
        return dict(json.loads(self.store.text("effort")))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Adaptive]:
    device = Adaptive(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(20))
    device.announce_adaptive()
    device.serve_chunks()
    yield device
    device.store.close()


def test_training_gets_shorter_and_the_device_waits_as_releases_bring_nothing(device: Adaptive) -> None:
    steps, sent = [], []
    for number in range(8):
        before = device.store.adapter("local")
        device.take(number)
        sent.append(len(device.said(Update, "update")))
        after = device.store.adapter("local")
        assert before is not None
        assert after is not None
        steps.append(float(np.abs(after - before).sum()))
    assert sent[:3] == [1, 1, 1]
    assert sent[-1] == 0
    assert steps[0] > 0
    assert steps[-1] == 0  # it rests
    assert device.said(DeviceState, "state")[-1].waits == "little to gain"
    assert "waits" in device.store.text("plan")


def test_a_device_that_waits_sends_at_the_latest_after_the_longest_wait(device: Adaptive) -> None:
    for number in range(8):
        device.take(number)
    device.said(Update, "update")
    device.clock.advance(23 * 3600)
    device.agent.tick()
    assert device.said(Update, "update") == []
    device.clock.advance(3600)
    device.agent.tick()
    assert [update.round for update in device.said(Update, "update")] == [8]
    withheld = device.store.adapter("withheld")
    assert withheld is None  # what it did not send is in what it learned from the newest release


def test_who_has_not_fitted_its_windows_trains_alone_for_longer_before_it_waits(
    device: Adaptive, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, computed = LogisticEngine.loss_and_gradient, [0]

    def counted(*arguments: Any) -> Any:
        computed[0] += 1
        return plain(*arguments)

    monkeypatch.setattr(LogisticEngine, "loss_and_gradient", counted)
    device.announce_adaptive(replace(SCHEDULE, fitted=0.0), version=2)
    took = []
    for number in range(8):
        computed[0] = 0
        device.take(number)
        while device.agent.tick() is not None:
            pass
        took.append(computed[0])
        assert device.store.state().release == number
    assert device.said(DeviceState, "state")[-1].waits == "little to gain"
    assert took[1] == took[2]
    assert took[-1] > 2 * took[1]


def test_many_new_labels_end_the_wait(device: Adaptive) -> None:
    for number in range(8):
        device.take(number)
    device.said(Update, "update")
    write_recording(device.spool / "b.csv", two_levels(20))
    device.clock.advance(3600)
    device.agent.tick()
    assert device.said(DeviceState, "state")[-1].waits == ""
    assert [update.round for update in device.said(Update, "update")] == [8]


def test_the_fixed_schedule_again_ends_the_wait(device: Adaptive) -> None:
    for number in range(8):
        device.take(number)
    device.said(Update, "update")
    device.announce_adaptive(SchedulePolicy(), version=2)
    assert [update.round for update in device.said(Update, "update")] == [8]
    device.take(8)
    assert (device.store.text("effort"), device.store.text("plan")) == ("", "")


def test_releases_that_pay_are_answered_for_ever(device: Adaptive) -> None:
    for number in range(12):
        device.take(number, gain=4.0)
        assert len(device.said(Update, "update")) == 1


def test_without_the_fleets_figure_a_device_goes_by_its_own(device: Adaptive) -> None:
    for number in range(10):
        device.take(number, gain=None)
    assert device.plan()["releases"]["count"] == 9  # type: ignore[index]
    assert device.said(DeviceState, "state")[-1].waits == "little to gain"


def test_a_plan_survives_a_restart_and_a_new_package_begins_anew(device: Adaptive) -> None:
    for number in range(6):
        device.take(number)
    before = device.plan()
    device.restart()
    assert device.plan() == before
    device.announce_adaptive(version=3)
    assert device.plan() == before  # the same package
    device.store.install(4, b"p" * 32, np.zeros(PARAMETERS, np.float32), POLICY, SendingPolicy())
    assert device.store.text("effort") == ""


def test_a_state_that_cannot_be_is_begun_anew(device: Adaptive) -> None:
    for number, effort in enumerate(("{", "[]", '{"windows": "x"}', '{"releases": {"total": NaN}}', "5")):
        device.store.adopt(number, b"", {}, "local", {"effort": effort})
        device.restart()
        device.take(number + 10)
        assert device.plan()["releases"]["count"] == 1  # type: ignore[index]


@pytest.mark.parametrize("cut_after", [1, 9, 30])
def test_a_power_cut_in_a_planned_training_changes_no_bit(
    device: Adaptive, tmp_path: Path, cut_after: int
) -> None:
    other = Adaptive(tmp_path / "other")
    write_recording(other.spool / "a.csv", two_levels(20))
    other.announce_adaptive()
    other.serve_chunks()
    for number in range(3):
        device.take(number)
        other.take(number)
    other.resources._slice = 1e-9  # one batch per slice
    device.take(3)
    other.take(3)
    for _ in range(cut_after):
        other.clock.advance(CHECKPOINT_SECONDS)
        other.agent.tick()
    assert other.store.checkpoint() is not None
    other.resources._slice = float("inf")
    other.restart()
    other.take(3)
    assert other.store.checkpoint() is None
    assert adapters_of(other) == adapters_of(device)
    assert other.store.text("effort") == device.store.text("effort")
    assert other.store.text("plan") == device.store.text("plan")
    other.close()


def test_a_checkpoint_of_another_plan_is_not_gone_on_with(tmp_path: Path) -> None:
    other = Adaptive(tmp_path / "other")
    write_recording(other.spool / "a.csv", two_levels(20))
    other.announce_adaptive()
    other.serve_chunks()
    other.resources._slice = 1e-9
    other.take(0)
    other.clock.advance(CHECKPOINT_SECONDS)
    other.agent.tick()
    assert other.store.checkpoint() is not None
    other.resources._slice = float("inf")
    other.announce_adaptive(SchedulePolicy(), version=2)
    other.restart()
    other.take(0)
    fixed = Device(tmp_path / "fixed")
    write_recording(fixed.spool / "a.csv", two_levels(20))
    fixed.announce()
    fixed.serve_chunks()
    fixed.release(0)
    assert adapters_of(other) == adapters_of(fixed)
    other.close()
    fixed.close()


def test_the_owner_sees_the_plan_and_why(device: Adaptive, capsys: pytest.CaptureFixture[str]) -> None:
    device.take(0)
    path = device.folder / "agent.toml"
    path.write_text(
        f'device = "{NAME}"\nfederation = "pumps"\nserver_key = "{device.config.server_key}"\n'
        f'[source]\ndirectory = "spool"\n'
    )
    assert command_line.main(["--config", str(path), "status"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("schedule")]
    assert "alone 20 of 20 epochs" in line
    assert "all segments" in line
