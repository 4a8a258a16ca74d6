"""The health gate: what marks a slot good, what is kept of a failure, and what a boot says of an update."""

import json
from pathlib import Path

import pytest

from firmware_tools import device_commands
from firmware_tools.__main__ import main
from firmware_tools.device import health, updates
from firmware_tools.device.boot_backend import handle
from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.boot_environment import BootEnvironment, BootState
from firmware_tools.errors import FirmwareError
from tests.firmware_tools.fake_device import FakeDevice, new_device


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health.time, "sleep", lambda _seconds: None)


@pytest.fixture
def device(tmp_path: Path) -> FakeDevice:
    return new_device(tmp_path / "device")


@pytest.fixture
def trial(device: FakeDevice) -> FakeDevice:
    """Version 1.1.0 was installed into slot B and has just booted."""
    state = updates.downloaded(updates.offered("1.1.0", "1.0.0"))
    updates.save(device.state_file, updates.installed(state, "B", device.boot_id()))
    device.slots["B"] = "1.1.0"
    handle(["set-primary", "B"], boot_control(device))
    assert device.restart() == "B"
    return device


def reported(device: FakeDevice) -> str:
    state = updates.load(device.state_file)
    return state.text if state is not None else ""


def test_a_healthy_system_is_marked_good_and_its_tries_begin_anew(trial: FakeDevice) -> None:
    environment = BootEnvironment(trial.boot_folder)
    assert environment.tries() == {"A": 1, "B": 1}
    assert health.on_trial(trial)
    assert health.pass_gate(trial) == ""
    assert not health.on_trial(trial)
    assert environment.read().b_state == "good"
    assert environment.tries() == {"A": 1, "B": 0}
    assert reported(trial) == "healthy 1.1.0"
    assert list((trial.root / "identity").iterdir()) == []


def test_the_update_is_booted_until_every_check_has_passed(trial: FakeDevice) -> None:
    seen = []

    def look(device: health.Device) -> str:
        state = updates.load(device.state_file)
        seen.append((state.text if state else "", BootEnvironment(device.boot_folder).read().b_state))
        return ""

    assert health.pass_gate(trial, (*health.CHECKS, health.Check("look", look))) == ""
    assert seen == [("booted 1.1.0", "trial")]


@pytest.mark.parametrize("which", ["agent", "restarts", "engine", "space", "identity"])
def test_each_failing_check_keeps_its_evidence_and_marks_nothing(trial: FakeDevice, which: str) -> None:
    if which == "agent":
        trial.programs.agent = ["ActiveState=failed\nNRestarts=0\n"]
    elif which == "restarts":
        trial.programs.agent = [f"ActiveState=activating\nNRestarts={number}\n" for number in range(9)]
    elif which == "engine":
        trial.programs.engine = (1, "Traceback\nImportError: libgomp.so.1\n")
    elif which == "space":
        trial.programs.free = "Avail\n4096\n"
    else:
        (trial.root / "identity").rmdir()
    before = BootEnvironment(trial.boot_folder).copies()
    reason = health.pass_gate(trial)
    expected = {
        "agent": "agent: graftwork-agent.service is failed, expected active",
        "restarts": "agent: graftwork-agent.service was started 4 times and did not become ready",
        "engine": "engine: the training engine does not start: Traceback\nImportError: libgomp.so.1",
        "space": "storage: ",
        "identity": "storage: ",
    }[which]
    assert reason.startswith(expected)
    assert BootEnvironment(trial.boot_folder).copies() == before
    assert reported(trial) == "booted 1.1.0"
    [path] = trial.failures.iterdir()
    kept = json.loads(path.read_text())
    assert (path.name, kept["version"], kept["reason"]) == ("00000001-1.1.0.json", "1.1.0", reason)
    assert "cannot start" in kept["journal"]


@pytest.mark.parametrize(
    "answers",
    [
        [
            "ActiveState=activating\nNRestarts=1\n",
            "ActiveState=deactivating\nNRestarts=1\n",
            "ActiveState=active\n",
        ],
        ["ActiveState=inactive\nNRestarts=\n", "ActiveState=active\nNRestarts=2\n"],
    ],
)
def test_an_agent_may_take_a_while_and_a_few_starts(device: FakeDevice, answers: list[str]) -> None:
    device.programs.agent = answers
    assert health.pass_gate(device) == ""


def test_an_agent_that_never_says_it_is_ready_fails(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.programs.agent = ["ActiveState=activating\nNRestarts=0\n"]
    monkeypatch.setattr(health, "AGENT_SECONDS", -1.0)
    assert "is activating, expected active" in health.pass_gate(device)


def test_without_systemd_the_agent_is_not_taken_for_ready(device: FakeDevice) -> None:
    device.programs.agent = ["systemctl is not installed"]
    assert "is unknown" in health.pass_gate(device)


def test_a_device_that_does_not_know_who_it_is_needs_no_agent(device: FakeDevice) -> None:
    device.agent_configuration.unlink()
    device.programs.agent = ["ActiveState=inactive\nNRestarts=0\n"]
    assert health.pass_gate(device) == ""


def test_only_the_newest_failures_are_kept(device: FakeDevice) -> None:
    (device.failures).mkdir(parents=True)
    (device.failures / "notes.json").write_text("an operator's")
    for number in range(20):
        health.keep_evidence(device, "1.0.0", f"reason {number}")
    names = sorted(path.name for path in device.failures.glob("0*.json"))
    assert names == [f"{number:08}-1.0.0.json" for number in range(13, 21)]
    assert health.last_failure(device) == "reason 19"


def test_evidence_that_cannot_be_kept_does_not_stop_the_gate(device: FakeDevice) -> None:
    device.failures.parent.mkdir(parents=True)
    device.failures.write_text("a file where the folder should be")
    device.programs.engine = (1, "")
    assert health.pass_gate(device).startswith("engine")


@pytest.mark.parametrize("content", ["", "[]", "null", '{"version": "1.1.0"}', "\x00"])
def test_damaged_evidence_is_passed_over(device: FakeDevice, content: str) -> None:
    health.keep_evidence(device, "1.1.0", "the reason")
    (device.failures / "00000009-1.1.0.json").write_text(content)
    assert health.last_failure(device, "1.1.0") == "the reason"


def test_a_rollback_says_why_and_the_next_update_is_possible(trial: FakeDevice) -> None:
    trial.programs.engine = (1, "no engine")
    for _ in range(2):
        assert health.pass_gate(trial)
        assert trial.restart() == "B"
    assert health.pass_gate(trial)
    assert trial.restart() == "A"
    trial.programs.engine = (0, "")
    assert health.pass_gate(trial) == ""
    assert reported(trial) == (
        "rolled back from 1.1.0 to 1.0.0: engine: the training engine does not start: no engine"
    )
    state = BootEnvironment(trial.boot_folder).read()
    assert (state.primary, state.a_state, state.b_state) == ("A", "good", "bad")


def test_a_reason_of_another_version_is_not_taken_for_this_one(device: FakeDevice) -> None:
    health.keep_evidence(device, "1.0.5", "agent: of a year ago")
    state = updates.downloaded(updates.offered("1.1.0", "1.0.0"))
    updates.save(device.state_file, updates.installed(state, "B", device.boot_id()))
    device.restart()  # the power was cut in the installation
    assert health.pass_gate(device) == ""
    assert reported(device).endswith("it did not boot, or its installation was cut short")


def test_an_update_that_is_installed_while_the_gate_runs_is_not_forgotten(device: FakeDevice) -> None:
    updates.save(device.state_file, updates.failed(updates.offered("1.0.1", "1.0.0"), "an earlier one"))

    def install(device: health.Device) -> str:
        state = updates.downloaded(updates.offered("1.1.0", "1.0.0"))
        updates.save(device.state_file, updates.installed(state, "B", device.boot_id()))
        handle(["set-primary", "B"], boot_control(device))
        return ""

    assert health.pass_gate(device, (health.Check("install", install),)) == ""
    assert health.pass_gate(device) == ""  # by hand, before the reboot
    assert reported(device) == "installed 1.1.0"
    assert BootEnvironment(device.boot_folder).read().primary == "B"


def test_a_good_slot_that_stopped_booting_gives_its_place_to_the_other(trial: FakeDevice) -> None:
    assert health.pass_gate(trial) == ""
    environment = BootEnvironment(trial.boot_folder)
    assert [trial.restart() for _ in range(4)] == ["B", "B", "B", "A"]
    assert health.pass_gate(trial) == ""
    assert environment.read().primary == "A"
    assert environment.read().b_state == "good"
    assert "was healthy once" in reported(trial)


def test_a_lost_boot_environment_is_written_anew_by_a_healthy_system(device: FakeDevice) -> None:
    for number in (0, 1):
        (device.boot_folder / f"state{number}").write_bytes(b"")
    assert not health.on_trial(device)
    assert health.pass_gate(device) == ""
    state = BootEnvironment(device.boot_folder).read()
    assert (state.primary, state.a_state, state.b_state) == ("A", "good", "bad")


def test_counts_that_were_lost_do_not_bring_a_failed_trial_back(trial: FakeDevice) -> None:
    (trial.boot_folder / "tries").write_bytes(bytes(1024))
    assert trial.restart() == "A"
    assert health.pass_gate(trial) == ""
    assert BootEnvironment(trial.boot_folder).read().b_state == "bad"
    assert trial.restart() == "A"


@pytest.mark.parametrize(("state", "reboots"), [("trial", True), ("good", False)])
def test_a_trial_that_fails_reboots_and_a_system_that_was_healthy_once_stays_up(
    device: FakeDevice,
    state: str,
    reboots: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    BootEnvironment(device.boot_folder).write(BootState(a_state=state))
    device.programs.engine = (1, "no engine")
    monkeypatch.setattr(device_commands, "Device", lambda: device)
    assert main(["device", "health"]) == 1
    assert "not healthy: engine" in capsys.readouterr().err
    assert (("systemctl", "reboot") in device.programs.called) == reboots
    device.programs.called.clear()
    assert main(["device", "health", "--no-reboot"]) == 1
    assert ("systemctl", "reboot") not in device.programs.called


def test_a_system_that_is_no_image_has_no_gate(device: FakeDevice) -> None:
    (device.root / "etc/graftwork-release").unlink()
    with pytest.raises(FirmwareError, match="no Graftwork image"):
        health.pass_gate(device)


def test_the_status_is_shown(
    trial: FakeDevice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_commands, "Device", lambda: trial)
    assert main(["device", "status", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "compatible": "graftwork-x86_64-uefi",
        "version": "1.1.0",
        "slot": "B",
        "primary": "B",
        "slot_a": "good",
        "slot_b": "trial",
        "copies_whole": 2,
        "tries": {"A": 1, "B": 1},
        "update": "installed 1.1.0",
        "last_failure": None,
    }
    assert main(["device", "status"]) == 0
    assert "slot b         trial" in capsys.readouterr().out
