"""Installing an update: not without a way back, and nothing is called installed, or healthy, that is not."""

from pathlib import Path

import pytest

from firmware_tools import device_commands
from firmware_tools.__main__ import main
from firmware_tools.device import health, updates
from firmware_tools.device.boot_environment import BootEnvironment, BootState
from firmware_tools.device.installing import bundle_version, check_armed, install
from firmware_tools.device.updates import UpdateState
from firmware_tools.errors import FirmwareError
from tests.firmware_tools.fake_device import FakeDevice, PowerCutError, new_device

BUNDLE = Path("update.raucb")


@pytest.fixture
def device(tmp_path: Path) -> FakeDevice:
    device = new_device(tmp_path / "device")
    assert health.pass_gate(device) == ""
    return device


def update(device: FakeDevice, version: str = "1.1.0", *, allow_downgrade: bool = False) -> UpdateState:
    device.programs.bundle = version
    return install(device, BUNDLE, lambda path: bundle_version(device, path), allow_downgrade=allow_downgrade)


def installations(device: FakeDevice) -> int:
    return sum(command[:2] == ("rauc", "install") for command in device.programs.called)


def reported(device: FakeDevice) -> str:
    state = updates.load(device.state_file)
    return state.text if state is not None else ""


def test_an_update_counts_when_it_was_found_healthy(device: FakeDevice) -> None:
    assert update(device).text == reported(device) == "installed 1.1.0"
    assert device.restart() == "B"
    assert reported(device) == "installed 1.1.0"
    assert health.pass_gate(device) == ""
    assert reported(device) == "healthy 1.1.0"
    assert update(device, "1.2.0").slot == "A"
    assert device.restart() == "A"
    assert health.pass_gate(device) == ""
    assert reported(device) == "healthy 1.2.0"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (BootState(a_state="trial"), "slot A, which runs, is trial and not good"),
        (BootState(a_state="bad", b_state="good"), "slot A, which runs, is bad"),
        (BootState(primary="B", b_state="trial"), "slot A runs, but B is tried first"),
    ],
)
def test_without_a_way_back_no_update_begins(device: FakeDevice, state: BootState, said: str) -> None:
    BootEnvironment(device.boot_folder).write(state)
    with pytest.raises(FirmwareError, match=said):
        update(device)
    assert installations(device) == 0
    assert updates.load(device.state_file) is None


def test_a_single_copy_is_mended_first(device: FakeDevice) -> None:
    (device.boot_folder / "state1.sum").write_bytes(b"")
    with pytest.raises(FirmwareError, match="try again"):
        update(device)
    assert installations(device) == 0
    assert update(device).phase == "installed"


def test_lost_counts_and_a_lost_environment_stop_updates(device: FakeDevice) -> None:
    (device.boot_folder / "tries").write_bytes(b"")
    with pytest.raises(FirmwareError, match="counts cannot be read"):
        check_armed(device)
    for number in (0, 1):
        (device.boot_folder / f"state{number}").unlink()
    with pytest.raises(FirmwareError, match="neither copy"):
        check_armed(device)
    assert health.pass_gate(device) == ""  # writes them anew
    assert check_armed(device) == "B"


def test_an_update_after_another_waits_for_the_reboot(device: FakeDevice) -> None:
    update(device)
    with pytest.raises(FirmwareError, match="waits for a reboot"):
        update(device, "1.2.0")
    assert reported(device) == "installed 1.1.0"


@pytest.mark.parametrize("version", ["0.9.9", "0.10.0"])
def test_an_older_version_is_refused_though_it_is_signed(device: FakeDevice, version: str) -> None:
    with pytest.raises(FirmwareError, match=r"1\.0\.0 runs: an older version"):
        update(device, version)
    assert installations(device) == 0
    assert update(device, version, allow_downgrade=True).text == f"installed {version}"


def test_versions_are_compared_as_numbers(device: FakeDevice) -> None:
    device.slots["A"] = "1.9.0"
    device.start_in("A")
    assert update(device, "1.10.0").phase == "installed"


def test_a_bundle_of_others_is_refused_with_what_rauc_says(device: FakeDevice) -> None:
    with pytest.raises(FirmwareError, match="unable to get local issuer certificate"):
        update(device, "")
    assert (installations(device), reported(device)) == (0, "")


def test_what_rauc_cannot_install_is_failed_and_never_installed(device: FakeDevice) -> None:
    device.programs.rauc_error = "Failed to write: No space left on device"
    with pytest.raises(FirmwareError, match="No space left"):
        update(device)
    assert reported(device) == "1.1.0 failed: Failed to write: No space left on device"
    for _ in range(4):
        assert device.restart() == "A"
    assert health.pass_gate(device) == ""
    assert reported(device).startswith("1.1.0 failed")
    device.programs.rauc_error = ""
    assert update(device, "1.1.1").phase == "installed"


def test_a_failure_after_the_slot_was_made_the_first_one_is_taken_back(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: FakeDevice) -> tuple[int, str]:
        FakeDevice_install(self)
        return 1, "LastError: post-install handler failed\n"

    FakeDevice_install = FakeDevice._install  # noqa: N806 - the method itself
    monkeypatch.setattr(FakeDevice, "_install", late)
    with pytest.raises(FirmwareError, match="post-install"):
        update(device)
    assert device.restart() == "A"
    assert reported(device).startswith("1.1.0 failed")


def test_a_refused_bundle_leaves_the_version_before_as_a_way_back(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = BootEnvironment(device.boot_folder)
    environment.write(environment.read().with_state("B", "good"))
    monkeypatch.setattr(FakeDevice, "_install", lambda _self: (1, "LastError: compatible mismatch\n"))
    with pytest.raises(FirmwareError, match="compatible mismatch"):
        update(device)
    assert environment.read().b_state == "good"


@pytest.mark.parametrize("steps", range(6))
def test_power_cut_at_any_step_is_told_as_it_is(device: FakeDevice, steps: int) -> None:
    device.programs.cut_after = steps
    with pytest.raises(PowerCutError):
        update(device)
    slot = device.restart()
    assert health.pass_gate(device) == ""
    if slot == "B":  # everything was done
        assert steps == 5
        assert reported(device) == "healthy 1.1.0"
        return
    assert "installation was cut short" in reported(device)
    device.programs.cut_after = 99
    assert update(device).phase == "installed"
    assert device.restart() == "B"
    assert health.pass_gate(device) == ""
    assert reported(device) == "healthy 1.1.0"


def test_a_version_that_does_not_get_as_far_as_its_gate_is_rolled_back(device: FakeDevice) -> None:
    update(device)
    assert [device.restart() for _ in range(4)] == ["B", "B", "B", "A"]
    assert reported(device) == "installed 1.1.0"
    assert health.pass_gate(device) == ""
    assert reported(device).startswith("rolled back from 1.1.0 to 1.0.0")
    assert update(device, "1.1.1").phase == "installed"


def test_the_power_going_off_between_good_and_its_report_costs_nothing(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(device)
    device.restart()

    def cut(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(updates, "on_healthy", cut)
        with pytest.raises(PowerCutError):
            health.pass_gate(device)
    assert reported(device) == "booted 1.1.0"
    assert device.restart() == "B"
    assert health.pass_gate(device) == ""
    assert reported(device) == "healthy 1.1.0"


def test_the_command_says_that_it_does_not_count_yet(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_commands, "Device", lambda: device)
    assert main(["device", "update", "update.raucb", "--no-reboot"]) == 0
    assert "it counts once it has booted and is healthy" in capsys.readouterr().out
    assert ("systemctl", "reboot") not in device.programs.called
